"""DeepSeek-V4 as a ModelCost: weights from the checkpoint's own names, caches from the roles of the layers."""

from __future__ import annotations

import math
from dataclasses import replace

from dsv4_backend.checkpoint.header import DTYPE_BYTES
from dsv4_backend.checkpoint.layout import Layout, Storage, layout_of
from dsv4_backend.checkpoint.names import Weight, model_weights, stored_tensors
from dsv4_backend.config import CacheFormat, LayerKind, ModelConfig
from dsv4_backend.parallel import shard_axis
from dsv4_backend.plan.cost import CacheTerm, ModelCost, Operation, WeightGroup
from dsv4_backend.plan.formats import HcaState, entry_bytes, state_bytes
from dsv4_backend.plan.hardware import Precision

# MXFP4 experts meet FP8 activations, so they run at the FP8 rate; NVFP4 ones have FP4 activations.
_PRECISIONS = {Storage.FP8: Precision.FP8, Storage.MXFP4: Precision.FP8, Storage.NVFP4: Precision.FP4}


def model_cost(
    name: str,
    config: ModelConfig,
    cache_format: CacheFormat,
    hca_state: HcaState,
    layout: Layout | None = None,
) -> ModelCost:
    """Describe a DeepSeek-V4 config; layout says how its checkpoint stores it (default: as the config announces)."""
    return ModelCost(
        name=name,
        weights=weight_groups(config, layout or layout_of(config)),
        caches=_caches(config, cache_format),
        state_bytes=state_bytes(config, hca_state),
        num_experts=config.num_experts,
        num_active_experts=config.num_active_experts,
    )


def weight_groups(config: ModelConfig, layout: Layout) -> tuple[WeightGroup, ...]:
    """Add up what is loaded: draft stages and skipped tensors are left out."""
    totals: dict[WeightGroup, tuple[int, int]] = {}
    for weight in model_weights(config, layout):
        if weight.is_draft:
            continue
        key = _group_of(weight)
        num_bytes, count = totals.get(key, (0, 0))
        totals[key] = (num_bytes + _loaded_bytes(weight, layout), count + weight.num_parameters)
    return tuple(replace(key, num_bytes=size, num_parameters=count) for key, (size, count) in totals.items())


def _group_of(weight: Weight) -> WeightGroup:
    """The group that a weight belongs to, still empty."""
    return WeightGroup(
        num_bytes=0,
        num_parameters=0,
        precision=_PRECISIONS.get(weight.storage, Precision.BF16),
        is_matmul=weight.is_matmul,
        is_divided=shard_axis(weight.role) is not None,
        is_expert=weight.expert is not None,
        is_head=weight.name == "head.weight",
    )


def _loaded_bytes(weight: Weight, layout: Layout) -> int:
    return sum(
        math.prod(spec.shape) * DTYPE_BYTES[spec.dtypes[0]]
        for _, spec in stored_tensors(weight, layout)
        if not spec.skip
    )


def _caches(config: ModelConfig, cache_format: CacheFormat) -> tuple[CacheTerm, ...]:
    """Window of every layer; entries and index keys of CSA; entries of HCA. Kinds without layers are absent."""
    sizes = entry_bytes(config, cache_format)
    csa, hca = config.layer_ids(LayerKind.CSA), config.layer_ids(LayerKind.HCA)
    window = CacheTerm(
        name="window",
        operation=Operation.CORE,
        num_layers=config.num_layers,
        ratio=1,
        entry_bytes=sizes.entry,
        entry_flops=4 * config.num_heads * config.head_dim,  # score and weighted sum
        precision=Precision.BF16,
        max_read=config.window,
        max_stored=config.window,
    )
    terms = [window]
    if csa:
        entries = replace(window, name="csa", num_layers=len(csa), ratio=config.layers[csa[0]].ratio, max_stored=0)
        keys = replace(
            entries,
            name="index",
            operation=Operation.INDEX,
            entry_bytes=sizes.index_key,
            entry_flops=2 * config.index_heads * config.index_head_dim,
            precision=sizes.index_precision,
            max_read=0,
            is_divided=False,
        )
        terms += [replace(entries, max_read=config.index_topk), keys]
    if hca:
        ratio = config.layers[hca[0]].ratio
        terms.append(replace(window, name="hca", num_layers=len(hca), ratio=ratio, max_read=0, max_stored=0))
    return tuple(terms)
