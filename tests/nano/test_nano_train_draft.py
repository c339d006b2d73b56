"""The draft block follows the specification (facts 2.10), its layer computed by the runtime."""

from __future__ import annotations

import torch
from dsv4_kernels.dispatch import bind
from dsv4_kernels.tensors import QuantTensor
from model_rig import Driver
from nano_train import ops
from nano_train.model import Pass
from nano_train_rig import TrainedSource, packed, random_documents, random_weights, tiny_config
from torch import Tensor

from dsv4_backend.config import Numerics
from dsv4_backend.model import Transformer


class DraftSource(TrainedSource):
    """The draft block as the only layer of a model."""

    def dense(self, name: str) -> Tensor:
        """A small tensor."""
        return super().dense(self._draft_name(name))

    def linear(self, name: str) -> QuantTensor:
        """A matrix."""
        return super().linear(self._draft_name(name))

    @staticmethod
    def _draft_name(name: str) -> str:
        if name.startswith("layers.0."):
            return name.replace("layers.0.", "mtp.0.", 1)
        return f"mtp.0.{name}" if name.startswith(("norm", "hc_head")) else name


def test_the_draft_block_equals_its_specification() -> None:
    config = tiny_config()
    weights = random_weights(config, 21)
    (document,) = random_documents([200], 4)
    tokens = list(document.token_ids)
    batch = packed([document])
    with torch.no_grad():
        run = Pass(config, weights, batch)
        streams = run.backbone()
        found = run.logits(run.draft(streams), "mtp.0.")[: len(tokens)]
        ahead = weights["embed.weight"][batch.next_ids]
        mixed = ops.rms_norm(streams, weights["mtp.0.hnorm.weight"], 1e-6) @ weights["mtp.0.h_proj.weight"].T
        embedded = ops.rms_norm(ahead, weights["mtp.0.enorm.weight"], 1e-6) @ weights["mtp.0.e_proj.weight"].T
        mixed = mixed + embedded[:, None]
    single = tiny_config(num_hidden_layers=1, compress_ratios=[0, 0], num_hash_layers=0)
    model = Transformer.load(single, DraftSource(weights), bind("cpu"), Numerics.PLAIN)
    model.whole = None  # it would begin with the embedding
    model.hyper.spread = lambda hidden: mixed[: len(tokens)].clone()  # type: ignore[method-assign]
    expected = Driver(model).run(tokens)
    assert float((found - expected).abs().max()) <= 2e-5 * max(1.0, float(expected.abs().max()) / 4)
