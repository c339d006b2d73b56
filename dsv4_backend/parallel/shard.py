"""The rule by which a tensor is divided over the ranks: by its role, never by its name.

Attention is divided by heads, whole output groups at a time; the shared expert and each routed expert by their inner
width; the vocabulary by rows; routed experts besides go whole to the `ep` groups. The key/value projection, the
compressors and the indexer serve every head and are replicated, as are norms, router and mHC.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from dsv4_backend.config import ExpertFormat, ModelConfig
from dsv4_backend.errors import ConfigError
from dsv4_backend.parallel.mesh import Mesh

FP8_BLOCK = 128


class Role(str, Enum):
    """What a tensor's rows or columns stand for."""

    REPLICATED = "replicated"
    VOCAB_ROWS = "vocab_rows"  # embed, head, Markov tables
    HEAD_ROWS = "head_rows"  # wq_b, attn_sink
    GROUP_ROWS = "group_rows"  # wo_a: one block of rows per output group
    GROUP_COLUMNS = "group_columns"  # wo_b: reads all groups, so the partial sums are added over the ranks
    INNER_ROWS = "inner_rows"  # w1, w3 of an expert
    INNER_COLUMNS = "inner_columns"  # w2 of an expert


_AXES: dict[Role, int | None] = {
    Role.REPLICATED: None,
    Role.VOCAB_ROWS: 0,
    Role.HEAD_ROWS: 0,
    Role.GROUP_ROWS: 0,
    Role.GROUP_COLUMNS: 1,
    Role.INNER_ROWS: 0,
    Role.INNER_COLUMNS: 1,
}


def shard_axis(role: Role) -> int | None:
    """Return the axis that is divided over `tp`, or None for a tensor that every rank holds whole."""
    return _AXES[role]


def shard_range(role: Role, shape: Sequence[int], mesh: Mesh) -> range:
    """Return this rank's indices along the divided axis (all of axis 0 when replicated).

    Raises: ConfigError if the axis does not divide evenly.
    """
    axis = shard_axis(role)
    if axis is None:
        return range(shape[0] if shape else 1)
    size = shape[axis]
    if size % mesh.tp:
        raise ConfigError(f"axis {axis} of a {role.value} tensor is {size} but must be divisible by tp {mesh.tp}.")
    part = size // mesh.tp
    return range(mesh.tp_rank * part, (mesh.tp_rank + 1) * part)


def local_shape(role: Role, shape: Sequence[int], mesh: Mesh) -> tuple[int, ...]:
    """Return the shape that this rank holds.

    Raises: ConfigError if the axis does not divide evenly.
    """
    axis = shard_axis(role)
    if axis is None:
        return tuple(shape)
    part = len(shard_range(role, shape, mesh))
    return (*shape[:axis], part, *shape[axis + 1 :])


def expert_owner(expert: int, num_experts: int, mesh: Mesh) -> int:
    """Return the `ep` rank that holds a routed expert: contiguous, equal shares."""
    return expert * mesh.ep // num_experts


def mesh_problems(config: ModelConfig, mesh: Mesh) -> tuple[str, ...]:
    """Name every dimension that the mesh would divide unevenly, or in the middle of a quantisation block."""
    tp, problems = mesh.tp, []
    divided = (
        ("vocab_size", config.vocab_size, "vocabulary rows"),
        ("num_attention_heads", config.num_heads, "heads"),
        ("o_groups", config.o_groups, "output groups"),
        ("moe_intermediate_size", config.moe_size, "inner width of the experts"),
    )
    for name, size, what in divided:
        if size % tp:
            problems.append(f"{name} is {size} ({what}) but must be divisible by tp {tp}. {_fit(size, tp, 'tp')}")
    if config.num_experts % mesh.ep:
        problems.append(
            f"n_routed_experts is {config.num_experts} but must be divisible by ep {mesh.ep}."
            f" {_fit(config.num_experts, mesh.ep, 'ep')}"
        )
    return (*problems, *(() if tp == 1 else _block_problems(config, tp)))


def _block_problems(config: ModelConfig, tp: int) -> list[str]:
    sizes = []
    if config.quant.is_dense_fp8:
        sizes += [
            ("num_attention_heads * head_dim", config.num_heads * config.head_dim, FP8_BLOCK),
            ("o_groups * o_lora_rank", config.o_groups * config.o_lora_rank, FP8_BLOCK),
            ("shared moe_intermediate_size", config.moe_size * config.num_shared_experts, FP8_BLOCK),
        ]
    for experts in dict.fromkeys((config.quant.experts, config.quant.draft_experts)):
        if experts in _EXPERT_BLOCKS:
            sizes.append((f"moe_intermediate_size ({experts.value})", config.moe_size, _EXPERT_BLOCKS[experts]))
    return [
        f"{name} is {size}, {size // tp} per rank at tp {tp}, but a rank must hold whole blocks of {block}."
        f" {_fit(size // block if size % block == 0 else 1, tp, 'tp')}"
        for name, size, block in sizes
        if size % tp == 0 and (size // tp) % block
    ]


_EXPERT_BLOCKS = {ExpertFormat.FP8: FP8_BLOCK, ExpertFormat.MXFP4: 32, ExpertFormat.NVFP4: 16}


def _fit(size: int, wanted: int, option: str) -> str:
    """Name the largest smaller value that divides `size`."""
    best = next(value for value in range(min(size, wanted), 0, -1) if size % value == 0)
    return f"Set --{option} {best}."
