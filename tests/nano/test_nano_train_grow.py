"""A larger model that begins with a smaller one's weights computes what the smaller one does."""

from __future__ import annotations

import pytest
import torch
from nano_train.grow import grown, placed
from nano_train.model import Pass
from nano_train_rig import packed, random_documents, random_weights, tiny_config

WIDER = {"q_lora_rank": 64, "o_lora_rank": 32, "moe_intermediate_size": 64}
DEEPER = {"num_hidden_layers": 6, "num_hash_layers": 2, "compress_ratios": [0, 0, 4, 4, 128, 4, 0]}


@pytest.mark.parametrize(("changes", "tolerance"), [(WIDER, 1e-4), (DEEPER, 0.05), (WIDER | DEEPER, 0.05)])
def test_larger_model_computes_the_same(changes: dict[str, object], tolerance: float) -> None:
    small, large = tiny_config(), tiny_config(**changes)
    old = random_weights(small, 3)
    new = grown(old, small, random_weights(large, 5), large)
    batch = packed(random_documents([150, 61], 7))
    with torch.no_grad():
        one, two = Pass(small, old, batch), Pass(large, new, batch)
        before, after = (run.logits(run.backbone()) for run in (one, two))
    assert before.std() > 0.1
    torch.testing.assert_close(after, before, rtol=0, atol=tolerance * float(before.std()))


def test_every_new_weight_learns() -> None:
    small, large = tiny_config(), tiny_config(**(WIDER | DEEPER))
    new = grown(random_weights(small, 3), small, random_weights(large, 5), large)
    run = Pass(large, new, packed(random_documents([200], 7)))
    run.logits(run.backbone()).square().mean().backward()  # type: ignore[no-untyped-call]
    gradient = new["layers.2.attn.wq_b.weight"].grad
    assert gradient is not None
    assert (gradient[:, 32:] != 0).any()
    for name in ("layers.1.attn.wo_b.weight", "layers.3.ffn.experts.w2"):
        gradient = new[name].grad
        assert gradient is not None
        assert (gradient != 0).any()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"hidden_size": 128}, r"embed.weight is \[97, 128\]"),
        ({"q_lora_rank": 16}, "Layers, ranks"),
        ({"num_hash_layers": 2}, "layers.1.ffn.gate.tid2eid is not in the checkpoint"),
        ({"compress_ratios": [0, 4, 4, 128, 0]}, "do not occur in this order"),
    ],
)
def test_what_cannot_grow_is_refused(changes: dict[str, object], problem: str) -> None:
    small, large = tiny_config(), tiny_config(**changes)
    weights = random_weights(small, 3), random_weights(large, 5)
    with pytest.raises(ValueError, match=problem):
        grown(weights[0], small, weights[1], large)


def test_layers_are_placed_in_their_order() -> None:
    found = placed([0, 4, 128, 4], [0, 0, 4, 4, 128, 4])
    assert found == [(0, False), (0, True), (1, False), (1, True), (2, False), (3, False)]
    with pytest.raises(ValueError, match="no layer with ratio 128"):
        placed([0, 4], [0, 128, 4])
