"""Read the header of one safetensors file: names, types, shapes and byte ranges, and nothing of the data.

Source: the safetensors format: 8 bytes little-endian header length, a JSON object, then the tensors without gaps.
"""

from __future__ import annotations

import json
import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from dsv4_backend.checkpoint.findings import printable

MAX_HEADER_BYTES = 100_000_000
_PREFIX_BYTES = 8
_MAX_SIZE = 1 << 63

DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip


class HeaderError(ValueError):
    """One file cannot be used; the text says why. Turned into a line of a CheckpointError by the index."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor stands. Units: start and end are byte offsets from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    end: int

    @property
    def num_bytes(self) -> int:
        """Stored size."""
        return self.end - self.start

    @property
    def num_elements(self) -> int:
        """Stored elements; a packed byte counts as one."""
        return math.prod(self.shape)


def read_header(file: Path) -> list[TensorEntry]:
    """Return the tensors of one file in the order of their bytes.

    Raises: HeaderError if the file is missing, cut short or damaged.
    """
    try:
        size = _file_size(file)
        with file.open("rb") as stream:
            length = int.from_bytes(_exactly(stream.read(_PREFIX_BYTES), _PREFIX_BYTES), "little")
            room = size - _PREFIX_BYTES
            if length > min(room, MAX_HEADER_BYTES):
                limit = "the file ends earlier" if length > room else f"at most {MAX_HEADER_BYTES:,} are read"
                raise HeaderError(f"its header claims {length:,} bytes but {limit}")
            text = _exactly(stream.read(length), length)
    except FileNotFoundError as error:
        raise HeaderError("the file does not exist") from error
    except OSError as error:
        raise HeaderError(f"it cannot be read: {error.strerror}") from error
    entries = _entries(file, _parse(text), _PREFIX_BYTES + length)
    _check_layout(entries, _PREFIX_BYTES + length, size)
    return entries


def _file_size(file: Path) -> int:
    status = os.stat(file)
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise HeaderError("it is not a regular file")
    return status.st_size


def _exactly(data: bytes, size: int) -> bytes:
    if len(data) < size:
        raise HeaderError(f"it is cut short: {size:,} header bytes announced, {len(data):,} present")
    return data


def parse_json_object(text: bytes) -> dict[str, object]:
    """Parse a JSON object and refuse one that gives a key twice.

    Raises: HeaderError, whatever the bytes are.
    """
    try:
        values = json.loads(text, object_pairs_hook=_unique)
    except RecursionError as error:
        raise HeaderError("its JSON is nested too deeply") from error
    except ValueError as error:  # JSON, UTF-8 and over-long integers
        raise HeaderError(f"its JSON is damaged: {printable(str(error))}") from error
    if not isinstance(values, dict):
        raise HeaderError(f"it holds a JSON {type(values).__name__} but must hold an object")
    return values


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise HeaderError(f"its JSON gives {printable(name)} twice")
            seen.add(name)
    return values


def _parse(text: bytes) -> dict[str, object]:
    values = parse_json_object(text)
    values.pop("__metadata__", None)
    return values


def _entries(file: Path, values: dict[str, object], base: int) -> list[TensorEntry]:
    entries = [_entry(file, name, value, base) for name, value in values.items()]
    return sorted(entries, key=lambda entry: (entry.start, entry.end))


def _entry(file: Path, name: str, value: object, base: int) -> TensorEntry:
    shown = printable(name)
    if not isinstance(value, dict):
        raise HeaderError(f"its entry {shown} is not an object")
    dtype, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise HeaderError(f"tensor {shown} has type {printable(repr(dtype))}; known are {', '.join(DTYPE_BYTES)}")
    if not _is_sizes(shape) or not _is_sizes(offsets) or len(offsets) != 2:
        raise HeaderError(f"tensor {shown} needs a shape and two data_offsets, all integers of at least 0")
    start, end = offsets
    wanted = math.prod(shape) * DTYPE_BYTES[dtype]
    if end - start != wanted:
        raise HeaderError(f"tensor {shown} of shape {_short(shape)} needs {_short(wanted)} bytes, has {end - start}")
    return TensorEntry(name, dtype, tuple(shape), file, base + start, base + end)


def _is_sizes(value: object) -> TypeGuard[list[int]]:
    return (
        isinstance(value, list)
        and len(value) <= 16
        and all(type(item) is int and 0 <= item < _MAX_SIZE for item in value)
    )


def _short(value: object) -> str:
    return printable(str(value))


def _check_layout(entries: list[TensorEntry], base: int, size: int) -> None:
    """The tensors must fill the rest of the file exactly: no gap, no overlap, nothing missing, nothing left over."""
    position = base
    for entry in entries:
        if entry.start != position:
            what = "overlaps its neighbour" if entry.start < position else "leaves a gap before it"
            raise HeaderError(
                f"tensor {printable(entry.name)} {what} (starts at byte {entry.start:,}, not {position:,})"
            )
        position = entry.end
    if position > size:
        raise HeaderError(f"it is cut short: {size:,} bytes present, {position:,} needed")
    if position < size:
        raise HeaderError(f"it has {size - position:,} bytes after its last tensor")
