"""The figures of DeepSeek's report, from the bundled configs: FLOPs and cache against V3.2, bytes per token."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_rig import cost

from dsv4_backend.checkpoint.inspect import inspect_checkpoint
from dsv4_backend.checkpoint.layout import layout_of
from dsv4_backend.config import CacheFormat, load_model_config
from dsv4_backend.kv.layout import make_layout
from dsv4_backend.parallel import Mesh
from dsv4_backend.plan.bundled import bundled_config
from dsv4_backend.plan.cost import WEIGHTING, CacheTerm, Operation
from dsv4_backend.plan.deepseek_v4 import weight_groups
from dsv4_backend.plan.formats import HcaState, entry_bytes
from dsv4_backend.plan.hardware import Precision
from dsv4_backend.plan.rivals import deepseek_v32, dense_gqa

MILLION = 1_000_000
NAMES = ("pro", "flash")


@pytest.mark.parametrize(("name", "percent"), [("pro", 26.8), ("flash", 10.0)])
def test_flops_at_a_million_tokens_are_the_claimed_share_of_v32(name: str, percent: float) -> None:
    share = cost(name).weighted_flops(MILLION) / deepseek_v32().weighted_flops(MILLION)
    assert 100 * share == pytest.approx(percent, abs=0.5)


@pytest.mark.parametrize(("name", "percent"), [("pro", 10.5), ("flash", 7.3)])
@pytest.mark.parametrize("hca_state", ["raw", "online"])
def test_the_cache_at_a_million_tokens_is_the_claimed_share_of_v32(name: str, percent: float, hca_state: str) -> None:
    share = cost(name, hca_state=hca_state).cache_bytes(MILLION) / deepseek_v32().cache_bytes(MILLION)
    assert 100 * share == pytest.approx(percent, abs=0.5)


@pytest.mark.parametrize(("name", "giga"), [("pro", (97.7, 122.9, 73.6)), ("flash", (26.5, 86.0, 22.6))])
def test_plain_flops_of_each_operation_are_those_of_the_facts(name: str, giga: tuple[float, ...]) -> None:
    model = cost(name)
    found = (
        2 * model.active_parameters,
        model.flops(MILLION, Operation.INDEX),
        model.flops(MILLION, Operation.CORE),
    )
    assert [round(value / 1e9, 1) for value in found] == list(giga)


def test_the_weighting_is_named() -> None:
    assert ("BF16 x2" in WEIGHTING, "FP8 x1" in WEIGHTING, "FP4 x1/2" in WEIGHTING) == (True, True, True)


@pytest.mark.parametrize(("name", "num_bytes"), [("pro", 5031.4375), ("flash", 3514.25)])
def test_a_further_token_costs_the_exact_bytes(name: str, num_bytes: float) -> None:
    assert cost(name).marginal_bytes == num_bytes


@pytest.mark.parametrize(
    ("name", "hca_state", "megabytes"),
    [("pro", "raw", 23.3), ("flash", "raw", 15.4), ("pro", "online", 7.2), ("flash", "online", 5.0)],
)
def test_the_fixed_bytes_of_a_sequence_are_those_of_the_facts(name: str, hca_state: str, megabytes: float) -> None:
    assert cost(name, hca_state=hca_state).fixed_bytes / 1e6 == pytest.approx(megabytes, abs=0.06)


@pytest.mark.parametrize("name", ["pro", "flash"])
def test_the_plan_counts_what_the_cache_allocates(name: str) -> None:
    config = bundled_config(name)
    assert config is not None
    layout = make_layout(config, CacheFormat.PACKED_FP4INDEX)
    planned = cost(name, hca_state="online")
    assert (planned.snapshot_bytes, planned.marginal_bytes) == (layout.state_bytes, layout.page_bytes / 128)


@pytest.mark.parametrize(
    ("cache_format", "sizes"), [("packed-fp4index", (584, 68)), ("packed-fp8index", (584, 132)), ("bf16", (1024, 256))]
)
def test_entries_have_the_released_sizes(cache_format: str, sizes: tuple[int, int]) -> None:
    config = bundled_config("pro")
    assert config is not None
    found = entry_bytes(config, CacheFormat(cache_format))
    assert (found.entry, found.index_key) == sizes


@pytest.mark.parametrize(("name", "billions"), [("pro", 48.85), ("flash", 13.27)])
def test_active_parameters_are_the_released_ones(name: str, billions: float) -> None:
    assert cost(name).active_parameters / 1e9 == pytest.approx(billions, abs=0.005)


def test_v32_activates_37_billion_parameters() -> None:
    assert deepseek_v32().active_parameters / 1e9 == pytest.approx(37.5, abs=0.05)


def test_v4_keeps_two_percent_of_the_cache_of_dense_attention() -> None:
    config = bundled_config("pro")
    assert config is not None
    assert cost("pro").cache_bytes(MILLION) / dense_gqa(cost("pro"), config).cache_bytes(MILLION) == pytest.approx(
        0.02, abs=0.001
    )


def test_weights_are_the_bytes_that_check_computes(random_checkpoint: Path) -> None:
    config = load_model_config(random_checkpoint)
    groups = weight_groups(config, layout_of(config))
    assert sum(group.num_bytes for group in groups) == inspect_checkpoint(random_checkpoint).rank_bytes[0]


def test_pro_on_eight_ranks_holds_its_share_of_the_released_bytes() -> None:
    whole, share = cost("pro").weight_bytes(Mesh()), cost("pro").weight_bytes(Mesh(tp=8))
    assert whole / 8 < share < whole / 8 * 1.05


@given(ratio=st.integers(1, 130), limit=st.integers(0, 50), num_tokens=st.integers(1, 400))
def test_a_prompt_costs_what_its_tokens_cost(ratio: int, limit: int, num_tokens: int) -> None:
    term = CacheTerm(name="any", operation=Operation.CORE, num_layers=3, ratio=ratio, entry_bytes=1, entry_flops=7,
                     precision=Precision.BF16, max_read=limit)  # fmt: skip
    assert term.prompt_flops(num_tokens) == sum(term.flops(position) for position in range(1, num_tokens + 1))


@given(
    name=st.sampled_from(NAMES),
    cache_format=st.sampled_from([each.value for each in CacheFormat]),
    hca_state=st.sampled_from([each.value for each in HcaState]),
    shorter=st.integers(1, 2**20),
    more=st.integers(0, 2**20),
)
def test_more_context_never_needs_fewer_bytes(
    name: str, cache_format: str, hca_state: str, shorter: int, more: int
) -> None:
    model = cost(name, cache_format, hca_state)
    assert model.cache_bytes(shorter + more) >= model.cache_bytes(shorter)
