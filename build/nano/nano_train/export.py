"""Write trained weights as a checkpoint: the official layout, NVFP4 or BF16, with tokenizer and generation settings."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsv4_backend.checkpoint.names import Weight
from dsv4_backend.checkpoint.write import LayoutName, WriteOptions, with_layout, write_checkpoint
from nano_train.config import read_config
from nano_train.weights import Weights, initial_weights, official

LAYOUTS = (LayoutName.OFFICIAL, LayoutName.NVFP4, LayoutName.BF16)
TOKENIZER_FILE = Path(__file__).resolve().parents[1] / "tokenizer.json"
GENERATION = {"bos_token_id": 0, "eos_token_id": 1, "do_sample": True, "temperature": 1.0, "top_p": 1.0}
HASHES_NAME = "SHA256SUMS"


@dataclass(frozen=True, slots=True)
class Trained:
    """A finished or unfinished model: its config.json values and its weights."""

    values: dict[str, object]
    weights: Weights

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Trained:
        """Take the model out of a run's saved state."""
        values = dict(state["config"])
        shapes = _shapes(values, state["names"])
        parts = torch.split(state["values"], [shape.numel() for shape in shapes])
        weights = {name: part.view(shape) for name, shape, part in zip(state["names"], shapes, parts, strict=True)}
        return cls(values, weights | state["buffers"])

    def value(self, weight: Weight) -> Tensor:
        """Return one weight by its official name, as the writer asks for it."""
        return official(self.weights, weight.name)


def export(model: Trained, folder: Path, layout: LayoutName, tokenizer: Path = TOKENIZER_FILE) -> None:
    """Write a whole checkpoint folder and the hashes of its files.

    Rule: NVFP4 holds the values of the official layout exactly, which the model was trained to round to.
    """
    options = WriteOptions(has_same_values=layout is LayoutName.NVFP4)
    write_checkpoint(folder, with_layout(model.values, layout), options, weights=model.value)
    text = json.dumps(GENERATION, indent=2, sort_keys=True) + "\n"
    (folder / "generation_config.json").write_text(text, "utf-8")
    shutil.copyfile(tokenizer, folder / "tokenizer.json")
    write_hashes(folder)


def write_hashes(folder: Path) -> None:
    """List the hash of every file of a checkpoint folder."""
    names = sorted(file.name for file in folder.iterdir() if file.is_file() and file.name != HASHES_NAME)
    sums = (f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    (folder / HASHES_NAME).write_text("".join(sums), "utf-8")


def num_bytes(folder: Path) -> int:
    """Size of the files of a checkpoint folder."""
    return sum(file.stat().st_size for file in folder.iterdir())


def _shapes(values: dict[str, object], names: list[str]) -> list[torch.Size]:
    initial = initial_weights(read_config(values), seed=0)
    return [initial[name].shape for name in names]
