"""Trainable weights by their official names, experts of a layer stacked, and how they start.

Rule: `…ffn.experts.w13` [E, 2I, d] holds w1 above w3 of every expert, `…ffn.experts.w2` [E, d, I]; all other names are
      official. Router biases and tid2eid are buffers: no gradient reaches them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from dsv4_backend.checkpoint.layout import Layout, Storage
from dsv4_backend.checkpoint.names import Weight, model_weights
from dsv4_backend.config import ModelConfig

Weights = dict[str, Tensor]
PLAIN = Layout(is_dense_fp8=False, experts=Storage.BF16, draft_experts=Storage.BF16)
QUANTISED = Layout(is_dense_fp8=True, experts=Storage.MXFP4, draft_experts=Storage.MXFP4)
_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(w[123])\.weight")
_BUFFERS = ("gate.bias", "tid2eid")
EMBEDDING_DEVIATION = 0.5


def initial_weights(config: ModelConfig, seed: int) -> Weights:
    """Return all weights at the start of training; those that are trained require a gradient."""
    generator = torch.Generator().manual_seed(seed)
    weights: Weights = {}
    for weight in model_weights(config, PLAIN):
        expert = _EXPERT.fullmatch(weight.name)
        if expert is None:
            weights[weight.name] = _initial(weight, config, generator)
        elif expert[2] == "0" and expert[3] != "w3":
            shape = (config.num_experts, *weight.shape)
            if expert[3] == "w1":
                shape = (config.num_experts, 2 * config.moe_size, config.hidden_size)
            name = f"{expert[1]}.{'w13' if expert[3] == 'w1' else 'w2'}"
            weights[name] = torch.randn(shape, generator=generator) / math.sqrt(shape[-1])
    # A head that starts as the embedding can name what attention copies, for every token at once.
    weights["head.weight"] = weights["embed.weight"] * (1 / (EMBEDDING_DEVIATION * math.sqrt(config.hidden_size)))
    for name, tensor in weights.items():
        tensor.requires_grad_(not is_buffer(name))
    return weights


def is_buffer(name: str) -> bool:
    """Whether no gradient reaches a weight."""
    return name.endswith(_BUFFERS)


def official(weights: Mapping[str, Tensor], name: str) -> Tensor:
    """Return one weight by its official name. Raises: KeyError if the model lacks it."""
    expert = _EXPERT.fullmatch(name)
    if expert is None:
        return weights[name].detach()
    prefix, index, part = expert[1], int(expert[2]), expert[3]
    if part == "w2":
        return weights[f"{prefix}.w2"].detach()[index]
    return weights[f"{prefix}.w13"].detach()[index].chunk(2)[0 if part == "w1" else 1]


def _initial(weight: Weight, config: ModelConfig, generator: torch.Generator) -> Tensor:
    name, shape = weight.name, weight.shape
    if name.endswith("tid2eid"):
        return torch.rand((shape[0], config.num_experts), generator=generator).topk(shape[1]).indices
    if name.endswith("norm.weight"):
        return torch.ones(shape)
    if name.endswith("_scale"):
        return torch.full(shape, 0.1)
    if name.endswith("_base"):
        return _hyper_base(name, shape, config.hc_mult)
    if name.endswith(("gate.bias", "attn_sink", ".ape")):
        return torch.zeros(shape)
    deviation = EMBEDDING_DEVIATION if name == "embed.weight" else 1 / math.sqrt(shape[-1])
    return torch.randn(shape, generator=generator) * deviation


def _hyper_base(name: str, shape: tuple[int, ...], num_streams: int) -> Tensor:
    """Start sublayers as readers of one stream each, in turn, that write to all; streams keep to themselves."""
    if shape[0] == num_streams:  # head mixing
        return torch.zeros(shape)
    found = re.search(r"\.(\d+)\.hc_(attn|ffn)", name)
    sublayer = 0 if found is None else 2 * int(found[1]) + (found[2] == "ffn")
    pre = torch.full((num_streams,), -2.0)
    pre[sublayer % num_streams] = 2.0
    comb = torch.eye(num_streams) * 4.0
    return torch.cat([pre, torch.zeros(num_streams), comb.flatten()])
