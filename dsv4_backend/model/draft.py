"""The draft models: MTP, one block behind the backbone's streams, and DSpark, three stages that fill a block at once.

Their windows stand behind those of the backbone in the cache: stage s is layer num_layers + s.
Source: shared facts `deepseek_v4.md` 2.10, `dspark.md` sections 3 to 6.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dsv4_backend.config import ModelConfig
from dsv4_backend.model.draft_weights import DsparkWeights, MtpWeights
from dsv4_backend.model.shared import SharedSteps
from dsv4_backend.model.step import StepCache, StepInputs
from dsv4_backend.model.transformer import Layer, Transformer
from dsv4_backend.model.weights import LayerWeights


class MtpBlock:
    """One decoder layer that reads the streams of a position and the token after it, and foretells the one after that.

    Rule: fed with its own streams of the position before, it foretells one token further.
    """

    def __init__(self, model: Transformer, weights: MtpWeights) -> None:
        self._model = model
        self._weights = weights
        self._stage = _Stages(model, (weights.layer,))

    @torch.inference_mode()
    def __call__(self, streams: Tensor, inputs: StepInputs, cache: StepCache) -> Tensor:
        """Run the block at inputs.positions; inputs.token_ids are the tokens after them.

        Shapes: streams [T, N, d], returned alike.
        """
        weights, model = self._weights, self._model
        num_tokens, num_streams, width = streams.shape
        ahead = model.ops.rms_norm(model.weights.embed[inputs.token_ids], weights.enorm, model.config.norm_eps)
        flat = model.ops.rms_norm(streams.reshape(-1, width), weights.hnorm, model.config.norm_eps)
        hidden = model.rounding.linear(flat, weights.h_proj).view(num_tokens, num_streams, width)
        mixed = hidden + model.rounding.linear(ahead, weights.e_proj)[:, None]
        return self._stage.run(mixed, inputs, cache)

    @torch.inference_mode()
    def logits(self, streams: Tensor) -> Tensor:
        """Shapes: streams [R, N, d]; returns [R, V], of the token after the one that the block read."""
        return _head(self._model, self._model.hyper.join(streams, self._weights.hc_head), self._weights.norm)


@dataclass(frozen=True, slots=True)
class BlockGuess:
    """What DSpark's stages say of a block. Shapes: base [R, B, V] logits without the Markov bias; hidden [R, B, d]."""

    base: Tensor
    hidden: Tensor


class DsparkBlock:
    """Stages that attend to features of the backbone's layers, and fill a block of B tokens without causal order.

    The heads then go through the block token by token: a Markov bias from the token before, and the confidence that
    the backbone will accept it.
    """

    def __init__(self, model: Transformer, weights: DsparkWeights) -> None:
        self._model = model
        self._weights = weights
        self._stages = _Stages(model, weights.layers)
        self._noise_id = model.config.draft.noise_token_id
        self.block_tokens = model.config.draft.block_tokens

    @torch.inference_mode()
    def keep(self, taps: Tensor, inputs: StepInputs, cache: StepCache) -> None:
        """Write the context of positions that the backbone has computed. Shapes: taps [T, L*d]."""
        model = self._model
        features = model.rounding.linear(taps, self._weights.main_proj)
        self._stages.keep(model.ops.rms_norm(features, self._weights.main_norm, model.config.norm_eps), inputs, cache)

    @torch.inference_mode()
    def guess(self, anchors: Tensor, inputs: StepInputs, cache: StepCache) -> BlockGuess:
        """Run the stages on blocks that begin with the newest tokens. Shapes: anchors [R]; inputs of R*B tokens."""
        model = self._model
        ids = torch.full((anchors.shape[0], self.block_tokens), self._noise_id, device=anchors.device)
        ids[:, 0] = anchors
        streams = model.hyper.spread(model.weights.embed[ids.view(-1)])
        hidden = model.hyper.join(self._stages.run(streams, inputs, cache), self._weights.hc_head)  # [R*B, d]
        base = _head(model, hidden, self._weights.norm)
        shape = (anchors.shape[0], self.block_tokens, -1)
        return BlockGuess(base=base.view(shape), hidden=hidden.view(shape))

    @torch.inference_mode()
    def bias(self, before: Tensor) -> Tensor:
        """What the token before adds to the logits. Shapes: before [R]; returns [R, V]."""
        return self._model.ops.linear(self._weights.markov_w1[before], self._weights.markov_w2.weight)

    @torch.inference_mode()
    def confidence(self, hidden: Tensor, before: Tensor) -> Tensor:
        """The chance that a token is accepted if those before it are.

        Shapes: hidden [R, d]; before [R]; returns [R].
        """
        features = torch.cat([hidden, self._weights.markov_w1[before]], dim=1)
        return torch.sigmoid((features * self._weights.confidence).sum(1))


class _Stages:
    """Window-only layers behind the backbone."""

    def __init__(self, model: Transformer, weights: tuple[LayerWeights, ...]) -> None:
        config = _extended(model.config)
        self._steps = SharedSteps(config, config.layers[model.config.num_layers :], model.ops, model.placement)
        self._layers = tuple(
            Layer(config, model.config.num_layers + stage, layer, model.ops, model.rounding)
            for stage, layer in enumerate(weights)
        )

    def run(self, streams: Tensor, inputs: StepInputs, cache: StepCache) -> Tensor:
        for layer, step in zip(self._layers, self._steps(inputs, cache), strict=True):
            streams = layer(streams, step)
        return streams

    def keep(self, features: Tensor, inputs: StepInputs, cache: StepCache) -> None:
        for layer, step in zip(self._layers, self._steps(inputs, cache), strict=True):
            layer.attention.keep(features, step)


def _extended(config: ModelConfig) -> ModelConfig:
    """The model with the stages of its draft model as further layers."""
    return replace(config, layers=config.layers + (config.draft.layer,) * config.draft.num_stages)


def _head(model: Transformer, hidden: Tensor, norm: Tensor) -> Tensor:
    normed = model.ops.rms_norm(hidden, norm, model.config.norm_eps)
    return model.rounding.linear(normed, model.weights.head)
