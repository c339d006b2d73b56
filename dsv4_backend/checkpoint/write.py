"""Write a small checkpoint, random or trained, in one of the three layouts, tensor by tensor.

config.json values ─ with_layout ─► … with that layout's metadata ─ write_checkpoint ─► folder of shards and an index
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from pathlib import Path

import torch
from dsv4_kernels.tensors import (
    QuantTensor,
    WeightFormat,
    dequantise,
    quantise_fp8_block,
    quantise_mxfp4,
    quantise_nvfp4,
)
from torch import Tensor

from dsv4_backend.checkpoint.findings import Findings
from dsv4_backend.checkpoint.header import DTYPE_BYTES
from dsv4_backend.checkpoint.index import INDEX_NAME
from dsv4_backend.checkpoint.layout import NVFP4_GROUP, Layout, Storage, parse_layout
from dsv4_backend.checkpoint.names import Weight, expected_tensors, model_weights, stored_tensors
from dsv4_backend.checkpoint.values import random_weight
from dsv4_backend.config import ModelConfig, parse_model_config
from dsv4_backend.errors import ConfigError

Progress = Callable[[int, int], None]
Values = Callable[[Weight], Tensor]  # float32, int64 for tid2eid; asked by name, more than once for some


class LayoutName(str, Enum):
    """Layouts that the writer knows."""

    OFFICIAL = "official"  # FP8 128x128 and packed FP4 experts
    FP8 = "fp8"  # as the Base models: experts FP8 too
    NVFP4 = "nvfp4"  # experts NVFP4, listed by layer
    NVFP4_OLD = "nvfp4-old"  # the same bytes, listed by projection in hf_quant_config.json as well
    BF16 = "bf16"


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteOptions:
    """How to write. has_same_values: all layouts hold exactly the values that the official one can represent."""

    seed: int = 0
    shard_bytes: int = 4 << 20
    has_same_values: bool = False


def with_layout(values: Mapping[str, object], layout: LayoutName) -> dict[str, object]:
    """Return config.json values that announce a layout, replacing whatever they announced before."""
    config = {key: value for key, value in values.items() if key not in ("quantization_config", "expert_dtype")}
    if layout is LayoutName.BF16:
        return config
    config["expert_dtype"] = "fp8" if layout is LayoutName.FP8 else "fp4"
    quant: dict[str, object] = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "scale_fmt": "ue8m0",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    }
    config["quantization_config"] = quant
    if layout in (LayoutName.NVFP4, LayoutName.NVFP4_OLD):
        quant.update(_nvfp4_metadata(parse_model_config(config), is_old=layout is LayoutName.NVFP4_OLD))
    return config


def write_checkpoint(
    path: Path,
    values: Mapping[str, object],
    options: WriteOptions | None = None,
    progress: Progress | None = None,
    weights: Values | None = None,
) -> None:
    """Write config.json, shards and index into a folder (made if need be) for a model of that config.

    Rule:   the same arguments give the same bytes. `weights` are random unless given. `progress` is told the bytes
            written and to write.
    Raises: ConfigError if the values cannot be used.
    """
    options = options or WriteOptions()
    config = parse_model_config(dict(values))
    findings = Findings()
    layout = parse_layout(config, values, {}, findings)
    if findings.lines():
        raise ConfigError("; ".join(findings.lines()))
    expected_tensors(config, layout)  # refuses widths that do not divide into groups
    path.mkdir(parents=True, exist_ok=True)
    _write_json(path / "config.json", values)
    _write_quant_config(path, values)
    shards = list(_shards(config, layout, options.shard_bytes))
    total = sum(shard.num_bytes for shard in shards)
    weight_map, done = {}, 0
    writer = _Writer(config, options, weights)
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        writer.write(path / name, shard)
        weight_map.update(dict.fromkeys(shard.header, name))
        done += shard.num_bytes
        if progress is not None:
            progress(done, total)
    _write_json(path / INDEX_NAME, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _nvfp4_metadata(config: ModelConfig, *, is_old: bool) -> dict[str, object]:
    prefixes = [f"layers.{layer}.ffn.experts" for layer in range(config.num_layers)]
    if is_old:
        names = [
            f"{prefix}.{e}.w{part}" for prefix in prefixes for e in range(config.num_experts) for part in (1, 2, 3)
        ]
        listed = {name: {"quant_algo": "NVFP4", "awq_block_size": NVFP4_GROUP} for name in names}
        return {"quant_algo": None, "quantized_layers": listed}
    group = {"num_bits": 4, "type": "float", "group_size": NVFP4_GROUP, "dynamic": False}
    return {
        "moe_quant_algo": "NVFP4",
        "quantized_layers": {name: {"quant_algo": "NVFP4", "group_size": NVFP4_GROUP} for name in prefixes},
        "ignore": ["*.attn.*", "*.ffn.shared_experts.*", "head", "mtp.*"],
        "config_groups": {"group_0": {"weights": group, "input_activations": group}},
    }


def _write_quant_config(path: Path, values: Mapping[str, object]) -> None:
    """NVIDIA's uploads repeat the metadata in hf_quant_config.json."""
    quant = values.get("quantization_config")
    if not isinstance(quant, dict) or "quantized_layers" not in quant:
        return
    quantization = {
        "quant_algo": "MIXED_PRECISION" if "moe_quant_algo" in quant else None,
        "kv_cache_quant_algo": None,
        "group_size": NVFP4_GROUP,
        "quantized_layers": quant["quantized_layers"],
        "exclude_modules": quant.get("ignore", []),
    }
    producer = {"name": "modelopt", "version": "dsv4-nvfp4-experts"}
    _write_json(path / "hf_quant_config.json", {"producer": producer, "quantization": quantization})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shard:
    weights: tuple[Weight, ...]
    header: dict[str, dict[str, object]]
    num_bytes: int


def _shards(config: ModelConfig, layout: Layout, shard_bytes: int) -> Iterator[_Shard]:
    """Fill shards with whole weights in reading order; sizes follow from the specs, nothing is computed yet."""
    weights: list[Weight] = []
    header: dict[str, dict[str, object]] = {}
    position = 0
    for weight in model_weights(config, layout):
        if position >= shard_bytes:
            yield _Shard(weights=tuple(weights), header=header, num_bytes=position)
            weights, header, position = [], {}, 0
        weights.append(weight)
        for name, spec in stored_tensors(weight, layout):
            dtype = spec.dtypes[0]
            end = position + math.prod(spec.shape) * DTYPE_BYTES[dtype]
            header[name] = {"dtype": dtype, "shape": list(spec.shape), "data_offsets": [position, end]}
            position = end
    yield _Shard(weights=tuple(weights), header=header, num_bytes=position)


class _Writer:
    """Turns weights into stored bytes."""

    def __init__(self, config: ModelConfig, options: WriteOptions, weights: Values | None) -> None:
        self.weights = weights or partial(random_weight, seed=options.seed, num_experts=config.num_experts)
        self.options = options
        official = Layout(is_dense_fp8=True, experts=Storage.MXFP4, draft_experts=Storage.MXFP4)
        self.official = {weight.name: weight.storage for weight in model_weights(config, official)}

    def write(self, file: Path, shard: _Shard) -> None:
        """Write one shard: header first, then every tensor in turn."""
        text = json.dumps({"__metadata__": {"format": "pt"}, **shard.header}, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with file.open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            for weight in shard.weights:
                for tensor in self.tensors(weight):
                    stream.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)

    def tensors(self, weight: Weight) -> list[Tensor]:
        """Return the tensors of a weight in the order of `stored_tensors`."""
        match weight.storage:
            case Storage.I64 | Storage.F32:
                return [self.value(weight)]
            case Storage.BF16:
                return [self.value(weight).to(torch.bfloat16)]
            case Storage.FP8 | Storage.MXFP4:
                stored = _QUANTISERS[weight.storage](self.value(weight))
            case Storage.NVFP4:
                stored = self.nvfp4(weight)
                scales = [torch.tensor(stored.global_scale), torch.tensor(INPUT_AMAX / (6 * 448))]
                return [*_codes_and_scales(stored), *scales]
        return _codes_and_scales(stored)

    def value(self, weight: Weight) -> Tensor:
        """Return the weight's values, rounded to what the official layout can hold if that was asked."""
        value = self.weights(weight)
        official = self.official[weight.name]
        if self.options.has_same_values and official in _QUANTISERS and official is not weight.storage:
            return dequantise(_QUANTISERS[official](value))
        return value

    def nvfp4(self, weight: Weight) -> QuantTensor:
        """Quantise one projection; w1 and w3 of an expert share the global scale."""
        value = self.weights(weight)
        siblings = [value]
        for part, other in ((".w1.", ".w3."), (".w3.", ".w1.")):
            if part in weight.name:
                sibling = replace(weight, name=weight.name.replace(part, other))
                siblings.append(self.weights(sibling))
        if self.options.has_same_values:
            return cast_to_nvfp4(*[quantise_mxfp4(item) for item in siblings])
        amax = max(float(item.abs().amax()) for item in siblings)
        return quantise_nvfp4(value, amax / (6 * 448))


INPUT_AMAX = 8.0  # a plausible calibration result; nothing here reads it
_QUANTISERS = {Storage.FP8: quantise_fp8_block, Storage.MXFP4: quantise_mxfp4}


def cast_to_nvfp4(stored: QuantTensor, *siblings: QuantTensor) -> QuantTensor:
    """Turn MXFP4 into NVFP4 without loss: the same nibbles, scales relative to the largest of all siblings.

    Rule:   global scale 2^(kmax - 8), group scale 2^(k - kmax + 8) as e4m3.
    Raises: ConfigError if the exponents spread over more than e4m3 holds.
    """
    exponents = [item.scales.to(torch.int32) - 127 for item in (stored, *siblings) if item.scales is not None]
    largest = max(int(item.max()) for item in exponents)
    relative = exponents[0] - largest + 8
    if int(relative.min()) < -9:
        raise ConfigError(f"MXFP4 scales spread over 2^{8 - int(relative.min())} but NVFP4 holds 2^17 without loss.")
    scales = torch.exp2(relative.to(torch.float32)).to(torch.float8_e4m3fn).repeat_interleave(2, dim=1)
    return QuantTensor(
        format=WeightFormat.NVFP4,
        codes=stored.codes,
        scales=scales,
        global_scale=2.0 ** (largest - 8),
        shape=stored.shape,
    )


def _codes_and_scales(stored: QuantTensor) -> list[Tensor]:
    return [stored.codes] if stored.scales is None else [stored.codes, stored.scales]


def _write_json(file: Path, values: Mapping[str, object]) -> None:
    file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", "utf-8")
