"""Describe a checkpoint without loading it: what is wrong, how large it is, and what each rank would hold."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dsv4_backend.checkpoint.compare import compare, count_skipped
from dsv4_backend.checkpoint.findings import Findings
from dsv4_backend.checkpoint.header import DTYPE_BYTES
from dsv4_backend.checkpoint.index import CheckpointIndex, read_index
from dsv4_backend.checkpoint.layout import Layout, read_layout
from dsv4_backend.checkpoint.names import TensorSpec, Weight, expected_tensors, model_weights, stored_tensors
from dsv4_backend.config import ModelConfig, load_model_config
from dsv4_backend.parallel import Mesh, expert_owner, mesh_problems, shard_axis


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What `dsv4 check` found.

    Units: parameters in elements, bytes as stored. num_active_parameters are those that one token is multiplied with:
           the output head included, the embedding not.
    Rule:  bytes and rank_bytes are computed from the config; has_headers says that files agreeing with it were seen.
           rank_bytes counts what is loaded, draft and other skipped tensors left out; empty if the mesh does not fit.
    """

    path: str
    problems: tuple[str, ...]
    has_headers: bool
    num_files: int
    num_tensors: int
    num_parameters: int
    num_draft_parameters: int
    num_active_parameters: int
    num_bytes: int
    bytes_by_format: Mapping[str, int]
    draft: str
    skipped: Mapping[str, int]
    mesh: Mesh
    rank_bytes: tuple[int, ...]


def inspect_checkpoint(path: Path, mesh: Mesh | None = None) -> Report:
    """Validate the checkpoint in folder `path` (files, or only config and index) and describe it.

    Raises: CheckpointError or ConfigError only if there is too little to describe; all else is in `problems`.
    """
    mesh = mesh or Mesh()
    config = load_model_config(path)
    findings = Findings()
    layout = read_layout(path, config, findings)
    index = read_index(path, findings, needs_shards=False)
    specs = compare(index, expected_tensors(config, layout), findings)
    sizes = {name: _num_bytes(name, spec, index) for name, spec in specs.items()}
    weights = [weight for weight in model_weights(config, layout) if weight.name in specs]
    backbone = [weight for weight in weights if not weight.is_draft]
    uneven = mesh_problems(config, mesh)
    return Report(
        path=str(path),
        problems=(*findings.lines(), *uneven),
        has_headers=index.has_headers,
        num_files=index.num_files,
        num_tensors=len(index.names),
        num_parameters=sum(weight.num_parameters for weight in backbone),
        num_draft_parameters=sum(weight.num_parameters for weight in weights if weight.is_draft),
        num_active_parameters=active_parameters(config, backbone),
        num_bytes=sum(sizes.values()),
        bytes_by_format=_bytes_by_format(weights, layout, sizes),
        draft=config.draft.kind.value,
        skipped=count_skipped(specs),
        mesh=mesh,
        rank_bytes=() if uneven else _rank_bytes(config, specs, sizes, mesh),
    )


def active_parameters(config: ModelConfig, weights: Iterable[Weight]) -> int:
    """Count what one token is multiplied with: every matrix once, and of the routed experts the chosen few."""
    always = routed = 0
    for weight in weights:
        if weight.is_matmul and weight.expert is None:
            always += weight.num_parameters
        elif weight.is_matmul:
            routed += weight.num_parameters
    return always + routed * config.num_active_experts // config.num_experts


def _num_bytes(name: str, spec: TensorSpec, index: CheckpointIndex) -> int:
    """Stored size: from the header, or from the config where there is none."""
    entry = index.tensors.get(name)
    return math.prod(spec.shape) * DTYPE_BYTES[spec.dtypes[0]] if entry is None else entry.num_bytes


def _bytes_by_format(weights: Iterable[Weight], layout: Layout, sizes: Mapping[str, int]) -> dict[str, int]:
    """Bytes by the format of the weight, scales included."""
    totals: dict[str, int] = {}
    for weight in weights:
        size = sum(sizes[name] for name, _ in stored_tensors(weight, layout))
        totals[weight.storage.value] = totals.get(weight.storage.value, 0) + size
    return totals


def _rank_bytes(
    config: ModelConfig, specs: Mapping[str, TensorSpec], sizes: Mapping[str, int], mesh: Mesh
) -> tuple[int, ...]:
    """Bytes of every rank. The mesh must divide the model evenly."""
    shared, by_group = 0, [0] * mesh.ep
    for name, spec in specs.items():
        if spec.skip:
            continue
        size = sizes[name] // (1 if shard_axis(spec.role) is None else mesh.tp)
        if spec.expert is None:
            shared += size
        else:
            by_group[expert_owner(spec.expert, config.num_experts, mesh)] += size
    return tuple(shared + by_group[rank // mesh.tp] for rank in range(mesh.num_ranks))
