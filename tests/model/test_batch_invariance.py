"""On the cpu table a token's logits keep their bits however its sequence is cut and whoever else is in the step."""

from __future__ import annotations

import random
from functools import cache

import pytest
import torch
from dsv4_kernels.dispatch import bind
from dsv4_kernels.tensors import QuantTensor, quantise_fp8_block, quantise_mxfp4
from hf_oracle import HfSource, make_oracle, random_tokens, stored_fp32
from hypothesis import given, settings
from hypothesis import strategies as st
from model_rig import Driver
from torch import Tensor

from dsv4_backend.config import CacheFormat, Numerics
from dsv4_backend.model import Transformer

FIRST_BOUNDARY = 129  # behind one whole page, so that every ring and page edge has been crossed
PROMPT_TOKENS = FIRST_BOUNDARY + 128 + 5


@cache
def tiny_model(numerics: Numerics) -> Transformer:
    """A layer of each kind, indexer choosing 12 of up to 65 entries, under the given numerics."""
    model, config = make_oracle(21, num_hidden_layers=4, compress_ratios=[0, 4, 128, 4], index_topk=12)
    source = HfSource(model, stored_fp32 if numerics is Numerics.PLAIN else stored_official)
    return Transformer.load(config, source, bind("cpu"), numerics)


def stored_official(name: str, matrix: Tensor) -> QuantTensor:
    """FP8 and FP4 where the released checkpoints have them."""
    if ".experts." in name:
        return quantise_mxfp4(matrix)
    is_fp8 = name.endswith(("wq_a", "wq_b", "attn.wkv", "wo_a", "wo_b")) or "shared_experts" in name
    return quantise_fp8_block(matrix) if is_fp8 else stored_fp32(name, matrix)


@cache
def whole(numerics: Numerics, count: int = PROMPT_TOKENS, seed: int = 21) -> Tensor:
    """Logits of a prompt computed alone in one step."""
    return Driver(tiny_model(numerics)).run(random_tokens(count, seed))


@pytest.fixture(params=list(Numerics), ids=lambda item: item.value)
def numerics(request: pytest.FixtureRequest) -> Numerics:
    return Numerics(request.param)


def test_decode_token_by_token_gives_the_bits_of_prefill(numerics: Numerics) -> None:
    decoded = Driver(tiny_model(numerics)).run(random_tokens(PROMPT_TOKENS, 21), [1] * PROMPT_TOKENS)
    assert torch.equal(decoded, whole(numerics))


def test_a_boundary_at_every_position_of_a_page_gives_the_bits_of_prefill(numerics: Numerics) -> None:
    tokens, driver = random_tokens(PROMPT_TOKENS, 21), Driver(tiny_model(numerics))
    different = [
        boundary
        for boundary in range(FIRST_BOUNDARY, FIRST_BOUNDARY + 128)
        if not torch.equal(driver.run(tokens, [boundary, PROMPT_TOKENS - boundary]), whole(numerics))
    ]
    assert different == []


def test_a_window_that_begins_behind_position_zero_gives_the_bits_of_prefill(numerics: Numerics) -> None:
    count = 520
    chunked = Driver(tiny_model(numerics)).run(random_tokens(count, 22), [300, 3, 1, 133, 83])
    assert torch.equal(chunked, whole(numerics, count, 22))


@settings(max_examples=8)
@given(seed=st.integers(0, 2**32 - 1), numerics=st.sampled_from(Numerics))
def test_a_batch_of_mixed_lengths_gives_each_sequence_the_bits_it_has_alone(seed: int, numerics: Numerics) -> None:
    choose = random.Random(seed)
    driver = Driver(tiny_model(numerics), num_pages=16)
    lengths = {name: choose.choice([1, 3, 4, 5, 127, 128, 129, 200, 260]) for name in range(8)}
    waiting, running = list(lengths), []
    while waiting or running:
        prompts = {}
        while waiting and len(running) < 4 and choose.random() < 0.7:
            name = waiting.pop()
            prompts[name] = random_tokens(lengths[name], name)
            running.append(name)
        started = [name for name in running if name in prompts or choose.random() < 0.9]
        if started:
            choose.shuffle(started)
            left = {name: lengths[name] - (0 if name in prompts else driver.done[name]) for name in started}
            driver.step({name: min(left[name], choose.choice([1, 1, 2, 50, 130])) for name in started}, prompts)
        for name in [name for name in running if driver.done[name] == lengths[name]]:
            running.remove(name)
            driver.finish(name)
    different = [name for name in lengths if not torch.equal(driver.result(name), whole(numerics, lengths[name], name))]
    assert different == []


def test_pages_and_slots_of_a_finished_sequence_leave_no_trace_in_the_next(numerics: Numerics) -> None:
    driver = Driver(tiny_model(numerics), num_pages=4)
    driver.run(random_tokens(400, 23))
    assert torch.equal(driver.run(random_tokens(PROMPT_TOKENS, 21)), whole(numerics))


def test_a_sequence_that_starts_again_elsewhere_gives_the_same_bits(numerics: Numerics) -> None:
    driver = Driver(tiny_model(numerics))
    tokens = random_tokens(PROMPT_TOKENS, 21)
    driver.step({1: 150}, {1: tokens})
    driver.manager.release(1)  # preempted: its pages go to another sequence
    driver.step({2: 100}, {2: random_tokens(100, 24)})
    driver.step({1: PROMPT_TOKENS}, {1: tokens})
    assert torch.equal(driver.result(1), whole(numerics))


@pytest.mark.parametrize("cache_format", list(CacheFormat), ids=lambda item: item.value)
def test_every_cache_format_gives_prefill_and_decode_the_same_bits(
    cache_format: CacheFormat, numerics: Numerics
) -> None:
    tokens = random_tokens(PROMPT_TOKENS, 21)
    driver = Driver(tiny_model(numerics), cache_format=cache_format)
    expected = driver.run(tokens)
    assert torch.equal(driver.run(tokens, [127, 1, 2, 1, 1, *[1] * 9, PROMPT_TOKENS - 141]), expected)
    assert torch.equal(expected, whole(numerics)) == (cache_format is CacheFormat.FP32)


@pytest.mark.parametrize("max_drafts", [1, 3, 5])
@pytest.mark.parametrize("cache_format", [CacheFormat.FP32, CacheFormat.PACKED_FP4INDEX], ids=lambda item: item.value)
def test_tokens_that_were_taken_back_leave_no_trace(
    max_drafts: int, cache_format: CacheFormat, numerics: Numerics
) -> None:
    """Wrong drafts after every token, at every offset of a page, some of them accepted."""
    tokens, choose = random_tokens(PROMPT_TOKENS, 21), random.Random(max_drafts)
    expected = Driver(tiny_model(numerics), cache_format=cache_format).run(tokens)
    driver = Driver(tiny_model(numerics), cache_format=cache_format, max_drafts=max_drafts)
    driver.step({0: 100}, {0: tokens})
    while driver.done[0] < PROMPT_TOKENS - max_drafts - 1:
        accepted = choose.randint(0, max_drafts)
        first_wrong = driver.done[0] + 1 + accepted
        driver.tokens[0] = [*tokens[:first_wrong], *random_tokens(max_drafts - accepted, first_wrong)]
        driver.step({0: 1 + max_drafts})
        if accepted < max_drafts:
            driver.take_back(0, max_drafts - accepted)
    driver.tokens[0] = tokens
    driver.step({0: PROMPT_TOKENS - driver.done[0]})
    assert torch.equal(driver.result(0), expected)
