"""Make Triton's interpreter trustworthy for bf16, FP8 and FP4, on Triton 3.6 to 3.9.

Without this it multiplies bf16 bit patterns, truncates where hardware rounds to nearest even, and reads the e4m3 scales
of NVFP4 as powers of two; 3.6 and 3.7 refuse `dot_scaled`. `repair()` gives it the values that hardware computes:

1. casts between floats round to nearest even, and saturate for FP8
2. `tl.dot` decodes bf16 and FP8 operands, and sums in float32
3. `tl.dot_scaled` decodes e2m1 and both kinds of scales
4. arithmetic on bf16 and FP8 raises: kernels compute in float32
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter

FLOATS = {
    tl.float64: torch.float64,
    tl.float32: torch.float32,
    tl.float16: torch.float16,
    tl.bfloat16: torch.bfloat16,
    tl.float8e4nv: torch.float8_e4m3fn,
    tl.float8e5: torch.float8_e5m2,
}
LIMITS = {tl.float8e4nv: 448.0, tl.float8e5: 57344.0}
NARROW = (tl.bfloat16, tl.float8e4nv, tl.float8e5)
BITS = {1: (np.uint8, torch.uint8), 2: (np.int16, torch.int16), 4: (np.int32, torch.int32), 8: (np.int64, torch.int64)}
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
Builder = interpreter.InterpreterBuilder
Handle = interpreter.TensorHandle


def repair() -> None:
    """Replace the interpreter's methods; calling it again changes nothing more."""
    if getattr(interpreter, "dsv4_repaired", False):
        return
    interpreter.dsv4_repaired = True
    _repair_casts()
    Builder.create_dot = _dot
    Builder.create_dot_scaled = _dot_scaled
    for name in ("create_fadd", "create_fsub", "create_fmul", "create_fdiv", "create_maximumf", "create_minimumf"):
        setattr(Builder, name, _refusing(name, getattr(Builder, name)))
    _accept_plain_formats()


def _repair_casts() -> None:
    original = interpreter._convert_float
    nearest = interpreter._ir.ROUNDING_MODE.RTNE

    def convert(x: np.ndarray, source: Any, target: Any, mode: Any) -> np.ndarray:
        if source not in FLOATS or target not in FLOATS or mode not in (None, nearest):
            return original(x, source, target, mode)
        values = _as_torch(x, FLOATS[source])
        if target in LIMITS and source != target:
            wide = values.float()
            values = torch.where(wide.isfinite(), wide.clamp(-LIMITS[target], LIMITS[target]), wide)
        bits = target.primitive_bitwidth
        out = values.to(FLOATS[target]).contiguous().view(BITS[bits // 8][1])
        return out.numpy().view(f"uint{bits}").reshape(x.shape)

    interpreter._convert_float = convert


def _as_torch(x: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    x = np.ascontiguousarray(x)
    as_numpy, as_torch = BITS[x.dtype.itemsize]
    return torch.from_numpy(x.view(as_numpy).copy()).view(as_torch).view(dtype)


def _values(handle: Any) -> np.ndarray:
    """What an operand is worth, in float32."""
    kind = handle.dtype.scalar
    if kind in NARROW:
        return _as_torch(handle.data, FLOATS[kind]).float().numpy().reshape(handle.data.shape)
    return handle.data.astype(np.float32) if handle.data.dtype == np.float16 else handle.data


def _dot(self: Any, a: Any, b: Any, acc: Any, precision: Any, max_imprecise: Any) -> Any:
    product = np.matmul(_values(a), _values(b), dtype=np.float32).astype(acc.data.dtype)
    return Handle(product + acc.data, acc.dtype.scalar)


def _operand(codes: Any, scales: Any, kind: Any, is_packed_along_k: bool, is_right: bool) -> np.ndarray:
    if kind == interpreter._ir.ScaleDotElemTypeTY.E2M1:
        axis = (-2 if is_packed_along_k else -1) if is_right else (-1 if is_packed_along_k else -2)
        packed = np.moveaxis(codes.data.view(np.uint8), axis, -1)
        values = np.stack([E2M1[packed & 15], E2M1[packed >> 4]], -1).reshape(*packed.shape[:-1], -1)
        values = np.moveaxis(values, -1, axis)
    else:
        values = _values(codes)
    if scales is None:
        return values
    if scales.dtype.scalar == tl.float8e4nv:
        factors = _values(scales)
    else:
        factors = np.ldexp(np.float32(1), scales.data.view(np.uint8).astype(np.int32) - 127)
    factors = np.repeat(factors, values.shape[-2 if is_right else -1] // factors.shape[-1], -1)
    return values * (np.swapaxes(factors, -1, -2) if is_right else factors)


def _dot_scaled(self: Any, *arguments: Any) -> Any:
    left, left_scales, left_kind, right, right_scales, right_kind, _, left_k, right_k, acc = arguments
    product = np.matmul(
        _operand(left, left_scales, left_kind, left_k, False), _operand(right, right_scales, right_kind, right_k, True)
    )
    return Handle((product + acc.data).astype(acc.data.dtype), acc.dtype.scalar)


def _refusing(name: str, original: Any) -> Any:
    def method(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        if a.dtype.scalar in NARROW:
            raise TypeError(
                f"{name} on {a.dtype}: the interpreter would compute on bit patterns. Cast to float32 first."
            )
        return original(self, a, b, *rest)

    return method


def _accept_plain_formats() -> None:
    """Triton 3.6 and 3.7 ask a format for its value, which a plain string has not."""
    original = TritonSemantic.dot_scaled

    def dot_scaled(
        self: Any, left: Any, ls: Any, left_kind: Any, right: Any, rs: Any, right_kind: Any, *rest: Any
    ) -> Any:
        try:
            return original(self, left, ls, left_kind, right, rs, right_kind, *rest)
        except AttributeError as error:
            if "has no attribute 'value'" not in str(error):
                raise
            kinds = tl.constexpr(left_kind), tl.constexpr(right_kind)
            return original(self, left, ls, kinds[0], right, rs, kinds[1], *rest)

    TritonSemantic.dot_scaled = dot_scaled
