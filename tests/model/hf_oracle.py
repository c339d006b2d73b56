"""transformers' DeepSeek-V4 as an oracle: tiny random models, and their weights under the official names."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from dsv4_kernels.tensors import QuantTensor, WeightFormat
from torch import Tensor
from transformers import DeepseekV4Config, DeepseekV4ForCausalLM

from dsv4_backend.config import ModelConfig, parse_model_config

YARN = {
    "rope_type": "yarn",
    "factor": 16,
    "original_max_position_embeddings": 65536,
    "beta_fast": 32,
    "beta_slow": 1,
}
TINY: dict[str, Any] = {
    "model_type": "deepseek_v4",
    "vocab_size": 97,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "compress_ratios": [0, 4, 128, 4],
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "qk_rope_head_dim": 16,
    "q_lora_rank": 32,
    "o_groups": 2,
    "o_lora_rank": 16,
    "sliding_window": 128,
    "index_n_heads": 32,
    "index_head_dim": 32,
    "index_topk": 256,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 1,
    "moe_intermediate_size": 32,
    "routed_scaling_factor": 1.5,
    "scoring_func": "sqrtsoftplus",
    "num_hash_layers": 1,
    "num_nextn_predict_layers": 0,
    "swiglu_limit": 10.0,
    "rope_theta": 10000,
    "compress_rope_theta": 160000,
    "rope_scaling": YARN,
    "max_position_embeddings": 4096,
}

_PARTS = {
    "attn.wq_a": "self_attn.q_a_proj",
    "attn.wq_b": "self_attn.q_b_proj",
    "attn.wkv": "self_attn.kv_proj",
    "attn.wo_a": "self_attn.o_a_proj",
    "attn.wo_b": "self_attn.o_b_proj",
    "attn.q_norm": "self_attn.q_a_norm",
    "attn.kv_norm": "self_attn.kv_norm",
    "attn.attn_sink": "self_attn.sinks",
    "attn.compressor.wkv": "self_attn.compressor.kv_proj",
    "attn.compressor.wgate": "self_attn.compressor.gate_proj",
    "attn.compressor.ape": "self_attn.compressor.position_bias",
    "attn.compressor.norm": "self_attn.compressor.kv_norm",
    "attn.indexer.wq_b": "self_attn.compressor.indexer.q_b_proj",
    "attn.indexer.weights_proj": "self_attn.compressor.indexer.scorer.weights_proj",
    "attn.indexer.compressor.wkv": "self_attn.compressor.indexer.kv_proj",
    "attn.indexer.compressor.wgate": "self_attn.compressor.indexer.gate_proj",
    "attn.indexer.compressor.ape": "self_attn.compressor.indexer.position_bias",
    "attn.indexer.compressor.norm": "self_attn.compressor.indexer.kv_norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn.gate": "mlp.gate",
    "ffn.gate.bias": "mlp.gate.e_score_correction_bias",
    "ffn.gate.tid2eid": "mlp.gate.tid2eid",
    "ffn.shared_experts.w1": "mlp.shared_experts.gate_proj",
    "ffn.shared_experts.w2": "mlp.shared_experts.down_proj",
    "ffn.shared_experts.w3": "mlp.shared_experts.up_proj",
} | {f"hc_{site}_{part}": f"{site}_hc.{part}" for site in ("attn", "ffn") for part in ("fn", "base", "scale")}
_TOP = {
    "embed": "model.embed_tokens",
    "head": "lm_head",
    "norm": "model.norm",
    "hc_head_fn": "model.hc_head.hc_fn",
    "hc_head_base": "model.hc_head.hc_base",
    "hc_head_scale": "model.hc_head.hc_scale",
}


def make_oracle(seed: int, **changes: Any) -> tuple[DeepseekV4ForCausalLM, ModelConfig]:
    """A tiny model with every parameter and buffer random, and its config as this project reads it."""
    values = TINY | changes
    own = parse_model_config(dict(values))
    hf_config = DeepseekV4Config(**values, attn_implementation="eager", experts_implementation="eager")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = DeepseekV4ForCausalLM(hf_config).eval()
        for name, tensor in list(model.named_parameters()) + list(model.named_buffers()):
            if "inv_freq" not in name:
                _randomise(name, tensor.data, own)
    return model, own


def _randomise(name: str, tensor: Tensor, config: ModelConfig) -> None:
    if name.endswith("tid2eid"):
        rows = [torch.randperm(config.num_experts)[: config.num_active_experts] for _ in range(config.vocab_size)]
        tensor.copy_(torch.stack(rows))
    elif "norm" in name:
        tensor.normal_(1.0, 0.2)
    elif name.endswith(("scale", "hc_scale")):
        tensor.uniform_(0.5, 1.5)
    elif name.endswith(("sinks", "base", "hc_base", "position_bias")):
        tensor.normal_(0.0, 0.5)
    elif name.endswith("e_score_correction_bias"):
        tensor.normal_(0.0, 0.1)
    elif "embed_tokens" in name:
        tensor.normal_()
    else:
        tensor.normal_(0.0, tensor.shape[-1] ** -0.5)


class HfSource:
    """A transformers model as a WeightSource. `store` turns a float32 matrix into what the checkpoint would hold."""

    def __init__(self, model: DeepseekV4ForCausalLM, store: Callable[[str, Tensor], QuantTensor] | None = None) -> None:
        self.state = model.state_dict()
        self.store = store or stored_fp32
        self.asked: list[str] = []

    def dense(self, name: str) -> Tensor:
        """A small tensor by its official name."""
        self.asked.append(name)
        return self._tensor(name).clone()

    def linear(self, name: str) -> QuantTensor:
        """A matrix by its official name, without `.weight`."""
        self.asked.append(f"{name}.weight")
        return self.store(name, self._tensor(f"{name}.weight").contiguous())

    def _tensor(self, name: str) -> Tensor:
        expert = re.fullmatch(r"layers\.(\d+)\.ffn\.experts\.(\d+)\.(w[123])\.weight", name)
        if expert:
            layer, index, part = expert.groups()
            prefix = f"model.layers.{layer}.mlp.experts"
            if part == "w2":
                return self.state[f"{prefix}.down_proj"][int(index)]
            half = self.state[f"{prefix}.gate_up_proj"][int(index)].chunk(2)
            return half[0 if part == "w1" else 1]
        return self.state[hf_name(name)]


def hf_name(name: str) -> str:
    """The transformers name of an official tensor other than a routed expert's."""
    stem = name.removesuffix(".weight")
    suffix = name[len(stem) :]
    layer = re.match(r"layers\.(\d+)\.", stem)
    if layer is None:
        return _TOP[stem] + suffix
    return f"model.layers.{layer[1]}.{_PARTS[stem[layer.end() :]]}{suffix}"


def stored_fp32(name: str, matrix: Tensor) -> QuantTensor:
    """Store without loss."""
    return QuantTensor(format=WeightFormat.FP32, codes=matrix, shape=(matrix.shape[0], matrix.shape[1]))


def hf_logits(model: DeepseekV4ForCausalLM, token_ids: list[int]) -> Tensor:
    """Logits of every position of one prompt. Shapes: [T, V]."""
    with torch.no_grad():
        logits: Tensor = model(torch.tensor([token_ids]), use_cache=False).logits
    return logits[0]


def tolerance(expected: Tensor) -> float:
    """The project's bound on the largest logit difference in fp32."""
    return 2e-5 * max(1.0, float(expected.abs().max()) / 4)


def random_tokens(count: int, seed: int, vocab_size: int = TINY["vocab_size"]) -> list[int]:
    """A prompt."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocab_size, (count,), generator=generator).tolist()
