"""What V4 is compared with: DeepSeek-V3.2, and dense grouped-query attention of equal depth.

Source: V3.2's config.json as in shared facts `deepseek_v4.md` section 5; its cache is FlashMLA's 656 bytes per token
        and layer (512 e4m3, 4 fp32 scales, 64 bf16) and FP8 index keys of 132.
"""

from __future__ import annotations

from dataclasses import replace

from dsv4_backend.config import ModelConfig
from dsv4_backend.plan.cost import CacheTerm, ModelCost, Operation, WeightGroup
from dsv4_backend.plan.hardware import Precision

_LAYERS, _DENSE_LAYERS, _HIDDEN, _HEADS, _VOCAB = 61, 3, 7168, 128, 129_280
_Q_RANK, _KV_RANK, _NOPE, _ROPE, _VALUE = 1536, 512, 128, 64, 128
_INDEX_HEADS, _INDEX_DIM, _INDEX_TOPK = 64, 128, 2048
_EXPERTS, _ACTIVE, _SHARED, _MOE, _DENSE = 256, 8, 1, 2048, 18_432
GQA_HEADS, GQA_DIM = 8, 128


def deepseek_v32() -> ModelCost:
    """V3.2 in its released FP8 (scales not counted: 0.02 %), with its own cache format."""
    mla = CacheTerm(
        name="mla",
        operation=Operation.CORE,
        num_layers=_LAYERS,
        ratio=1,
        entry_bytes=_KV_RANK + 4 * 4 + 2 * _ROPE,
        entry_flops=2 * _HEADS * (2 * _KV_RANK + _ROPE),
        precision=Precision.BF16,
        max_read=_INDEX_TOPK,
    )
    index = replace(
        mla,
        name="index",
        operation=Operation.INDEX,
        entry_bytes=_INDEX_DIM + 4,
        entry_flops=2 * _INDEX_HEADS * _INDEX_DIM,
        precision=Precision.FP8,
        max_read=0,
        is_divided=False,
    )
    return ModelCost(
        name="DeepSeek-V3.2",
        weights=_v32_weights(),
        caches=(mla, index),
        state_bytes=0,
        num_experts=_EXPERTS,
        num_active_experts=_ACTIVE,
    )


def dense_gqa(model: ModelCost, config: ModelConfig) -> ModelCost:
    """Dense BF16 attention of equal depth: 8 key/value heads of 128, the model's number of query heads and weights."""
    term = CacheTerm(
        name="gqa",
        operation=Operation.CORE,
        num_layers=config.num_layers,
        ratio=1,
        entry_bytes=2 * GQA_HEADS * GQA_DIM * 2,
        entry_flops=4 * config.num_heads * GQA_DIM,
        precision=Precision.BF16,
        cache_shares=GQA_HEADS,
    )
    return replace(model, name=f"GQA {GQA_HEADS}x{GQA_DIM}", caches=(term,), state_bytes=0)


def _v32_weights() -> tuple[WeightGroup, ...]:
    heads = _LAYERS * _HEADS * (_Q_RANK * (_NOPE + _ROPE) + _KV_RANK * (_NOPE + _VALUE) + _VALUE * _HIDDEN)
    down = _LAYERS * _HIDDEN * (_Q_RANK + _KV_RANK + _ROPE)
    indexer = _LAYERS * (_Q_RANK * _INDEX_HEADS * _INDEX_DIM + _HIDDEN * (_INDEX_DIM + _INDEX_HEADS))
    sparse = _LAYERS - _DENSE_LAYERS
    inner = 3 * _HIDDEN * (_DENSE_LAYERS * _DENSE + sparse * _SHARED * _MOE)
    router, head = sparse * _HIDDEN * _EXPERTS, _HIDDEN * _VOCAB
    return (
        _fp8(heads + inner),
        replace(_fp8(down + indexer), is_divided=False),
        replace(_fp8(sparse * _EXPERTS * 3 * _HIDDEN * _MOE), is_expert=True),
        replace(_bf16(router), is_divided=False),
        replace(_bf16(head), is_head=True),
        replace(_bf16(head), is_matmul=False),  # the embedding
    )


def _fp8(count: int) -> WeightGroup:
    return WeightGroup(num_bytes=count, num_parameters=count, precision=Precision.FP8)


def _bf16(count: int) -> WeightGroup:
    return WeightGroup(num_bytes=2 * count, num_parameters=count, precision=Precision.BF16)
