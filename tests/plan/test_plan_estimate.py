"""Devices, meshes, what fits, and the roofline."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_rig import cost

from dsv4_backend.config import ModelConfig
from dsv4_backend.errors import ConfigError
from dsv4_backend.parallel import Mesh
from dsv4_backend.plan.bundled import bundled_config
from dsv4_backend.plan.compare import compare_published, comparison_json, render_comparison
from dsv4_backend.plan.estimate import Load, max_sequences
from dsv4_backend.plan.hardware import DEVICES, Precision, find_device
from dsv4_backend.plan.mesh import choose_mesh
from dsv4_backend.plan.published import PUBLISHED
from dsv4_backend.plan.roofline import decode_bound, prefill_bound

DEVICE_NAMES = tuple(DEVICES)
MESHES = [(1, 1), (8, 1), (1, 8), (4, 4), (16, 1)]


def pro() -> ModelConfig:
    config = bundled_config("pro")
    assert config is not None
    return config


def load(device: str, mesh: Mesh, context_tokens: int = 8192, concurrency: int = 1) -> Load:
    return Load(device=find_device(device), mesh=mesh, context_tokens=context_tokens, concurrency=concurrency)


@given(
    name=st.sampled_from(["pro", "flash"]),
    device=st.sampled_from(DEVICE_NAMES),
    sizes=st.sampled_from(MESHES),
    context_tokens=st.integers(1, 2**20),
)
def test_the_sequences_that_fit_stay_within_memory(
    name: str, device: str, sizes: tuple[int, int], context_tokens: int
) -> None:
    mesh = Mesh(tp=sizes[0], ep=sizes[1])
    wanted, model = load(device, mesh, context_tokens), cost(name)
    fitting = max_sequences(model, wanted)
    per_rank = fitting // mesh.ep
    used = model.weight_bytes(mesh) + per_rank * model.cache_bytes(context_tokens, mesh.tp)
    assert fitting == 0 or used <= wanted.memory_bytes


@given(device=st.sampled_from(DEVICE_NAMES), sizes=st.sampled_from(MESHES), context_tokens=st.integers(1, 2**20))
def test_one_sequence_more_would_not_fit(device: str, sizes: tuple[int, int], context_tokens: int) -> None:
    mesh = Mesh(tp=sizes[0], ep=sizes[1])
    wanted, model = load(device, mesh, context_tokens), cost("flash")
    per_rank = max_sequences(model, wanted) // mesh.ep + 1
    assert model.weight_bytes(mesh) + per_rank * model.cache_bytes(context_tokens, mesh.tp) > wanted.memory_bytes


@given(context_tokens=st.integers(1, 2**19), more=st.integers(0, 2**19), concurrency=st.integers(1, 300))
def test_more_context_never_takes_less_time(context_tokens: int, more: int, concurrency: int) -> None:
    device, mesh, model = find_device("b200"), Mesh(tp=8), cost("pro")
    times = [
        (decode_bound(model, device, mesh, n, concurrency).seconds, prefill_bound(model, device, mesh, n).seconds)
        for n in (context_tokens, context_tokens + more)
    ]
    assert times[0][0] <= times[1][0] and times[0][1] <= times[1][1]


@given(concurrency=st.integers(1, 500))
def test_a_larger_batch_never_takes_less_time(concurrency: int) -> None:
    device, mesh, model = find_device("h200"), Mesh(ep=8), cost("flash")
    steps = [decode_bound(model, device, mesh, 8192, batch).seconds for batch in (concurrency, concurrency + 1)]
    assert steps[0] <= steps[1]


@pytest.mark.parametrize(
    ("tp", "ep", "dimension"),
    [
        (3, 1, "num_attention_heads"),
        (32, 1, "o_groups"),
        (16, 1, "moe_intermediate_size"),
        (1, 7, "n_routed_experts"),
        (1536, 1, "vocab_size"),
    ],
)
def test_an_uneven_mesh_is_refused_by_dimension(tp: int, ep: int, dimension: str) -> None:
    with pytest.raises(ConfigError, match=dimension):
        choose_mesh(pro(), tp * ep, tp, ep)


def test_a_mesh_that_is_not_all_devices_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"16 ranks but gpus is 8"):
        choose_mesh(pro(), 8, 4, 4)


@pytest.mark.parametrize(
    ("num_devices", "tp", "ep", "mesh"),
    [
        (8, None, None, Mesh(tp=8)),
        (32, None, None, Mesh(tp=8, ep=4)),  # tp 16 would cut the experts' blocks of 128
        (6, None, None, Mesh(tp=2, ep=3)),
        (8, 2, None, Mesh(tp=2, ep=4)),
        (8, None, 8, Mesh(tp=1, ep=8)),
    ],
)
def test_what_is_not_given_of_a_mesh_is_chosen(num_devices: int, tp: int | None, ep: int | None, mesh: Mesh) -> None:
    assert choose_mesh(pro(), num_devices, tp, ep) == mesh


@pytest.mark.parametrize("sizes", [(0, None, None), (8, 0, None), (8, None, 16)])
def test_a_mesh_without_ranks_is_refused(sizes: tuple[int, int | None, int | None]) -> None:
    with pytest.raises(ConfigError, match=r"Set|at least 1"):
        choose_mesh(pro(), *sizes)


@pytest.mark.parametrize("name", DEVICE_NAMES)
def test_a_narrower_format_is_never_slower(name: str) -> None:
    device = find_device(name)
    rates = [device.rate(precision) for precision in (Precision.BF16, Precision.FP8, Precision.FP4)]
    assert rates == sorted(rates) and rates[0] > 0


@pytest.mark.parametrize("name", DEVICE_NAMES)
def test_every_device_names_its_source(name: str) -> None:
    assert len(DEVICES[name].source) > 20


def test_a_device_is_found_as_people_write_it() -> None:
    assert find_device("RTX PRO 6000") is DEVICES["rtx-pro-6000"]


def test_an_unknown_device_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean gb300"):
        find_device("gb3000")


@pytest.mark.parametrize(
    "change", [{"context_tokens": 0}, {"concurrency": 0}, {"memory_share": 0.0}, {"memory_share": 1.5}]
)
def test_a_load_that_cannot_be_planned_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="must be"):
        replace(load("b200", Mesh(tp=8)), **change)  # type: ignore[arg-type]


def test_no_published_rate_beats_the_roofline() -> None:
    over = [row for row in compare_published() if row.user_ratio > 1 or row.device_ratio > 1]
    assert over == []


def test_no_published_prompt_beats_the_roofline() -> None:
    assert [row for row in compare_published() if row.ttft_ratio and row.ttft_ratio < 1] == []


def test_every_published_figure_has_a_line_with_its_ratio() -> None:
    rows = compare_published()
    lines = render_comparison(rows).splitlines()[1 : len(PUBLISHED) + 1]
    assert [f"{row.user_ratio:.3g}" in line for row, line in zip(rows, lines, strict=True)] == [True] * len(PUBLISHED)


def test_the_comparison_as_json_names_every_source() -> None:
    assert comparison_json(compare_published()).count('"source"') == len(PUBLISHED)
