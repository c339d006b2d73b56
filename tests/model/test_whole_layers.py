"""A layer as one call of the compiled library gives the bits of the operators that the model composes it of."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache

import pytest
import torch
from dsv4_kernels.dispatch import bind
from dsv4_kernels.errors import ShapeError
from dsv4_kernels.steps import StepInputs
from dsv4_kernels.sublayers import layers_of
from hf_oracle import HfSource, make_oracle, random_tokens, stored_fp32
from model_rig import Driver
from test_batch_invariance import stored_official

from dsv4_backend.config import CacheFormat, Numerics
from dsv4_backend.kv.layout import KINDS, make_layout
from dsv4_backend.model import StepCache, Transformer
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


@CACHES
@NUMERICS
def test_sequences_in_mixed_steps_have_the_bits_of_the_operators(numerics: Numerics, cache_format: CacheFormat) -> None:
    lengths = {0: 300, 1: 131, 2: 7, 3: 260}
    results = []
    for is_whole in (True, False):
        choose = random.Random(5)
        driver = Driver(model_of(numerics, is_whole=is_whole), num_pages=16, cache_format=cache_format)
        tokens = {name: random_tokens(length, name) for name, length in lengths.items()}
        while any(driver.done.get(name, 0) < length for name, length in lengths.items()):
            open_ones = [name for name, length in lengths.items() if driver.done.get(name, 0) < length]
            counts = {
                name: min(choose.choice([1, 1, 4, 60, 129]), lengths[name] - driver.done.get(name, 0))
                for name in choose.sample(open_ones, choose.randint(1, len(open_ones)))
            }
            driver.step(counts, {name: tokens[name] for name in counts if name not in driver.tokens})
        results.append([driver.result(name) for name in lengths])
    for found, wanted in zip(*results, strict=True):
        assert torch.equal(found, wanted)


@CACHES
def test_tokens_that_are_taken_back_leave_the_bits_of_the_operators(cache_format: CacheFormat) -> None:
    results = []
    for is_whole in (True, False):
        driver = Driver(model_of(Numerics.TRAINED, is_whole=is_whole), cache_format=cache_format, max_drafts=3)
        driver.step({0: 126}, {0: random_tokens(200, 3)})
        for _ in range(16):
            driver.step({0: 4})
            driver.take_back(0, 3)
        results.append(driver.result(0))
    assert torch.equal(*results)


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

    def changed(inputs: StepInputs, held: StepCache, _selector: None) -> torch.Tensor:
        seen.append(inputs)
        return forward(change(inputs) if len(seen) == 2 else inputs, held)

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
