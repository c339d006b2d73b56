"""Decode steps padded into buckets, recorded and replayed, give the bits of plain steps: whatever runs beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from dsv4_kernels.dispatch import bind
from dsv4_kernels.placement import HOST
from library import Answer, answer, answer_together, prompt
from torch import Tensor

from dsv4_backend.assemble import build_engine
from dsv4_backend.config import CacheFormat, Drafter, ServingConfig
from dsv4_backend.model.transformer import Computed
from dsv4_backend.records import PlanRow, StepPlan
from dsv4_backend.runner.inline import InlineExecutor
from dsv4_backend.runner.padding import Bucket, Padding
from dsv4_backend.runner.rank import Rank
from dsv4_backend.runner.target import Target

SETTINGS: dict[str, Any] = {"num_threads": 1, "cache_tokens": 4096, "max_step_tokens": 128, "max_sequences": 8}
LENGTHS = (3, 130, 300, 127)


class CpuRecorder:
    """What a CUDA graph does: the same computation over the same tensors, its outputs in the same place."""

    def __init__(self) -> None:
        self.num_replays = 0
        self.sizes: list[int] = []

    def __call__(self, compute: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        with torch.inference_mode():
            outputs = compute()
        self.sizes.append(len(outputs[1]))

        def replay() -> None:
            self.num_replays += 1
            with torch.inference_mode():
                for kept, new in zip(tensors(outputs), tensors(compute()), strict=True):
                    kept.copy_(new)

        return replay, outputs


def tensors(outputs: tuple[Computed, Tensor]) -> list[Tensor]:
    computed, logits = outputs
    return [computed.streams, logits, *([] if computed.taps is None else [computed.taps])]


def answers(checkpoint: Path, recorder: CpuRecorder | None, **changes: object) -> list[Answer]:
    """One request alone, then four at once; all decode, the last ones behind prompts that cross pages."""
    config = ServingConfig(**(SETTINGS | {"checkpoint": str(checkpoint)} | changes))
    executor = InlineExecutor(lambda: Rank.load(config, target=Target(bind("cpu"), HOST, recorder)))
    engine = build_engine(config, executor=executor)
    engine.start()
    try:
        alone = answer(engine, prompt(5, max_tokens=9))
        items = [prompt(count, salt=count, max_tokens=20, temperature=0.7) for count in LENGTHS]
        return [alone, *answer_together(engine, items)]
    finally:
        engine.close()


@pytest.mark.parametrize("cache_format", [CacheFormat.FP32, CacheFormat.PACKED_FP4INDEX])
def test_replayed_steps_give_the_bits_of_plain_ones(cache_format: CacheFormat, random_checkpoint: Path) -> None:
    recorder = CpuRecorder()
    got, want = (answers(random_checkpoint, each, cache_format=cache_format) for each in (recorder, None))
    assert [each.token_ids for each in got] == [each.token_ids for each in want]
    assert [each.logprobs for each in got] == [each.logprobs for each in want]
    assert recorder.num_replays > 20 and len(recorder.sizes) >= 3


def test_drafts_are_replayed_and_taken_back_as_in_plain_steps(nano_checkpoint: Path) -> None:
    recorder, settings = CpuRecorder(), {"drafter": Drafter.MTP, "max_drafts": 2}
    got, want = (answers(nano_checkpoint, each, **settings) for each in (recorder, None))
    assert [each.token_ids for each in got] == [each.token_ids for each in want]
    assert [each.logprobs for each in got] == [each.logprobs for each in want]
    assert recorder.num_replays > 8 and max(recorder.sizes) >= 8  # four sequences with drafts


def test_other_steps_are_not_replayed(random_checkpoint: Path) -> None:
    rank = Rank.load(ServingConfig(checkpoint=str(random_checkpoint), **SETTINGS), target=Target(bind("cpu"), HOST))
    layout = rank._inputs.layout
    padding = Padding(rank._inputs, layout, spare_page=32, spare_state=8)
    decode = PlanRow(sequence_id=1, start=600, token_ids=(5, 6), num_drafts=1)
    assert padding.bucket(StepPlan(step=1, rows=(decode,))) == Bucket(tokens=2, pages=16)
    for change in (
        {"token_ids": (5, 6, 7)},  # a chunk of a prompt
        {"is_sampled": False},
        {"wants_prompt_logprobs": True},
        {"start": 1 << 22},  # behind the longest bucket
    ):
        assert padding.bucket(StepPlan(step=1, rows=(replace(decode, **change),))) is None
    many = tuple(replace(decode, sequence_id=number) for number in range(33))
    assert padding.bucket(StepPlan(step=1, rows=many)) is None
