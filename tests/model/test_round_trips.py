"""Trained numerics round where the model was trained with rounding, and nowhere else.

The model runs on operators that record their calls; what enters and leaves each place is compared, bit for bit, with
round trips written here in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from dsv4_kernels.cache import CacheRows
from dsv4_kernels.dispatch import bind
from dsv4_kernels.errors import BindError
from dsv4_kernels.ops import OpTable
from dsv4_kernels.reference.cache import unpack_rows
from dsv4_kernels.tensors import QuantTensor, WeightFormat, quantise_fp8_block, quantise_mxfp4, quantise_nvfp4
from dsv4_kernels.trips import Trip
from hf_oracle import HfSource, make_oracle, random_tokens, stored_fp32
from model_rig import Driver
from torch import Tensor
from transformers import DeepseekV4ForCausalLM

from dsv4_backend.config import LayerKind, ModelConfig, Numerics
from dsv4_backend.model import Transformer
from dsv4_backend.model.numerics import Rounding
from dsv4_backend.model.weights import CompressorWeights, Projection

NUM_TOKENS = 150
RATIOS = {LayerKind.WINDOW: 0, LayerKind.CSA: 4, LayerKind.HCA: 128}
COMPRESSED = [LayerKind.CSA, LayerKind.HCA]
SHAPE: dict[str, Any] = {
    "num_hidden_layers": 1,
    "num_hash_layers": 0,
    "hidden_size": 256,
    "head_dim": 160,
    "qk_rope_head_dim": 32,
    "q_lora_rank": 256,
    "o_groups": 2,
    "o_lora_rank": 128,
    "index_head_dim": 64,
    "index_topk": 8,
    "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 32},
}


def fp8_oracle(x: Tensor, group: int) -> Tensor:
    """e4m3 and back with a power-of-two scale per group. Shapes: x [..., D], D a multiple of the group."""
    groups = x.double().numpy().reshape(-1, group)
    scale = power_of_two_above(np.maximum(np.abs(groups).max(1, keepdims=True), 1e-4) / 448)
    return rounded(groups / scale, smallest_exponent=-6, mantissa_bits=3, largest=448, scale=scale, shape=x.shape)


def fp4_oracle(x: Tensor, group: int) -> Tensor:
    """e2m1 and back with a power-of-two scale per group."""
    groups = x.double().numpy().reshape(-1, group)
    scale = power_of_two_above(np.maximum(np.abs(groups).max(1, keepdims=True), 6 * 2.0**-126) / 6)
    return rounded(groups / scale, smallest_exponent=0, mantissa_bits=1, largest=6, scale=scale, shape=x.shape)


def int8_oracle(x: Tensor, group: int) -> Tensor:
    """Integers up to 127 and back; the scale of a group has 17 significant bits."""
    groups = x.double().numpy().reshape(-1, group)
    scale = (np.maximum(np.abs(groups).max(1, keepdims=True), 127 * 2.0**-126) / 127).astype(np.float32)
    mantissa, exponent = np.frexp(scale.astype(np.float64))
    scale = np.ldexp(np.ceil(np.ldexp(mantissa, 17)), exponent - 17)
    return torch.from_numpy((np.rint((groups / scale).astype(np.float32)) * scale).reshape(x.shape)).float()


def power_of_two_above(x: Any) -> Any:
    """The smallest power of two that is not below x."""
    mantissa, exponent = np.frexp(x)
    return np.ldexp(1.0, np.where(mantissa == 0.5, exponent - 1, exponent))


def rounded(x: Any, *, smallest_exponent: int, mantissa_bits: int, largest: float, scale: Any, shape: Any) -> Tensor:
    """Round to the nearest float of that format, ties to even, saturating; then undo the scale."""
    exponent = np.maximum(np.frexp(x)[1] - 1, smallest_exponent)
    step = np.ldexp(1.0, exponent - mantissa_bits)
    values = np.clip(np.rint(x / step) * step, -largest, largest) * scale
    return torch.from_numpy(values.reshape(shape)).float()


def hadamard_oracle(x: Tensor) -> Tensor:
    """The orthogonal Sylvester transform: entry (i, j) is negative where i and j share an odd number of bits."""
    size = x.shape[-1]
    signs = [[1 - 2 * ((row & column).bit_count() % 2) for column in range(size)] for row in range(size)]
    return x.double() @ torch.tensor(signs, dtype=torch.float64) / size**0.5


@dataclass(frozen=True)
class Call:
    """One use of an operator."""

    name: str
    args: tuple[Any, ...]
    result: Any


class Recording:
    """A model of one layer that has computed one prompt, with every operator call."""

    def __init__(self, kind: LayerKind, numerics: Numerics, store: Callable[[str, Tensor], QuantTensor]) -> None:
        oracle, self.config = make_oracle(31, compress_ratios=[RATIOS[kind]], **SHAPE)
        spread_groups(oracle)
        self.calls: list[Call] = []
        self.model = Transformer.load(self.config, HfSource(oracle, store), self._table(bind("cpu")), numerics)
        self.driver = Driver(self.model)
        self.driver.run(random_tokens(NUM_TOKENS, 31))
        self.layer = self.model.weights.layers[0]

    def _table(self, ops: OpTable) -> OpTable:
        wrapped = {field.name: self._recorded(field.name, getattr(ops, field.name)) for field in fields(ops)}
        return replace(ops, **wrapped)

    def _recorded(self, name: str, op: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            result = op(*args, **kwargs)
            self.calls.append(Call(name, args, result))
            return result

        return call

    def uses(self, name: str) -> list[Call]:
        return [call for call in self.calls if call.name == name]

    def use(self, name: str, weight: object) -> Call:
        """The one call of an operator with that weight."""
        (call,) = [call for call in self.uses(name) if call.args[1] is weight]
        return call

    def input_of(self, projection: Projection) -> Tensor:
        found: Tensor = self.use("linear", projection.weight).args[0]
        return found

    def normed(self, weight: Tensor) -> Tensor:
        found: Tensor = self.use("rms_norm", weight).result
        return found


def spread_groups(oracle: DeepseekV4ForCausalLM) -> None:
    """Give every 32 channels behind a norm another magnitude, so that a wrong group size shows."""
    with torch.no_grad():
        for name, weight in oracle.named_parameters():
            if name.endswith("norm.weight") and "indexer" not in name:  # the transform would even those out
                factors = torch.tensor([1.0, 64.0, 0.125, 8.0]).repeat(8)[: weight.numel() // 32]
                weight.view(-1, 32).mul_(factors[:, None])


@cache
def recording(kind: LayerKind, numerics: Numerics = Numerics.TRAINED, dense: WeightFormat | None = None) -> Recording:
    """A recording over official storage, or with every matrix in one lossless format."""
    return Recording(kind, numerics, stored_official if dense is None else stored_dense[dense])


def stored_official(name: str, matrix: Tensor) -> QuantTensor:
    if ".experts." in name:
        return quantise_mxfp4(matrix)
    is_fp8 = name.endswith(("wq_a", "wq_b", "attn.wkv", "wo_a", "wo_b")) or "shared_experts" in name
    return quantise_fp8_block(matrix) if is_fp8 else stored_bf16(name, matrix)


def stored_bf16(name: str, matrix: Tensor) -> QuantTensor:
    shape = (matrix.shape[0], matrix.shape[1])
    return QuantTensor(format=WeightFormat.BF16, codes=matrix.to(torch.bfloat16), shape=shape)


stored_dense = {WeightFormat.FP32: stored_fp32, WeightFormat.BF16: stored_bf16}


@pytest.fixture(params=list(LayerKind), ids=lambda kind: kind.value)
def run(request: pytest.FixtureRequest) -> Recording:
    return recording(request.param)


def test_first_projections_read_the_normed_hidden_state_in_fp8_groups_of_128(run: Recording) -> None:
    expected = fp8_oracle(run.normed(run.layer.attn_norm), 128)
    assert torch.equal(run.input_of(run.layer.attn.wq_a), expected)
    assert torch.equal(run.input_of(run.layer.attn.wkv), expected)


def test_second_query_projection_reads_the_normed_latent_in_fp8_groups_of_128(run: Recording) -> None:
    assert torch.equal(run.input_of(run.layer.attn.wq_b), fp8_oracle(run.normed(run.layer.attn.q_norm), 128))


def test_last_output_projection_reads_the_joined_groups_in_fp8_groups_of_128(run: Recording) -> None:
    latent = run.use("grouped_linear", run.layer.attn.wo_a.weight).result
    assert torch.equal(run.input_of(run.layer.attn.wo_b), fp8_oracle(latent.flatten(1), 128))


def test_grouped_output_projection_reads_its_input_unrounded(run: Recording) -> None:
    heads = run.uses("sparse_attention")[0].result
    (turned,) = [call.result for call in run.uses("rope_rotate")[-1:]]
    expected = torch.cat([heads[..., : -run.config.rope_dim], turned], dim=-1)
    got = run.use("grouped_linear", run.layer.attn.wo_a.weight).args[0]
    assert torch.equal(got.flatten(1), expected.flatten(1))


@pytest.mark.parametrize("op", ["moe", "gated_mlp"])
def test_experts_read_the_normed_hidden_state_in_fp8_groups_of_128(run: Recording, op: str) -> None:
    (call,) = run.uses(op)
    assert torch.equal(call.args[0], fp8_oracle(run.normed(run.layer.ffn_norm), 128))


@pytest.mark.parametrize("op", ["moe", "gated_mlp"])
def test_experts_are_told_to_round_their_inner_values(run: Recording, op: str) -> None:
    assert run.uses(op)[0].args[-1] is Trip.FP8


def test_router_reads_the_normed_hidden_state_unrounded(run: Recording) -> None:
    assert torch.equal(run.input_of(run.layer.ffn.gate), run.normed(run.layer.ffn_norm))


def test_head_reads_the_last_norm_unrounded(run: Recording) -> None:
    assert torch.equal(run.input_of(run.model.weights.head), run.normed(run.model.weights.norm))


def test_window_keys_are_kept_in_fp8_groups_of_64_but_for_the_rotated_channels(run: Recording) -> None:
    nope = run.config.nope_dim
    computed = run.normed(run.layer.attn.kv_norm)
    kept = stored(run.uses("sparse_attention")[0].args[1].fresh)
    assert torch.equal(kept[:, :nope], fp8_oracle(computed[:, :nope].contiguous(), 64))
    assert torch.equal(kept[:, nope:], rotated_from(run, computed[:, nope:]))


@pytest.mark.parametrize("kind", COMPRESSED)
def test_compressors_read_the_normed_hidden_state_unrounded(kind: LayerKind) -> None:
    run = recording(kind)
    expected = run.normed(run.layer.attn_norm)
    for weights in compressors(run):
        assert torch.equal(run.input_of(weights.wkv), expected)
        assert torch.equal(run.input_of(weights.wgate), expected)


@pytest.mark.parametrize("kind", COMPRESSED)
def test_compressed_entries_are_kept_in_fp8_groups_of_64_but_for_the_rotated_channels(kind: LayerKind) -> None:
    run = recording(kind)
    nope = run.config.nope_dim
    computed = run.normed(compressors(run)[0].norm)
    kept = cached(run, run.uses("sparse_attention")[0].args[2].cache, len(computed))
    assert torch.equal(kept[:, :nope], fp8_oracle(computed[:, :nope].contiguous(), 64))
    assert torch.equal(kept[:, nope:], rotated_from(run, computed[:, nope:]))


def test_index_keys_are_transformed_then_kept_in_fp4_groups_of_32() -> None:
    run = recording(LayerKind.CSA)
    computed = run.normed(compressors(run)[1].norm)
    (transformed,) = [call for call in run.uses("hadamard") if call.args[0].dim() == 2]
    kept = cached(run, run.uses("index_select")[0].args[2], len(computed))
    nope = run.config.index_head_dim - run.config.rope_dim
    assert torch.equal(transformed.args[0][:, :nope], computed[:, :nope])
    torch.testing.assert_close(transformed.result.double(), hadamard_oracle(transformed.args[0]), rtol=0, atol=1e-4)
    assert torch.equal(kept, fp4_oracle(transformed.result, 32))


def test_index_queries_are_transformed_then_rounded_to_fp4_groups_of_32() -> None:
    run = recording(LayerKind.CSA)
    (transformed,) = [call for call in run.uses("hadamard") if call.args[0].dim() == 3]
    torch.testing.assert_close(transformed.result.double(), hadamard_oracle(transformed.args[0]), rtol=0, atol=1e-4)
    assert torch.equal(run.uses("index_select")[0].args[0], fp4_oracle(transformed.result, 32))


def test_index_query_projection_reads_the_normed_latent_in_fp8_groups_of_128() -> None:
    run = recording(LayerKind.CSA)
    assert run.layer.attn.indexer is not None
    expected = fp8_oracle(run.normed(run.layer.attn.q_norm), 128)
    assert torch.equal(run.input_of(run.layer.attn.indexer.wq_b), expected)


def test_index_head_weights_are_computed_unrounded() -> None:
    run = recording(LayerKind.CSA)
    assert run.layer.attn.indexer is not None
    assert torch.equal(run.input_of(run.layer.attn.indexer.weights_proj), run.normed(run.layer.attn_norm))


def test_a_bf16_checkpoint_keeps_only_the_round_trips_of_caches_and_index() -> None:
    run = recording(LayerKind.CSA, dense=WeightFormat.BF16)
    groups = sorted(call.args[1] for call in run.uses("fp8_round_trip"))
    assert (groups, len(run.uses("fp4_round_trip")), len(run.uses("hadamard"))) == ([64, 64], 2, 2)
    assert [run.uses(op)[0].args[-1] for op in ("moe", "gated_mlp")] == [False, False]


@pytest.mark.parametrize("kind", list(LayerKind))
def test_plain_numerics_round_nothing_even_where_weights_are_quantised(kind: LayerKind) -> None:
    run = recording(kind, Numerics.PLAIN)
    assert [run.uses(op) for op in ("fp8_round_trip", "fp4_round_trip", "hadamard")] == [[], [], []]
    assert [run.uses(op)[0].args[-1] for op in ("moe", "gated_mlp")] == [False, False]


@pytest.mark.parametrize("quantise", [quantise_fp8_block, quantise_nvfp4], ids=["fp8", "nvfp4"])
def test_experts_in_any_quantised_format_read_fp8(quantise: Callable[[Tensor], QuantTensor]) -> None:
    def store(name: str, matrix: Tensor) -> QuantTensor:
        return quantise(matrix) if ".experts." in name else stored_bf16(name, matrix)

    run = Recording(LayerKind.WINDOW, Numerics.TRAINED, store)
    (call,) = run.uses("moe")
    assert torch.equal(call.args[0], fp8_oracle(run.normed(run.layer.ffn_norm), 128))
    assert call.args[-1] is Trip.FP8


@pytest.mark.parametrize("quantise", [quantise_mxfp4, quantise_nvfp4], ids=["mxfp4", "nvfp4"])
def test_w4a8_gives_fp4_weights_int8_inputs_and_all_else_what_it_was_trained_with(
    quantise: Callable[[Tensor], QuantTensor],
) -> None:
    def store(name: str, matrix: Tensor) -> QuantTensor:
        return quantise(matrix) if ".experts." in name or name.endswith("wq_b") else stored_official(name, matrix)

    run = Recording(LayerKind.CSA, Numerics.W4A8, store)
    attn, normed = run.layer.attn, run.normed(run.layer.ffn_norm)
    ((routed,), (shared,)) = run.uses("moe"), run.uses("gated_mlp")
    assert (routed.args[-1], shared.args[-1]) == (Trip.INT8, Trip.FP8)
    assert torch.equal(routed.args[0], int8_oracle(normed, 32))
    assert torch.equal(shared.args[0], fp8_oracle(normed, 128))
    assert torch.equal(run.input_of(attn.wq_a), fp8_oracle(run.normed(run.layer.attn_norm), 128))
    latent = int8_oracle(run.normed(attn.q_norm), 32)
    assert attn.indexer is not None
    assert all(torch.equal(run.input_of(weight), latent) for weight in (attn.wq_b, attn.indexer.wq_b))
    assert sorted(call.args[1] for call in run.uses("fp8_round_trip")) == [64, 64, 128, 128, 128, 128]
    assert (len(run.uses("fp4_round_trip")), len(run.uses("hadamard"))) == (2, 2)


def test_w4a8_is_refused_at_start_by_operators_without_int8() -> None:
    def refuse(_x: Tensor, _group: int) -> Tensor:
        raise BindError("no int8")

    with pytest.raises(BindError, match="no int8"):
        Rounding(replace(bind("cpu"), int8_round_trip=refuse), Numerics.W4A8)


def compressors(run: Recording) -> list[CompressorWeights]:
    """The main compressor, then the indexer's."""
    attn = run.layer.attn
    indexer = [] if attn.indexer is None else [attn.indexer.compressor]
    return ([] if attn.compressor is None else [attn.compressor]) + indexer


def rotated_from(run: Recording, channels: Tensor) -> Tensor:
    """What the rotation made of these channels."""
    matches = [call for call in run.uses("rope_rotate") if torch.equal(call.args[0], channels)]
    (call,) = matches
    result: Tensor = call.result
    return result


def stored(cache: CacheRows) -> Tensor:
    """What all rows of a cache are worth."""
    return unpack_rows(cache, torch.arange(cache.num_rows))


def cached(run: Recording, entries: CacheRows, count: int) -> Tensor:
    """The first entries of the sequence; its pages were granted in ascending order from an empty pool."""
    assert count == NUM_TOKENS // next(layer.ratio for layer in run.config.layers)
    return stored(entries)[:count]


def test_the_recorded_shapes_span_several_groups() -> None:
    config: ModelConfig = recording(LayerKind.CSA).config
    assert (config.hidden_size, config.q_lora_rank, config.o_groups * config.o_lora_rank) == (256, 256, 256)
    assert (config.nope_dim, config.index_head_dim) == (128, 64)
