"""Measure the kernels on the GPU that is here: `python build/bench/gpu_kernels.py [--model flash] [--out FILE.json]`.

Memory-bound operators are set against the copy bandwidth, matrix products against the matrix rate of torch's own
products, both measured in the same run. Medians of `triton.testing.do_bench`. Without a GPU it says so and measures
nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
import triton
from dsv4_kernels.device_weights import dense_weight, quantised_weight
from dsv4_kernels.tensors import WeightFormat
from dsv4_kernels.triton_lang import linear
from dsv4_kernels.triton_lang.arch import arch_of
from dsv4_kernels.triton_lang.launch import Device, execute
from dsv4_kernels.triton_lang.pairs import CONTEXT, empty, fp8_shapes, operators, stored
from dsv4_kernels.triton_lang.profiles import (
    CSA_RATIO,
    ENTRY,
    HEAD_DIM,
    INDEX_KEYS,
    PROFILES,
    STREAMS,
    TOP_EXPERTS,
    WINDOW,
    Profile,
)  # fmt: skip

DECODE_TOKENS = (1, 8, 64)
GEMM_TOKENS = 4096
RIVALS = ("flash_mla", "deep_gemm", "humming", "flashinfer")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measurement. share: of the copy bandwidth, or of the matrix rate."""

    name: str
    tokens: int
    microseconds: float
    gigabytes_per_s: float = 0.0
    teraflops: float = 0.0
    share: float


def main() -> int:
    """Measure, print a table and write JSON; return 2 without a GPU."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", choices=sorted(PROFILES), default="flash")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.stderr.write("torch sees no GPU: nothing was measured. Run this where there is one.\n")
        return 2
    profile = PROFILES[args.model]
    device = Device(arch_of(torch.cuda.get_device_capability()), execute)
    copy, bf16, fp8 = copy_rate(), matrix_rate(torch.bfloat16), matrix_rate(torch.float8_e4m3fn)
    with torch.device("cuda"):
        figures = [*memory_bound(device, profile, copy), *products(device, profile, bf16, fp8)]
    record = {
        "gpu": torch.cuda.get_device_name(),
        "arch": device.arch.name,
        "model": profile.name,
        "commit": commit(),
        "versions": {"torch": torch.__version__, "triton": triton.__version__},
        "copy_gigabytes_per_s": copy,
        "bf16_teraflops": bf16,
        "fp8_teraflops": fp8,
        "others_installed": [name for name in RIVALS if is_installed(name)],
        "figures": [asdict(each) for each in figures],
    }
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write("\n".join(lines(record)) + "\n")
    return 0


def lines(record: dict[str, object]) -> list[str]:
    """The figures as text."""
    head = [f"{name}: {value}" for name, value in record.items() if name != "figures"]
    rows = [f"{'operator':<22}{'tokens':>7}{'us':>10}{'GB/s':>9}{'TFLOP/s':>9}{'share':>7}"]
    for each in record["figures"]:  # type: ignore[attr-defined]
        rates = f"{each['gigabytes_per_s']:>9.0f}{each['teraflops']:>9.1f}{each['share']:>7.0%}"
        rows.append(f"{each['name']:<22}{each['tokens']:>7}{each['microseconds']:>10.1f}{rates}")
    return head + rows


def seconds(call: Callable[[], object]) -> float:
    """Median seconds of a call."""
    return float(triton.testing.do_bench(call, return_mode="median")) / 1e3


def copy_rate() -> float:
    """GB/s of a large copy, read and written bytes together."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / seconds(lambda: target.copy_(source)) / 1e9


def matrix_rate(dtype: torch.dtype, size: int = 8192) -> float:
    """TFLOP/s of torch's own product of two square matrices."""
    left = torch.randn(size, size, device="cuda").to(dtype)
    right = torch.randn(size, size, device="cuda").to(dtype)
    if dtype is torch.bfloat16:
        taken = seconds(lambda: left @ right.T)
    else:
        one = torch.ones((), device="cuda")
        taken = seconds(lambda: torch._scaled_mm(left, right.T, scale_a=one, scale_b=one, out_dtype=torch.bfloat16))
    return 2 * size**3 / taken / 1e12


def memory_bound(device: Device, profile: Profile, copy: float) -> Iterator[Figure]:
    """Decode operators; those that occur several times in a step are measured once each."""
    for tokens in DECODE_TOKENS:
        moved = iter_bytes(profile, tokens)
        for op, call in operators(profile, tokens):
            num_bytes = moved.get(op, [])
            if num_bytes:
                taken = seconds(partial(call, device))
                rate = num_bytes.pop(0) / taken / 1e9
                yield Figure(name=op, tokens=tokens, microseconds=taken * 1e6, gigabytes_per_s=rate, share=rate / copy)


def iter_bytes(p: Profile, tokens: int) -> dict[str, list[int]]:
    """Bytes that must be read and written, for each call that `pairs.operators` makes of an operator, in its order."""
    row, index_rows = 2 * tokens * p.hidden, CONTEXT // CSA_RATIO
    streams, queries = STREAMS * row, 2 * tokens * p.heads * HEAD_DIM
    experts = min(p.experts, TOP_EXPERTS * tokens)
    weights = 3 * p.inter * p.hidden
    return {
        "linear fp8": [rows * columns + 2 * tokens * (rows + columns) for rows, columns in fp8_shapes(p)],
        "rms_norm": [2 * row, 2 * queries],
        "hyper_maps": [streams + 4 * (2 + STREAMS) * STREAMS * STREAMS * p.hidden],
        "hyper_collapse": [streams + row],
        "hyper_mix": [2 * streams + row],
        "pack_rows": [tokens * (2 * spec.width + spec.row_bytes) for spec in (ENTRY, *INDEX_KEYS)],
        "sparse_attention": [2 * queries + tokens * rows * ENTRY.row_bytes for rows in (WINDOW, WINDOW + p.index_topk)],
        **{f"index_select {spec.format.value}": [index_rows * spec.row_bytes] for spec in INDEX_KEYS},
        "moe mxfp4": [experts * weights * 17 // 32 + 2 * row],
        "moe nvfp4 w4a16": [experts * weights * 9 // 16 + 2 * row],
        "moe nvfp4 w4a4": [experts * weights * 9 // 16 + 2 * row],
        "gated_mlp fp8": [weights + 2 * row],
    }


def products(device: Device, profile: Profile, bf16: float, fp8: float) -> Iterator[Figure]:
    """Prefill products."""
    for rows, columns in fp8_shapes(profile):
        x = torch.randn(GEMM_TOKENS, columns, dtype=torch.bfloat16)
        flops = 2 * GEMM_TOKENS * rows * columns
        kinds = (
            ("fp8", quantised_weight([stored(WeightFormat.FP8, rows, columns)]), fp8),
            ("bf16", dense_weight(empty(rows, columns)), bf16),
        )
        for name, weight, best in kinds:
            taken = seconds(partial(linear.linear, device, x, weight))
            rate = flops / taken / 1e12
            yield Figure(
                name=f"gemm {name} {rows}x{columns}",
                tokens=GEMM_TOKENS,
                microseconds=taken * 1e6,
                teraflops=rate,
                share=rate / best,
            )


def is_installed(name: str) -> bool:
    """Whether a library that is worth comparing could be imported."""
    command = [sys.executable, "-c", f"import importlib.util as u; raise SystemExit(u.find_spec({name!r}) is None)"]
    return subprocess.run(command, check=False).returncode == 0


def commit() -> str:
    """The commit that is measured."""
    told = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return told.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
