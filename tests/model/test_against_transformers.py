"""Plain numerics give the logits of transformers' fp32 DeepSeek-V4."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from dsv4_kernels.cache import CacheRows
from dsv4_kernels.dispatch import bind
from hf_oracle import HfSource, hf_logits, make_oracle, random_tokens, tolerance
from model_rig import Driver
from torch import Tensor
from transformers import DeepseekV4ForCausalLM

from dsv4_backend.config import LayerKind, ModelConfig, Numerics
from dsv4_backend.model import StepInputs, Transformer
from dsv4_backend.model.indexer import TopEntries

REAL_HEADS: dict[str, Any] = {
    "hidden_size": 128,
    "head_dim": 512,
    "qk_rope_head_dim": 64,
    "q_lora_rank": 64,
    "index_head_dim": 128,
    "num_hidden_layers": 3,
    "compress_ratios": [0, 4, 128],
}
FLASH_LIKE = {"num_hidden_layers": 7, "compress_ratios": [0, 0, 4, 128, 4, 128, 4, 0], "num_hash_layers": 3}
PRO_LIKE = {"num_hidden_layers": 7, "compress_ratios": [128, 128, 4, 128, 4, 128, 4, 0], "num_hash_layers": 3}
CONFIGS: dict[str, dict[str, Any]] = {
    "real_heads": REAL_HEADS,
    "flash_like": FLASH_LIKE,
    "pro_like": PRO_LIKE,
    "hash_layers_only": {"num_hash_layers": 4},
    "no_hash_layers": {"num_hash_layers": 0},
    "clamped": {"swiglu_limit": 0.05},
    "window_of_16": {"sliding_window": 16},
    "other_rates": {"compress_rates": {"compressed_sparse_attention": 8, "heavily_compressed_attention": 32}},
    "without_yarn": {"rope_scaling": None},
    "64_index_heads": {"index_n_heads": 64, "index_head_dim": 64},
    "chosen_entries": {"index_topk": 12, "num_hidden_layers": 3, "compress_ratios": [4, 128, 4]},
}


class GivenEntries:
    """Chooses what transformers chose. Shapes: per layer [T, K], by position; -1 = none."""

    def __init__(self, chosen: dict[int, Tensor]) -> None:
        self.chosen = chosen

    def __call__(
        self, layer_id: int, query: Tensor, head_weights: Tensor, keys: CacheRows, inputs: StepInputs
    ) -> Tensor:
        return self.chosen[layer_id][inputs.positions]


def load_plain(model: DeepseekV4ForCausalLM, config: ModelConfig) -> Transformer:
    return Transformer.load(config, HfSource(model), bind("cpu"), Numerics.PLAIN)


def chosen_by_transformers(
    model: DeepseekV4ForCausalLM, config: ModelConfig, tokens: list[int]
) -> tuple[Tensor, dict[int, Tensor]]:
    """Logits, and the indexer's output of every CSA layer."""
    chosen: dict[int, Tensor] = {}
    hooks = []
    for layer_id in config.layer_ids(LayerKind.CSA):
        indexer = model.model.layers[layer_id].self_attn.compressor.indexer
        hooks.append(
            indexer.register_forward_hook(
                lambda module, inputs, output, layer_id=layer_id: chosen.__setitem__(layer_id, output[0])
            )
        )
    logits = hf_logits(model, tokens)
    for hook in hooks:
        hook.remove()
    return logits, chosen


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_of_600_tokens_equal_those_of_transformers(name: str) -> None:
    assert_logits_equal(name, seed=100 + list(CONFIGS).index(name), chunks=[600])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_of_600_tokens_in_chunks_equal_those_of_transformers_for_any_weights(name: str, seed: int) -> None:
    assert_logits_equal(name, seed, chunks=[250, 101, 249])


def assert_logits_equal(name: str, seed: int, chunks: list[int]) -> None:
    model, config = make_oracle(seed, **CONFIGS[name])
    tokens = random_tokens(sum(chunks), seed)
    assert_close(Driver(load_plain(model, config)).run(tokens, chunks), hf_logits(model, tokens))


def test_logits_of_a_long_prompt_equal_those_of_transformers_with_the_same_entries() -> None:
    model, config = make_oracle(8, index_topk=32)
    tokens = random_tokens(1500, 8)
    expected, chosen = chosen_by_transformers(model, config, tokens)
    assert_close(
        Driver(load_plain(model, config), selector=GivenEntries(chosen)).run(tokens, [512, 512, 476]), expected
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flash_like", "pro_like", "real_heads"])
def test_logits_of_3000_tokens_equal_those_of_transformers_with_the_same_entries(name: str) -> None:
    model, config = make_oracle(9, **(CONFIGS[name] | {"index_topk": 64}))
    tokens = random_tokens(3000, 9)
    expected, chosen = chosen_by_transformers(model, config, tokens)
    driver = Driver(load_plain(model, config), num_pages=32, selector=GivenEntries(chosen))
    assert_close(driver.run(tokens, [1000, 1000, 1000]), expected)


def test_the_indexer_chooses_the_entries_that_transformers_chooses() -> None:
    model, config = make_oracle(10, index_topk=16, num_hidden_layers=1, compress_ratios=[4])
    tokens = random_tokens(400, 10)
    _, chosen = chosen_by_transformers(model, config, tokens)
    own = RecordedEntries(load_plain(model, config))
    Driver(own.model, selector=own).run(tokens)
    assert torch.equal(own.chosen.sort(1).values, chosen[0].sort(1).values)


class RecordedEntries:
    """The model's own choice, kept for comparison."""

    def __init__(self, model: Transformer) -> None:
        self.model = model
        self.select = TopEntries(model.ops, model.config.index_topk)
        self.chosen = torch.empty(0)

    def __call__(
        self, layer_id: int, query: Tensor, head_weights: Tensor, keys: CacheRows, inputs: StepInputs
    ) -> Tensor:
        self.chosen = self.select(layer_id, query, head_weights, keys, inputs)
        return self.chosen


@pytest.mark.parametrize("name", ["real_heads", "flash_like"])
def test_greedy_tokens_equal_those_of_transformers_where_the_margin_exceeds_the_tolerance(name: str) -> None:
    model, config = make_oracle(11, **CONFIGS[name])
    tokens = random_tokens(300, 11)
    expected = hf_logits(model, tokens)
    got = Driver(load_plain(model, config)).run(tokens)
    best = expected.topk(2, dim=1).values
    is_clear = best[:, 0] - best[:, 1] > 2 * tolerance(expected)
    assert torch.equal(got.argmax(1)[is_clear], expected.argmax(1)[is_clear])


def test_every_tensor_of_the_backbone_is_taken_once() -> None:
    model, config = make_oracle(12, num_hash_layers=2)
    source = HfSource(model)
    Transformer.load(config, source, bind("cpu"), Numerics.PLAIN)
    num_experts = config.num_layers * 3 * config.num_experts
    merged = 2 * config.num_layers  # transformers keeps all experts of a layer in two tensors
    stored = [name for name in model.state_dict() if "inv_freq" not in name]
    assert len(source.asked) == len(set(source.asked)) == len(stored) - merged + num_experts


def assert_close(got: Tensor, expected: Tensor) -> None:
    difference = float((got - expected).abs().max())
    assert difference <= tolerance(expected), f"logits differ by {difference:.2e}"
