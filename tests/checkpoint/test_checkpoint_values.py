"""Loaded weights, bit for bit, against a decoder written from the formats' definitions in plain numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_rig import TINY, merge_shards, read_shard
from dsv4_kernels.tensors import dequantise

from dsv4_backend.checkpoint.load import Checkpoint
from dsv4_backend.checkpoint.names import model_weights
from dsv4_backend.checkpoint.write import LayoutName, WriteOptions, with_layout, write_checkpoint

MAGNITUDES = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
ALL_LAYOUTS = list(LayoutName)


def e4m3(codes: np.ndarray) -> np.ndarray:
    """Sign, 4 exponent bits of bias 7, 3 mantissa bits; no infinities, 0x7F and 0xFF are NaN."""
    values = []
    for byte in range(256):
        exponent, mantissa = (byte >> 3) & 15, byte & 7
        size = mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10)
        values.append((-1.0 if byte & 128 else 1.0) * (float("nan") if byte & 127 == 127 else size))
    return np.array(values)[codes]


def e8m0(codes: np.ndarray) -> np.ndarray:
    return 2.0 ** (codes.astype(np.float64) - 127)


def e2m1(packed: np.ndarray) -> np.ndarray:
    """The even column stands in the low nibble."""
    nibbles = np.stack([packed & 15, packed >> 4], axis=-1).reshape(packed.shape[0], -1)
    return np.array(MAGNITUDES + [-value for value in MAGNITUDES])[nibbles]


class Decoder:
    """Reads whole files into numpy and decodes by the names of the scales that are there."""

    def __init__(self, folder: Path) -> None:
        self.raw: dict[str, np.ndarray] = {}
        self.dtypes: dict[str, str] = {}
        for file in folder.glob("*.safetensors"):
            header, data = read_shard(file)
            for name, entry in header.items():
                start, end = entry["data_offsets"]
                kind = {"BF16": np.uint16, "F32": np.float32, "I64": np.int64}.get(entry["dtype"], np.uint8)
                self.raw[name] = np.frombuffer(data[start:end], kind).reshape(entry["shape"])
                self.dtypes[name] = entry["dtype"]

    def decode(self, name: str) -> np.ndarray:
        codes, prefix = self.raw[name], name.removesuffix(".weight")
        if self.dtypes[name] == "BF16":
            return (codes.astype(np.uint32) << 16).view(np.float32)
        if f"{prefix}.weight_scale_2" in self.raw:
            scale = e4m3(self.raw[f"{prefix}.weight_scale"]).astype(np.float32)
            scale = scale * self.raw[f"{prefix}.weight_scale_2"]
            return e2m1(codes).astype(np.float32) * np.repeat(scale, 16, axis=1)
        if f"{prefix}.scale" not in self.raw:
            return codes
        scale = e8m0(self.raw[f"{prefix}.scale"])
        if self.dtypes[name] == "I8":
            return (e2m1(codes) * np.repeat(scale, 32, axis=1)).astype(np.float32)
        wide = np.repeat(np.repeat(scale, 128, axis=0), 128, axis=1)[: codes.shape[0], : codes.shape[1]]
        return (e4m3(codes) * wide).astype(np.float32)


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    """Every weight that is not skipped, as the model would take it."""
    checkpoint = Checkpoint.open(folder)
    values = {}
    with checkpoint.source() as source:
        for weight in model_weights(checkpoint.config, checkpoint.layout):
            if weight.is_draft:
                continue
            is_matrix = weight.is_matmul and weight.name.endswith(".weight")
            name = weight.name.removesuffix(".weight")
            values[weight.name] = dequantise(source.linear(name)) if is_matrix else source.dense(weight.name)
        source.finish()
    return values


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[LayoutName, Path]:
    """One checkpoint per layout, with uneven FP8 blocks, and all with the values of the official one."""
    folder = tmp_path_factory.mktemp("checkpoints")
    values = TINY | {"hidden_size": 160, "moe_intermediate_size": 96}
    for layout in ALL_LAYOUTS:
        options = WriteOptions(seed=7, shard_bytes=200_000, has_same_values=True)
        write_checkpoint(folder / layout.value, with_layout(values, layout), options)
    return {layout: folder / layout.value for layout in ALL_LAYOUTS}


@pytest.mark.parametrize("layout", ALL_LAYOUTS)
def test_loaded_weights_equal_an_independent_decoder_bit_for_bit(
    checkpoints: dict[LayoutName, Path], layout: LayoutName
) -> None:
    decoder = Decoder(checkpoints[layout])
    differing = [
        name
        for name, value in loaded(checkpoints[layout]).items()
        if not np.array_equal(value.numpy(), decoder.decode(name)) or value.numpy().dtype != decoder.decode(name).dtype
    ]
    assert differing == []


def test_generic_nvfp4_scales_decode_bit_for_bit(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, with_layout(TINY, LayoutName.NVFP4), WriteOptions(seed=3))
    decoder = Decoder(tmp_path)
    assert all(np.array_equal(value.numpy(), decoder.decode(name)) for name, value in loaded(tmp_path).items())


@pytest.mark.parametrize("layout", [item for item in ALL_LAYOUTS if item is not LayoutName.OFFICIAL])
def test_all_layouts_hold_the_same_values_when_asked(checkpoints: dict[LayoutName, Path], layout: LayoutName) -> None:
    official, other = loaded(checkpoints[LayoutName.OFFICIAL]), loaded(checkpoints[layout])
    assert [name for name, value in official.items() if not torch.equal(value, other[name])] == []


def test_dense_dequantises_a_stored_matrix(checkpoints: dict[LayoutName, Path]) -> None:
    name = "layers.0.attn.wq_a.weight"
    folder = checkpoints[LayoutName.OFFICIAL]
    value = Checkpoint.open(folder).source().dense(name)
    assert np.array_equal(value.numpy(), Decoder(folder).decode(name))


def test_a_single_file_with_odd_offsets_loads_the_same_values(
    checkpoints: dict[LayoutName, Path], tmp_path: Path
) -> None:
    folder = checkpoints[LayoutName.BF16]
    merge_shards(folder, tmp_path)
    shards, merged = loaded(folder), loaded(tmp_path)
    assert [name for name, value in shards.items() if not torch.equal(value, merged[name])] == []
