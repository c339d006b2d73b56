"""From the files on disk to the logits: every layout gives what transformers computes from the same values."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from dsv4_kernels.dispatch import bind
from hf_oracle import TINY, hf_logits, random_tokens, tolerance
from model_rig import Driver
from torch import Tensor
from transformers import DeepseekV4ForCausalLM

from dsv4_backend.checkpoint.load import Checkpoint
from dsv4_backend.checkpoint.write import LayoutName, WriteOptions, with_layout, write_checkpoint
from dsv4_backend.config import Numerics
from dsv4_backend.model import Transformer

TOKENS = random_tokens(200, 51)


def write(path: Path, layout: LayoutName) -> Path:
    write_checkpoint(path, with_layout(TINY, layout), WriteOptions(has_same_values=True))
    return path


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    """Logits of transformers, which loads the official names from a BF16 checkpoint by itself."""
    path = write(tmp_path_factory.mktemp("bf16"), LayoutName.BF16)
    model = DeepseekV4ForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    )
    return hf_logits(model.eval(), TOKENS)


@pytest.mark.parametrize("layout", LayoutName)
def test_logits_of_a_checkpoint_equal_those_of_transformers(
    layout: LayoutName, expected: Tensor, tmp_path: Path
) -> None:
    checkpoint = Checkpoint.open(write(tmp_path, layout))
    with checkpoint.source() as source:
        model = Transformer.load(checkpoint.config, source, bind("cpu"), Numerics.PLAIN)
        source.finish()
    assert float((Driver(model).run(TOKENS) - expected).abs().max()) <= tolerance(expected)
