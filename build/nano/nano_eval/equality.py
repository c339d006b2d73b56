"""The BF16 weights in transformers and in our runtime: the same logits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from dsv4_kernels.dispatch import bind
from hf_oracle import hf_logits, tolerance
from model_rig import Driver
from transformers import DeepseekV4ForCausalLM

from dsv4_backend.checkpoint.load import Checkpoint
from dsv4_backend.config import Numerics
from dsv4_backend.model import Transformer


def logit_difference(checkpoint: Path, prompts: Sequence[Sequence[int]]) -> dict[str, float]:
    """Compare all logits of some prompts under plain float32 numerics."""
    library: Any = DeepseekV4ForCausalLM
    oracle = library.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    opened = Checkpoint.open(checkpoint)
    with opened.source() as source:
        model = Transformer.load(opened.config, source, bind("cpu"), Numerics.PLAIN)
        source.finish()
    largest, bound = 0.0, float("inf")
    for prompt in prompts:
        expected = hf_logits(oracle, list(prompt))
        found = Driver(model).run(list(prompt))
        largest = max(largest, float((found - expected).abs().max()))
        bound = min(bound, tolerance(expected))
    return {"tokens": sum(map(len, prompts)), "max_abs_difference": largest, "tolerance": bound}
