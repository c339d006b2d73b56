"""A layer, or all of them, as one call of the compiled library: the bits of the operators that the model composes."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from dsv4_kernels.cpu.plan import PlannedStep, unplanned
from dsv4_kernels.dispatch import bind
from dsv4_kernels.errors import ShapeError
from dsv4_kernels.sublayers import layers_of
from hf_oracle import HfSource, make_oracle, random_tokens, stored_fp32
from model_rig import Driver
from test_batch_invariance import stored_official

from dsv4_backend.config import CacheFormat, Numerics
from dsv4_backend.kv.layout import KINDS, make_layout
from dsv4_backend.model import StepCache, Transformer
from dsv4_backend.records import PageGrant, PlanRow, SamplingParams, SequenceStart, StepPlan
from dsv4_backend.runner.cache import RankCache

CACHES = pytest.mark.parametrize("cache_format", CacheFormat)
NUMERICS = pytest.mark.parametrize("numerics", list(Numerics))


@cache
def model_of(numerics: Numerics, *, is_whole: bool) -> Transformer:
    """A layer of each kind, two of them routed by token ids. One foreign operator keeps whole layers away."""
    oracle, config = make_oracle(
        21, num_hidden_layers=5, compress_ratios=[0, 4, 128, 4, 128], index_topk=12, num_hash_layers=2
    )
    source = HfSource(oracle, stored_fp32 if numerics is Numerics.PLAIN else stored_official)
    ops = bind("cpu")
    if not is_whole:
        ops = replace(ops, sample_tokens=bind("reference").sample_tokens)
    return Transformer.load(config, source, ops, numerics)


def test_the_compiled_form_is_used_only_where_every_operator_is_the_table_s_own() -> None:
    assert layers_of(bind("cpu")) is not None
    assert layers_of(bind("reference")) is None
    assert all(layer.whole is not None for layer in model_of(Numerics.PLAIN, is_whole=True).layers)
    assert all(layer.whole is None for layer in model_of(Numerics.PLAIN, is_whole=False).layers)


def test_a_planned_step_is_computed_without_its_tensors() -> None:
    driver, seen = Driver(model_of(Numerics.TRAINED, is_whole=True)), []
    build = driver.builder.build
    driver.builder.build = lambda plan: seen.append(build(plan)) or seen[-1]  # type: ignore[method-assign, return-value]
    driver.run(random_tokens(140, 2), [130, 4, 1, 1, 4])
    assert len(seen) == 5 and not any("inputs" in vars(step) for step in seen)


class LayerByLayer:
    """A model that is called once per layer, as where a draft model taps some of them."""

    def __init__(self, model: Transformer) -> None:
        self.model = model

    def forward(self, inputs: PlannedStep, cache: StepCache, _selector: None = None) -> torch.Tensor:
        return self.model.forward(unplanned(inputs), cache)


def drivers(numerics: Numerics, **options: Any) -> list[Driver]:
    """One per form: all layers in a call, layer by layer, operator by operator."""
    made = [Driver(model_of(numerics, is_whole=is_whole), **options) for is_whole in (True, True, False)]
    made[1].model = LayerByLayer(made[1].model)  # type: ignore[assignment]
    return made


def assert_alike(results: list[torch.Tensor]) -> None:
    assert all(torch.equal(found, results[-1]) for found in results[:-1])


@CACHES
@NUMERICS
def test_sequences_in_mixed_steps_have_the_bits_of_the_operators(numerics: Numerics, cache_format: CacheFormat) -> None:
    lengths = {0: 300, 1: 131, 2: 7, 3: 260}
    results = []
    for driver in drivers(numerics, num_pages=16, cache_format=cache_format):
        choose = random.Random(5)
        tokens = {name: random_tokens(length, name) for name, length in lengths.items()}
        while any(driver.done.get(name, 0) < length for name, length in lengths.items()):
            open_ones = [name for name, length in lengths.items() if driver.done.get(name, 0) < length]
            counts = {
                name: min(choose.choice([1, 1, 4, 60, 129]), lengths[name] - driver.done.get(name, 0))
                for name in choose.sample(open_ones, choose.randint(1, len(open_ones)))
            }
            driver.step(counts, {name: tokens[name] for name in counts if name not in driver.tokens})
        results.append(torch.cat([driver.result(name) for name in lengths]))
    assert_alike(results)


@CACHES
def test_tokens_that_are_taken_back_leave_the_bits_of_the_operators(cache_format: CacheFormat) -> None:
    results = []
    for driver in drivers(Numerics.TRAINED, cache_format=cache_format, max_drafts=3):
        driver.step({0: 126}, {0: random_tokens(200, 3)})
        for _ in range(16):
            driver.step({0: 4})
            driver.take_back(0, 3)
        results.append(driver.result(0))
    assert_alike(results)


def test_positions_near_a_million_have_the_bits_of_the_operators() -> None:
    """Every page of the sequence is the same one: only the angles and the number of entries are those of the end."""
    results = []
    for driver in drivers(Numerics.TRAINED, num_pages=2):
        first = (1 << 20) - 150
        granted = {"block": (0,) * (1 << 13), "state": (0,)}
        grants = tuple(PageGrant(kind=kind, first_block=0, page_ids=pages) for kind, pages in granted.items())
        for count in (140, 1, 1):
            row = PlanRow(
                sequence_id=1,
                start=first,
                token_ids=tuple(random_tokens(count, first)),
                grants=grants,
                wants_prompt_logprobs=True,
            )
            start = SequenceStart(sequence_id=1, token_ids=(7,), num_prompt_tokens=1, sampling=SamplingParams())
            plan = StepPlan(step=0, rows=(row,), starts=() if count == 1 else (start,))
            results.append(driver.model.forward(driver.builder.build(plan), driver.cache, None))
            first, grants = first + count, ()
    thirds = [torch.cat(results[3 * form : 3 * form + 3]) for form in range(3)]
    assert_alike(thirds)


@pytest.mark.parametrize("token_id", [-1, 10**6])
def test_a_token_outside_the_vocabulary_is_refused(token_id: int) -> None:
    driver = Driver(model_of(Numerics.TRAINED, is_whole=True))
    with pytest.raises(ShapeError, match="outside the vocabulary"):
        driver.run([5, token_id, 7])


@pytest.mark.parametrize(
    "change",
    [
        lambda inputs: replace(inputs, ring_rows=inputs.ring_rows + 10**6),
        lambda inputs: replace(inputs, window_rows=inputs.window_rows.clamp(max=-1) - 10**6),
        lambda inputs: replace(inputs, hca_rows=inputs.hca_rows + 10**6),
        lambda inputs: replace(inputs, csa_rows=inputs.csa_rows + 10**6),
        lambda inputs: replace(inputs, csa=replace(inputs.csa, entry_rows=inputs.csa.entry_rows + 10**6)),
        lambda inputs: replace(inputs, csa=replace(inputs.csa, source_rows=inputs.csa.source_rows + 10**6)),
        lambda inputs: replace(inputs, csa=replace(inputs.csa, phases=inputs.csa.phases + 4)),
        lambda inputs: replace(inputs, hca=replace(inputs.hca, entry_rows=inputs.hca.entry_rows - 10**6)),
    ],
)
def test_rows_outside_a_cache_are_refused(change) -> None:  # type: ignore[no-untyped-def]
    model = model_of(Numerics.TRAINED, is_whole=True)
    driver = Driver(model)
    forward, seen = model.forward, []

    def changed(inputs: PlannedStep, held: StepCache, _selector: None) -> torch.Tensor:
        seen.append(inputs)
        return forward(change(unplanned(inputs)) if len(seen) == 2 else inputs, held)

    driver.model = type("Model", (), {"forward": staticmethod(changed)})()  # type: ignore[assignment]
    driver.step({0: 127}, {0: random_tokens(300, 1)})
    with pytest.raises(ShapeError):
        driver.step({0: 129})


def test_another_cache_is_described_anew() -> None:
    model = model_of(Numerics.TRAINED, is_whole=True)
    tokens = random_tokens(150, 8)
    assert torch.equal(Driver(model).run(tokens), Driver(model, cache_format=CacheFormat.FP32).run(tokens))
    other = RankCache(make_layout(model.config, CacheFormat.BF16, 0), dict.fromkeys(KINDS, 1))
    assert other.window(0).spec != Driver(model).cache.window(0).spec
    Driver(model, cache_format=CacheFormat.BF16).run(tokens)
