"""How each kind of weight is stored, read from a checkpoint's quantisation metadata.

NVFP4 metadata exist in two generations: experts of a whole layer (`layers.3.ffn.experts`, with `moe_quant_algo`), or
single projections (`layers.3.ffn.experts.0.w1`, without). They stand in config.json's `quantization_config`, or only in
`hf_quant_config.json`. Either way NVFP4 applies to the names listed and to nothing else: draft experts stay MXFP4.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from dsv4_backend.checkpoint.findings import Findings
from dsv4_backend.config import ExpertFormat, ModelConfig
from dsv4_backend.errors import CheckpointError

NVFP4_GROUP = 16
_EXPERT_NAME = re.compile(r"((?:layers|mtp)\.\d+\.ffn\.experts)(?:\.\d+(?:\.w[123])?)?")
_MAX_METADATA_BYTES = 64_000_000


class Storage(str, Enum):
    """How the elements of one weight are stored."""

    F32 = "f32"
    BF16 = "bf16"
    I64 = "i64"
    FP8 = "fp8"
    MXFP4 = "mxfp4"
    NVFP4 = "nvfp4"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Storage by kind of weight.

    Rule: `nvfp4` lists experts (of a layer, of one expert, or one projection) that are NVFP4; every other expert is
          `experts` in the backbone and `draft_experts` in a draft.
    """

    is_dense_fp8: bool
    experts: Storage
    draft_experts: Storage
    nvfp4: frozenset[str] = frozenset()

    @property
    def dense(self) -> Storage:
        """Storage of attention projections and shared experts."""
        return Storage.FP8 if self.is_dense_fp8 else Storage.BF16

    @property
    def is_plain(self) -> bool:
        """Nothing is quantised; then float32 is accepted wherever BF16 is."""
        return not self.is_dense_fp8

    def expert(self, prefix: str, expert: int, part: str) -> Storage:
        """Return the storage of one projection. `prefix` is the layer's, such as layers.3.ffn.experts."""
        if self.nvfp4 & {prefix, f"{prefix}.{expert}", f"{prefix}.{expert}.{part}"}:
            return Storage.NVFP4
        return self.draft_experts if prefix.startswith("mtp.") else self.experts


_STORAGES = {
    ExpertFormat.BF16: Storage.BF16,
    ExpertFormat.FP8: Storage.FP8,
    ExpertFormat.MXFP4: Storage.MXFP4,
    ExpertFormat.NVFP4: Storage.NVFP4,
}


def layout_of(config: ModelConfig, listed: frozenset[str] | None = None) -> Layout:
    """Return the layout that a config announces; `listed` are the names of its quantised_layers, None without."""
    quant = config.quant
    draft = _STORAGES[quant.draft_experts]
    experts = _STORAGES[quant.experts] if listed is None else draft
    return Layout(
        is_dense_fp8=quant.is_dense_fp8,
        experts=experts,
        draft_experts=draft,
        nvfp4=frozenset() if listed is None else listed,
    )


def read_layout(path: Path, config: ModelConfig, findings: Findings) -> Layout:
    """Read the layout of the checkpoint in folder `path`. Names that NVFP4 cannot apply to become findings.

    Raises: CheckpointError if a metadata file cannot be read.
    """
    return parse_layout(config, _json(path, "config.json"), _json(path, "hf_quant_config.json"), findings)


def parse_layout(
    config: ModelConfig, values: Mapping[str, object], quant_values: Mapping[str, object], findings: Findings
) -> Layout:
    """Read the layout out of config.json's values and, where those list no layers, of hf_quant_config.json's."""
    layers = _object(values.get("quantization_config")).get("quantized_layers")
    if layers is None:
        layers = _object(quant_values.get("quantization")).get("quantized_layers")
    if layers is None:
        return layout_of(config)
    if not isinstance(layers, dict):
        findings.add("quantized_layers is", type(layers).__name__, "it must be an object")
        return layout_of(config)
    return layout_of(config, frozenset(name for name, entry in layers.items() if _is_usable(name, entry, findings)))


def _is_usable(name: str, entry: object, findings: Findings) -> bool:
    values = _object(entry)
    algorithm = values.get("quant_algo")
    group = values.get("group_size", values.get("awq_block_size"))
    if not _EXPERT_NAME.fullmatch(name):
        findings.add("quantized_layers names", name, "only routed experts may be quantised besides FP8")
    elif algorithm not in (None, "NVFP4"):
        findings.add("quantized_layers names", name, f"quant_algo is {algorithm!r}; this runtime implements 'NVFP4'")
    elif group not in (None, NVFP4_GROUP):
        findings.add("quantized_layers names", name, f"group_size is {group!r} but must be {NVFP4_GROUP}")
    else:
        return True
    return False


def _json(path: Path, name: str) -> Mapping[str, object]:
    file = path / name
    if not file.is_file():
        return {}
    try:
        if file.stat().st_size > _MAX_METADATA_BYTES:
            raise ValueError(f"it has {file.stat().st_size:,} bytes; at most {_MAX_METADATA_BYTES:,} are read")
        return _object(json.loads(file.read_bytes()))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(str(path), [f"{name}: {error}. Restore the file from the release."]) from error


def _object(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}
