"""What the trainer's tests share: a tiny model with every weight random, and packed rows of random documents."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from dsv4_kernels.tensors import QuantTensor, WeightFormat
from nano_train.batch import Batch, Document, aligned, pack
from nano_train.config import CHUNK, nano_values, read_config
from nano_train.weights import Weights, initial_weights, official
from torch import Tensor

from dsv4_backend.config import ModelConfig

VOCAB = 97
TINY: dict[str, object] = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_hash_layers": 1,
    "compress_ratios": [0, 4, 128, 4, 0],
    "num_attention_heads": 4,
    "head_dim": 32,
    "qk_rope_head_dim": 16,
    "q_lora_rank": 32,
    "o_groups": 2,
    "o_lora_rank": 16,
    "index_topk": 24,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 32,
}


def tiny_config(**changes: object) -> ModelConfig:
    """A config whose forward pass takes milliseconds."""
    return read_config(nano_values(VOCAB, **(TINY | changes)))


def random_weights(config: ModelConfig, seed: int) -> Weights:
    """Weights far from their initial values, so that every path carries signal."""
    weights = initial_weights(config, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, tensor in weights.items():
            if tensor.is_floating_point():
                spread = 0.3 if tensor.dim() == 1 or name.endswith(".ape") else 0.0
                tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=spread)
    return weights


def random_documents(lengths: Sequence[int], seed: int) -> list[Document]:
    """Documents of random tokens, about half of them targets."""
    generator = torch.Generator().manual_seed(seed)
    return [
        Document(
            torch.randint(0, VOCAB, (length,), generator=generator).tolist(),
            (torch.rand(length, generator=generator) < 0.5).tolist(),
        )
        for length in lengths
    ]


def packed(documents: Sequence[Document]) -> Batch:
    """The smallest row that holds the documents."""
    total = sum(aligned(len(document.token_ids)) for document in documents)
    return pack(documents, -(-total // CHUNK) * CHUNK, pad_id=0)


class TrainedSource:
    """Trainer weights as the runtime's WeightSource, in float32."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights

    def dense(self, name: str) -> Tensor:
        """A small tensor by its official name."""
        return official(self.weights, name).clone()

    def linear(self, name: str) -> QuantTensor:
        """A matrix by its official name, without `.weight`."""
        matrix = official(self.weights, f"{name}.weight").contiguous()
        return QuantTensor(format=WeightFormat.FP32, codes=matrix, shape=(matrix.shape[0], matrix.shape[1]))
