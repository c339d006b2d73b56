"""Compile pairs offline, no GPU and no CUDA toolkit needed, and look at the code: native opcodes, limits, spills.

`report.py` is the command that does it for whole models.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dsv4_kernels.errors import BindError
from dsv4_kernels.triton_lang.arch import Arch
from dsv4_kernels.triton_lang.native import due
from dsv4_kernels.triton_lang.pairs import Pair

MATRIX = re.compile(
    r"(wgmma\.mma_async)\S*?\.f32\.(\w+)\.\w+|(tcgen05\.mma)\.\S*?(kind::\w+(?:\.block_scale)?)"
    r"|(mma\.sync)\S*?(kind::\w+\.block_scale|\.(?:bf16|tf32|e4m3|f16)\.)"
)
SPILL = re.compile(r"\b(?:STL|LDL)\b")
MIN_INSTRUCTIONS = 12
MAX_TENSOR_COLUMNS = 512  # more gives an empty kernel without an error


@dataclass(frozen=True, slots=True, kw_only=True)
class Lowered:
    """What a pair became. problems is empty where everything is as it should be."""

    pair: Pair
    arch: Arch
    opcodes: tuple[str, ...]
    shared_bytes: int
    tensor_columns: int
    num_instructions: int
    num_spills: int
    problems: tuple[str, ...]


def lower(pair: Pair, arch: Arch) -> Lowered:
    """Compile one pair and inspect it. Raises: BindError in a process that interprets kernels."""
    if not hasattr(pair.kernel, "arg_names") or type(pair.kernel).__name__ == "InterpretedFunction":
        raise BindError("kernels are interpreted here (TRITON_INTERPRET): compile in a process of its own.")
    names = list(pair.kernel.arg_names)
    constants = {(names.index(name),): value for name, value in pair.constants}
    source = ASTSource(
        pair.kernel,
        dict(zip(names, pair.types, strict=True)),
        constants,
        {(place,): [["tt.divisibility", 16]] for place in pair.aligned},
    )
    options = {"num_warps": pair.num_warps, "num_stages": pair.num_stages}
    try:
        compiled = triton.compile(source, target=GPUTarget("cuda", arch.capability, 32), options=options)
    except Exception as error:  # the compiler raises what it likes; the pair is reported with it
        return _failed(pair, arch, f"does not compile: {type(error).__name__}: {str(error).strip()[-300:]}")
    return _inspect(pair, arch, compiled)


def matrix_opcodes(ptx: str) -> tuple[str, ...]:
    """The kinds of matrix products in PTX, once each."""
    found = set()
    for match in MATRIX.finditer(ptx):
        first, second = [each for each in match.groups() if each]
        found.add(f"{first} {second.strip('.')}")
    return tuple(sorted(found))


def _inspect(pair: Pair, arch: Arch, compiled: Any) -> Lowered:
    lines = [line for line in _sass(compiled.asm["cubin"]).splitlines() if re.search(r"/\*[0-9a-f]{4,}\*/", line)]
    opcodes = matrix_opcodes(compiled.asm["ptx"])
    shared, columns = compiled.metadata.shared, getattr(compiled.metadata, "tmem_size", 0) or 0
    spills = sum(1 for line in lines if SPILL.search(line))
    problems = []
    if shared > arch.shared_bytes:
        problems.append(f"takes {shared} bytes of shared memory of {arch.shared_bytes}: it cannot be launched")
    if columns > MAX_TENSOR_COLUMNS:
        problems.append(f"takes {columns} columns of tensor memory of {MAX_TENSOR_COLUMNS}: it would be empty")
    if len(lines) < MIN_INSTRUCTIONS:
        problems.append(f"has {len(lines)} instructions only")
    if spills:
        problems.append(f"{spills} instructions move registers to memory and back")
    want = due(arch, pair.format)
    if opcodes != ((want,) if want else ()):
        problems.append(f"multiplies with {', '.join(opcodes) or 'no tensor core'} but {want or 'none'} is due")
    return Lowered(
        pair=pair,
        arch=arch,
        opcodes=opcodes,
        shared_bytes=shared,
        tensor_columns=columns,
        num_instructions=len(lines),
        num_spills=spills,
        problems=tuple(problems),
    )


def _failed(pair: Pair, arch: Arch, problem: str) -> Lowered:
    return Lowered(
        pair=pair,
        arch=arch,
        opcodes=(),
        shared_bytes=0,
        tensor_columns=0,
        num_instructions=0,
        num_spills=0,
        problems=(problem,),
    )


def _sass(cubin: bytes) -> str:
    disassembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        told = subprocess.run([disassembler, "-c", file.name], capture_output=True, text=True, check=False)
    return told.stdout
