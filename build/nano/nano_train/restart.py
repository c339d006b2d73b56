"""Take the weights of a written checkpoint back into the trainer: to grade its drafts, or to go on training."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from dsv4_backend.checkpoint.load import Checkpoint, CheckpointSource
from nano_train.config import read_config
from nano_train.export import Trained
from nano_train.weights import initial_weights, is_buffer


def read_trained(folder: Path) -> Trained:
    """Return the model that a checkpoint of any layout holds, its weights dequantised.

    Raises: CheckpointError, ConfigError if it is damaged or of another architecture.
    """
    checkpoint = Checkpoint.open(folder)
    values = json.loads((folder / "config.json").read_text("utf-8"))
    weights = initial_weights(read_config(values), seed=0)
    with checkpoint.source() as source:
        for name, tensor in weights.items():
            with torch.no_grad():
                tensor.copy_(_read(source, name, tensor))
            tensor.requires_grad_(not is_buffer(name))
    return Trained(values, weights)


def _read(source: CheckpointSource, name: str, shape_of: Tensor) -> Tensor:
    """One weight by the trainer's name: experts stand one above the other."""
    prefix, _, part = name.rpartition(".")
    if part not in ("w13", "w2") or not prefix.endswith(".experts"):
        return source.dense(name)
    parts = ("w1", "w3") if part == "w13" else ("w2",)
    experts = [
        torch.cat([source.dense(f"{prefix}.{expert}.{item}.weight") for item in parts])
        for expert in range(shape_of.shape[0])
    ]
    return torch.stack(experts)
