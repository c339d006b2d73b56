"""The sharding rule: parts of all ranks make up the whole, and what does not divide is named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv4_backend.config import ModelConfig, parse_model_config
from dsv4_backend.errors import ConfigError
from dsv4_backend.parallel import Mesh, Role, expert_owner, local_shape, mesh_problems, shard_range

CONFIG: dict[str, object] = {
    "hidden_size": 4096,
    "num_hidden_layers": 1,
    "num_hash_layers": 1,
    "compress_ratios": [0],
    "num_attention_heads": 64,
    "q_lora_rank": 1024,
    "o_groups": 8,
    "o_lora_rank": 1024,
    "n_routed_experts": 256,
    "num_experts_per_tok": 6,
    "moe_intermediate_size": 2048,
    "routed_scaling_factor": 1.5,
    "vocab_size": 129280,
    "expert_dtype": "fp4",
    "quantization_config": {"quant_method": "fp8"},
}


def config(**changes: object) -> ModelConfig:
    return parse_model_config(CONFIG | changes)


meshes = st.builds(
    lambda tp, ep, pick: Mesh(tp=tp, ep=ep, rank=pick % (tp * ep)), st.integers(1, 8), st.integers(1, 8), st.integers(0)
)


@given(mesh=meshes)
def test_a_rank_is_its_place_in_the_grid(mesh: Mesh) -> None:
    assert mesh.ep_rank * mesh.tp + mesh.tp_rank == mesh.rank


@pytest.mark.parametrize(("tp", "ep", "rank"), [(0, 1, 0), (1, 0, 0), (2, 2, 4), (1, 1, -1)])
def test_a_place_outside_the_grid_is_refused(tp: int, ep: int, rank: int) -> None:
    with pytest.raises(ConfigError):
        Mesh(tp=tp, ep=ep, rank=rank)


@given(role=st.sampled_from(Role), tp=st.integers(1, 8), parts=st.integers(1, 4))
def test_the_parts_of_all_ranks_make_up_the_whole(role: Role, tp: int, parts: int) -> None:
    shape = (tp * parts, tp * parts)
    ranges = [shard_range(role, shape, Mesh(tp=tp, rank=rank)) for rank in range(tp)]
    indices = sorted(index for part in ranges for index in part)
    copies = tp if role is Role.REPLICATED else 1
    assert indices == sorted(list(range(tp * parts)) * copies)


def test_an_output_projection_is_divided_by_columns() -> None:
    assert local_shape(Role.GROUP_COLUMNS, (4096, 8192), Mesh(tp=4, rank=1)) == (4096, 2048)


def test_an_axis_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match="axis 0 of a vocab_rows tensor is 10 but must be divisible by tp 4"):
        local_shape(Role.VOCAB_ROWS, (10, 3), Mesh(tp=4))


@given(ep=st.sampled_from([1, 2, 4, 8]))
def test_every_group_holds_an_equal_share_of_the_experts(ep: int) -> None:
    owners = [expert_owner(expert, 16, Mesh(ep=ep)) for expert in range(16)]
    assert owners == sorted(owners) and all(owners.count(owner) == 16 // ep for owner in range(ep))


def test_a_mesh_that_fits_has_no_problems() -> None:
    assert mesh_problems(config(), Mesh(tp=8, ep=4)) == ()


@pytest.mark.parametrize(
    ("changes", "mesh", "words"),
    [
        ({}, Mesh(tp=16), "o_groups is 8 (output groups) but must be divisible by tp 16. Set --tp 8."),
        ({"vocab_size": 129281}, Mesh(tp=2), "vocab_size is 129281"),
        ({"moe_intermediate_size": 2080}, Mesh(tp=64), "moe_intermediate_size is 2080"),
        ({}, Mesh(ep=3), "n_routed_experts is 256 but must be divisible by ep 3. Set --ep 2."),
        ({"moe_intermediate_size": 64}, Mesh(tp=4), "moe_intermediate_size (mxfp4) is 64, 16 per rank at tp 4"),
        ({"moe_intermediate_size": 1152}, Mesh(tp=8), "shared moe_intermediate_size is 1152, 144 per rank"),
    ],
)
def test_the_dimension_that_does_not_divide_is_named(changes: dict[str, object], mesh: Mesh, words: str) -> None:
    assert any(line.startswith(words) for line in mesh_problems(config(**changes), mesh))
