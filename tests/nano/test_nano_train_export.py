"""What is exported is what was trained: the runtime reads it and gives the trainer's logits."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from dsv4_kernels.dispatch import bind
from model_rig import Driver
from nano_train.config import nano_values
from nano_train.export import HASHES_NAME, Trained, export
from nano_train.model import Pass
from nano_train.numerics import Rounding, quantised_names, rounded_weights
from nano_train.weights import Weights
from nano_train_rig import TINY, VOCAB, packed, random_documents, random_weights, tiny_config

from dsv4_backend.checkpoint.load import Checkpoint
from dsv4_backend.checkpoint.write import LayoutName
from dsv4_backend.config import Numerics
from dsv4_backend.model import Transformer

TOKENS = 130
CONFIG = tiny_config()


@pytest.fixture(scope="module")
def weights() -> Weights:
    """Random weights, already rounded to what the plain tensors of a file hold."""
    found = random_weights(CONFIG, 11)
    with torch.no_grad():
        for tensor in found.values():
            if tensor.is_floating_point():
                tensor.copy_(tensor.to(torch.bfloat16))
    return found


def exported(weights: Weights, folder: Path, layout: LayoutName) -> Path:
    tokenizer = folder.parent / "tokenizer.json"
    tokenizer.write_text("{}", "utf-8")
    export(Trained(nano_values(VOCAB, **TINY), weights), folder, layout, tokenizer)
    return folder


def trainer_logits(weights: Weights, rounding: Rounding) -> torch.Tensor:
    with torch.no_grad():
        run = Pass(CONFIG, weights, packed(random_documents([TOKENS], 2)), rounding)
        return run.logits(run.backbone())[:TOKENS]


def runtime_logits(folder: Path, numerics: Numerics) -> torch.Tensor:
    checkpoint = Checkpoint.open(folder)
    with checkpoint.source() as source:
        model = Transformer.load(checkpoint.config, source, bind("cpu"), numerics)
        source.finish()
    return Driver(model).run(list(random_documents([TOKENS], 2)[0].token_ids))


def test_a_bf16_export_gives_the_trainers_logits(weights: Weights, tmp_path: Path) -> None:
    found = runtime_logits(exported(weights, tmp_path / "out", LayoutName.BF16), Numerics.PLAIN)
    expected = trainer_logits(weights, Rounding())
    assert float((found - expected).abs().max()) <= 2e-5 * max(1.0, float(expected.abs().max()) / 4)


@pytest.mark.parametrize("layout", [LayoutName.OFFICIAL, LayoutName.NVFP4])
def test_a_quantised_export_gives_the_logits_of_the_trainers_rounded_weights(
    layout: LayoutName, weights: Weights, tmp_path: Path
) -> None:
    found = runtime_logits(exported(weights, tmp_path / "out", layout), Numerics.PLAIN)
    expected = trainer_logits(rounded_weights(weights, quantised_names(CONFIG)), Rounding())
    assert float((found - expected).abs().max()) <= 2e-5 * max(1.0, float(expected.abs().max()) / 4)


def test_the_rounding_of_the_last_phase_is_that_of_the_runtime(weights: Weights, tmp_path: Path) -> None:
    found = runtime_logits(exported(weights, tmp_path / "out", LayoutName.OFFICIAL), Numerics.TRAINED)
    rounded = rounded_weights(weights, quantised_names(CONFIG))
    expected = trainer_logits(rounded, Rounding(bind("cpu")))
    plain = trainer_logits(rounded, Rounding())
    # Sums differ in the last bit, which moves a few roundings; the plain numerics are an order of magnitude away.
    assert float((found - expected).abs().mean()) < 0.1 * float((plain - expected).abs().mean())


def test_rounding_passes_gradients_straight_through(weights: Weights) -> None:
    leaves = {name: tensor.detach().clone().requires_grad_(tensor.requires_grad) for name, tensor in weights.items()}
    run = Pass(CONFIG, rounded_weights(leaves, quantised_names(CONFIG)), packed(random_documents([70], 2)))
    run.logits(run.backbone()).logsumexp(1).sum().backward()
    assert float(leaves["layers.2.ffn.experts.w13"].grad.abs().sum()) > 0  # type: ignore[union-attr]


def test_an_export_lists_the_hash_of_every_file(weights: Weights, tmp_path: Path) -> None:
    folder = exported(weights, tmp_path / "out", LayoutName.OFFICIAL)
    listed = dict(reversed(line.split("  ")) for line in (folder / HASHES_NAME).read_text("utf-8").splitlines())
    files = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}
    files.pop(HASHES_NAME)
    assert listed == files
