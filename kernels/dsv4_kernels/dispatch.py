"""Choose one implementation of every operator, once, at process start.

from dsv4_kernels.dispatch import bind
ops = bind("cpu")
y = ops.linear(x, weight)
"""

from __future__ import annotations

from typing import Literal

from dsv4_kernels.ops import OpTable
from dsv4_kernels.reference import attention, compress, hyper, index, linear, moe, norm, rope, round_trip, route

Target = Literal["cpu", "reference"]


def bind(target: Target = "cpu") -> OpTable:
    """The table for a target."""
    return OpTable(
        linear=linear.linear,
        grouped_linear=linear.grouped_linear,
        rms_norm=norm.rms_norm,
        rope_rotate=rope.rope_rotate,
        fp8_round_trip=round_trip.fp8_round_trip,
        fp4_round_trip=round_trip.fp4_round_trip,
        hadamard=round_trip.hadamard,
        hyper_maps=hyper.hyper_maps,
        hyper_collapse=hyper.hyper_collapse,
        hyper_mix=hyper.hyper_mix,
        hyper_head=hyper.hyper_head,
        route=route.route,
        moe=moe.moe,
        gated_mlp=moe.gated_mlp,
        compress_pool=compress.compress_pool,
        index_select=index.index_select,
        sparse_attention=attention.sparse_attention,
    )
