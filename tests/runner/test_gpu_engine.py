"""The engine on the GPU that is here (`make test-gpu`): recorded steps, plain steps and the CPU, on the nano model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from library import Answer, answer, answer_together, open_engine, prompt

from dsv4_backend.config import CacheFormat, DeviceKind, Drafter

pytestmark = pytest.mark.skipif(os.environ.get("DSV4_TEST_GPU") != "1", reason="make test-gpu runs it")
LENGTHS = (5, 130, 300, 700)


def answers(checkpoint: Path, **settings: object) -> list[Answer]:
    """One request alone, then four at once."""
    with open_engine(checkpoint, max_sequences=8, cache_tokens=8192, **settings) as engine:
        alone = answer(engine, prompt(40, max_tokens=40))
        return [alone, *answer_together(engine, [prompt(count, salt=count) for count in LENGTHS])]


@pytest.mark.parametrize("cache_format", [CacheFormat.FP32, CacheFormat.PACKED_FP4INDEX])
def test_recorded_steps_give_the_answers_of_plain_ones(cache_format: CacheFormat, nano_checkpoint: Path) -> None:
    settings = {"device": DeviceKind.CUDA, "cache_format": cache_format}
    recorded, plain = (answers(nano_checkpoint, cuda_graphs=each, **settings) for each in (True, False))
    assert [each.token_ids for each in recorded] == [each.token_ids for each in plain]


def test_the_first_logprobs_are_those_of_the_cpu(nano_checkpoint: Path) -> None:
    """Later tokens may part ways: a GPU rounds tokens of BF16 products to BF16."""
    gpu, cpu = (answers(nano_checkpoint, device=each) for each in (DeviceKind.CUDA, DeviceKind.CPU))
    first = [(mine.logprobs[0].logprob, theirs.logprobs[0].logprob) for mine, theirs in zip(gpu, cpu, strict=True)]
    assert all(abs(mine - theirs) < 0.1 * max(1.0, abs(theirs)) for mine, theirs in first)


def test_drafts_do_not_end_a_sequence(nano_checkpoint: Path) -> None:
    drafted = answers(nano_checkpoint, device=DeviceKind.CUDA, drafter=Drafter.MTP, max_drafts=2)
    assert all(each.final.finish_reason is not None for each in drafted)
    torch.cuda.synchronize()
