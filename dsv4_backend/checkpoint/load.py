"""Read weights from the files one at a time, each exactly once.

Tensors are copied out of a read-only mapping of their file, which is no anonymous memory; besides the weights that the
caller keeps there is never more than the one tensor in hand.
"""

from __future__ import annotations

import mmap
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from dsv4_kernels.tensors import QuantTensor, WeightFormat, dequantise

from dsv4_backend.checkpoint.compare import compare, count_skipped
from dsv4_backend.checkpoint.findings import Findings
from dsv4_backend.checkpoint.header import TensorEntry
from dsv4_backend.checkpoint.index import CheckpointIndex, read_index
from dsv4_backend.checkpoint.layout import Layout, Storage, read_layout
from dsv4_backend.checkpoint.names import DRAFT_RULE, TensorSpec, Weight, expected_tensors, model_weights
from dsv4_backend.config import ModelConfig, load_model_config
from dsv4_backend.errors import CheckpointError

Progress = Callable[[int, int], None]

_TYPES = {
    "I8": torch.uint8,  # packed FP4: bytes without a sign
    "U8": torch.uint8,
    "F8_E8M0": torch.uint8,  # raw bytes: a numeric copy would lose them
    "F8_E4M3": torch.float8_e4m3fn,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "I32": torch.int32,
    "I64": torch.int64,
}
_PLAIN_FORMATS = {"BF16": WeightFormat.BF16, "F32": WeightFormat.FP32}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint whose headers agree with its config. Nothing of its weights has been read."""

    path: Path
    config: ModelConfig
    layout: Layout
    index: CheckpointIndex
    specs: Mapping[str, TensorSpec]

    @classmethod
    def open(cls, path: Path, config: ModelConfig | None = None) -> Checkpoint:
        """Read config and headers, and compare them; a given config replaces config.json.

        Raises: CheckpointError with every problem; ConfigError if the config cannot be used.
        """
        config = config or load_model_config(path)
        findings = Findings()
        layout = read_layout(path, config, findings)
        index = read_index(path, findings)
        specs = compare(index, expected_tensors(config, layout), findings)
        problems = findings.lines()
        if problems:
            raise CheckpointError(str(path), problems)
        return cls(path=path, config=config, layout=layout, index=index, specs=specs)

    def with_draft(self) -> Checkpoint:
        """The same checkpoint, of which the draft model is loaded as well. Raises: CheckpointError if it has none."""
        if not any(name.startswith("mtp.") for name in self.specs):
            raise CheckpointError(str(self.path), ["there is no draft model (mtp.*). Set drafter to ngram or none."])
        specs = {name: replace(spec, skip="") if spec.skip == DRAFT_RULE else spec for name, spec in self.specs.items()}
        return replace(self, specs=specs)

    def skipped(self) -> dict[str, int]:
        """Return the number of tensors that are not loaded, by the rule that says so."""
        return count_skipped(self.specs)

    def source(self, progress: Progress | None = None) -> CheckpointSource:
        """Return the weights. `progress` is told the bytes taken and the bytes to take, after every weight."""
        return CheckpointSource(self, progress)


class CheckpointSource:
    """Hands out each weight once, under its official name. Close it, or use it as a context manager."""

    def __init__(self, checkpoint: Checkpoint, progress: Progress | None = None) -> None:
        self._checkpoint = checkpoint
        self._tensors = checkpoint.index.tensors
        self._progress = progress
        self._files: dict[Path, mmap.mmap] = {}
        self._taken: set[str] = set()
        self._weights = {weight.name: weight for weight in model_weights(checkpoint.config, checkpoint.layout)}
        self._wanted = {name for name, spec in checkpoint.specs.items() if not spec.skip}
        self._total_bytes = sum(self._tensors[name].num_bytes for name in self._wanted)
        self._done_bytes = 0

    def __enter__(self) -> CheckpointSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def dense(self, name: str) -> torch.Tensor:
        """Return a tensor as float32 of its own memory (int64 for `tid2eid`), dequantised if need be.

        Raises: CheckpointError if there is no such weight, or it was taken before.
        """
        weight = self._weight(name)
        if weight.storage not in (Storage.F32, Storage.BF16, Storage.I64):
            return dequantise(self.linear(name.removesuffix(".weight")))
        view = self._take(name)
        dtype = torch.int64 if weight.storage is Storage.I64 else torch.float32
        value = torch.empty(view.shape, dtype=dtype).copy_(view)
        if weight.storage is Storage.I64:
            self._check_experts(name, value)
        self._done(name)
        return value

    def linear(self, name: str) -> QuantTensor:
        """Return a matrix as it is stored, in memory of its own. `name` has no `.weight`.

        Raises: CheckpointError if there is no such matrix, or it was taken before.
        """
        weight = self._weight(f"{name}.weight")
        if len(weight.shape) != 2:
            raise self._error(f"{weight.name} is a vector; read it with dense()")
        codes = self._take(weight.name)
        shape = (weight.shape[0], weight.shape[1])
        scales: torch.Tensor | None = None
        global_scale = 1.0
        names = [weight.name]
        match weight.storage:
            case Storage.FP8 | Storage.MXFP4:
                names += [f"{name}.scale"]
                scales = self._scale_bytes(names[1])
            case Storage.NVFP4:
                names += [f"{name}.weight_scale", f"{name}.weight_scale_2"]
                scales = self._take(names[1])
                global_scale = float(self._take(names[2]).reshape(()))
        plain = _PLAIN_FORMATS.get(self._tensors[weight.name].dtype)
        value = QuantTensor(
            format=plain or WeightFormat(weight.storage.value),
            codes=codes.clone(),
            scales=None if scales is None else scales.clone(),
            global_scale=global_scale,
            shape=shape,
        )
        self._done(*names)
        return value

    def finish(self) -> None:
        """Close the files, and make sure that every tensor was taken that no rule skips.

        Raises: CheckpointError listing what was left.
        """
        self.close()
        findings = Findings()
        for name in sorted(self._wanted - self._taken):
            findings.add("not used by the model", name)
        if findings.lines():
            raise CheckpointError(str(self._checkpoint.path), findings.lines())

    def close(self) -> None:
        """Unmap the files. Weights handed out stay valid."""
        self._files.clear()  # a mapping ends with its last reference

    def _weight(self, name: str) -> Weight:
        weight = self._weights.get(name)
        if weight is None or name not in self._tensors:
            raise self._error(f"{name} is no weight of this checkpoint")
        return weight

    def _check_experts(self, name: str, table: torch.Tensor) -> None:
        """A damaged hash table must not become an index out of range in the middle of a request."""
        num_experts = self._checkpoint.config.num_experts
        if table.numel() and not 0 <= int(table.min()) <= int(table.max()) < num_experts:
            raise self._error(
                f"{name} holds {int(table.min())}..{int(table.max())} but experts are 0..{num_experts - 1}"
            )

    def _scale_bytes(self, name: str) -> torch.Tensor:
        """UE8M0 bytes of FP8 or MXFP4 scales; float32 powers of two become their exponents."""
        scales = self._take(name)
        if scales.dtype != torch.float32:
            return scales
        bits = scales.view(torch.int32)
        if not bool(((bits > 0) & (bits & 0x7FFFFF == 0)).all()):
            raise self._error(f"{name} holds float32 scales that are no powers of two; convert them to UE8M0")
        return (bits >> 23).to(torch.uint8)

    def _take(self, name: str) -> torch.Tensor:
        """View one tensor inside its mapped file, and mark it as used."""
        if name in self._taken:
            raise self._error(f"{name} was taken before; every tensor is used once")
        self._taken.add(name)
        entry = self._tensors[name]
        dtype = _TYPES[entry.dtype]
        if not entry.num_elements:
            return torch.empty(entry.shape, dtype=dtype)
        is_aligned = entry.start % dtype.itemsize == 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch warns that the mapping is read-only; we only copy
            flat = torch.frombuffer(self._mapped(entry), dtype=torch.uint8, count=entry.num_bytes, offset=entry.start)
        return (flat if is_aligned else flat.clone()).view(dtype).view(entry.shape)

    def _mapped(self, entry: TensorEntry) -> mmap.mmap:
        if entry.file not in self._files:
            try:
                with entry.file.open("rb") as stream:
                    self._files[entry.file] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise self._error(f"{entry.file.name} was there when it was checked, but now: {error}") from error
        mapped = self._files[entry.file]
        if len(mapped) < entry.end:
            raise self._error(f"{entry.file.name} has shrunk since it was checked; leave it alone while weights load")
        return mapped

    def _done(self, *names: str) -> None:
        for name in names:
            entry = self._tensors[name]
            self._release(entry)
            self._done_bytes += entry.num_bytes if name in self._wanted else 0
        if self._progress is not None:
            self._progress(self._done_bytes, self._total_bytes)

    def _release(self, entry: TensorEntry) -> None:
        """Let the system drop the pages that hold this tensor alone: it is not read again."""
        page = mmap.PAGESIZE
        start, end = -(-entry.start // page) * page, entry.end // page * page
        if end > start:
            self._files[entry.file].madvise(mmap.MADV_DONTNEED, start, end - start)

    def _error(self, problem: str) -> CheckpointError:
        return CheckpointError(str(self._checkpoint.path), [f"{problem}."])
