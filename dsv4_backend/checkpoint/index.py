"""Find the files of a checkpoint and read every header, before any weight is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dsv4_backend.checkpoint.findings import Findings, printable
from dsv4_backend.checkpoint.header import HeaderError, TensorEntry, parse_json_object, read_header
from dsv4_backend.errors import CheckpointError

INDEX_NAME = "model.safetensors.index.json"
_MAX_INDEX_BYTES = 256_000_000
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\.safetensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointIndex:
    """Every tensor of a checkpoint by name.

    Rule: has_headers is False when only the index file is there; then `names` are known, `tensors` is empty.
    """

    path: Path
    names: frozenset[str]
    tensors: Mapping[str, TensorEntry]
    num_files: int
    has_headers: bool

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors, 0 without headers."""
        return sum(entry.num_bytes for entry in self.tensors.values())


def read_index(path: Path, findings: Findings, *, needs_shards: bool = True) -> CheckpointIndex:
    """Read `model.safetensors.index.json` and the header of every shard, or of a single safetensors file.

    Rule:   what is wrong with a shard goes into `findings`, and the rest is read. Without needs_shards, a folder that
            holds the index but no shard at all is accepted.
    Raises: CheckpointError if there is nothing to read, or the index itself cannot be used.
    """
    if not path.is_dir():
        raise CheckpointError(str(path), ["it is not a folder. Name the folder that holds config.json."])
    present = sorted(file.name for file in path.glob("*.safetensors"))
    weight_map = _weight_map(path, findings)
    if weight_map is None:
        return _single(path, present, findings)
    files = sorted(set(weight_map.values()))
    if not present and not needs_shards:
        names = frozenset(weight_map)
        return CheckpointIndex(path=path, names=names, tensors={}, num_files=len(files), has_headers=False)
    for name in sorted(set(present) - set(files)):
        findings.add("unindexed file", name, f"{INDEX_NAME} does not name it; remove it or complete the index")
    tensors = _read_shards(path, files, findings)
    _compare_with_map(tensors, weight_map, findings)
    return _index(path, tensors, len(files))


def _weight_map(path: Path, findings: Findings) -> dict[str, str] | None:
    """Tensor name → file name; None without an index file. Names that lead out of the folder are findings."""
    file = path / INDEX_NAME
    if not file.exists():
        return None
    try:
        if not file.is_file():
            raise HeaderError("it is not a regular file")
        if file.stat().st_size > _MAX_INDEX_BYTES:
            raise HeaderError(f"it has {file.stat().st_size:,} bytes; at most {_MAX_INDEX_BYTES:,} are read")
        weight_map = parse_json_object(file.read_bytes()).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise HeaderError("it needs a weight_map (tensor name → file name) with at least one entry")
    except (HeaderError, OSError) as error:
        raise CheckpointError(str(path), [f"{INDEX_NAME}: {error}. Restore the file from the release."]) from error
    plain: dict[str, str] = {}
    for name, value in weight_map.items():
        if isinstance(value, str) and _PLAIN_NAME.fullmatch(value):
            plain[name] = value
        else:
            detail = f"{printable(repr(value))} must be the plain name of a .safetensors file in this folder"
            findings.add("index names a bad file for", name, detail)
    return plain


def _single(path: Path, present: list[str], findings: Findings) -> CheckpointIndex:
    if len(present) != 1:
        what = f"there are {len(present)} .safetensors files and no {INDEX_NAME}"
        raise CheckpointError(str(path), [f"{what}. Name a folder with one file, or with an index."])
    return _index(path, _read_shards(path, present, findings), 1)


def _read_shards(path: Path, files: list[str], findings: Findings) -> dict[str, TensorEntry]:
    tensors: dict[str, TensorEntry] = {}
    for file in files:
        try:
            entries = read_header(path / file)
        except HeaderError as error:
            findings.add("unusable file", file, f"{error}; fetch it again")
            continue
        for entry in entries:
            other = tensors.setdefault(entry.name, entry)
            if other is not entry:
                findings.add("duplicate tensor", entry.name, f"it stands in {other.file.name} and in {file}")
    return tensors


def _compare_with_map(tensors: Mapping[str, TensorEntry], weight_map: Mapping[str, str], findings: Findings) -> None:
    files = {entry.file.name for entry in tensors.values()}
    for name, file in weight_map.items():
        if name in tensors and tensors[name].file.name != file and file in files:
            findings.add("misplaced tensor", name, f"the index names {file}, it stands in {tensors[name].file.name}")
        elif name not in tensors and file in files:
            findings.add("absent tensor", name, f"the index names {file}, which does not hold it")
    for name in sorted(set(tensors) - set(weight_map)):
        findings.add("unindexed tensor", name, f"{INDEX_NAME} does not name it")


def _index(path: Path, tensors: Mapping[str, TensorEntry], num_files: int) -> CheckpointIndex:
    return CheckpointIndex(path=path, names=frozenset(tensors), tensors=tensors, num_files=num_files, has_headers=True)
