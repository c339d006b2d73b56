"""The trainer's forward pass is the runtime's: same logits for every document of a packed row."""

from __future__ import annotations

import pytest
import torch
from dsv4_kernels.dispatch import bind
from model_rig import Driver
from nano_train.model import Pass
from nano_train.weights import Weights
from nano_train_rig import TrainedSource, packed, random_documents, random_weights, tiny_config

from dsv4_backend.config import ModelConfig, Numerics
from dsv4_backend.model import Transformer

LENGTHS = (150, 7, 301, 64, 129)


def runtime_logits(config: ModelConfig, weights: Weights, tokens: list[int], numerics: Numerics) -> torch.Tensor:
    model = Transformer.load(config, TrainedSource(weights), bind("cpu"), numerics)
    return Driver(model).run(tokens)


@pytest.mark.parametrize("top_k", [24, 512])
def test_packed_documents_get_the_logits_that_the_runtime_gives_them_alone(top_k: int) -> None:
    config = tiny_config(index_topk=top_k)
    weights = random_weights(config, 3)
    documents = random_documents(LENGTHS, 5)
    batch = packed(documents)
    with torch.no_grad():
        forward = Pass(config, weights, batch)
        logits = forward.logits(forward.backbone())
    for start, document in zip(batch.starts, documents, strict=False):
        expected = runtime_logits(config, weights, list(document.token_ids), Numerics.PLAIN)
        found = logits[start : start + len(document.token_ids)]
        assert float((found - expected).abs().max()) <= 2e-5 * max(1.0, float(expected.abs().max()) / 4)
