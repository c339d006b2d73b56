"""Every weight of a DeepSeek-V4 checkpoint by its official name, derived from the config.

    ModelConfig + Layout ─ model_weights ─► Weight (what the model has) ─ stored_tensors ─► TensorSpec (what files hold)

Source: facts `deepseek_v4.md` sections 3.1 and 3.4, `dspark.md` section 2; the tests hold the released counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from dsv4_backend.checkpoint.layout import Layout, Storage, layout_of
from dsv4_backend.config import DraftKind, LayerKind, LayerSpec, ModelConfig
from dsv4_backend.errors import ConfigError
from dsv4_backend.parallel import Role

FP8_BLOCK = 128
FP4_GROUPS = {Storage.MXFP4: 32, Storage.NVFP4: 16}
DRAFT_RULE = "draft: mtp.* is loaded where drafter is mtp or dspark"
INPUT_SCALE_RULE = "activation scale: experts' *.input_scale is not used, activations keep their precision"


@dataclass(frozen=True, slots=True)
class Weight:
    """One weight of the model, however it is stored.

    Rule: name is the official name of the tensor that holds its elements or codes; is_matmul says that tokens are
          multiplied with it; expert is the routed expert's id, or None.
    """

    name: str
    shape: tuple[int, ...]
    storage: Storage
    role: Role = Role.REPLICATED
    is_matmul: bool = False
    expert: int | None = None

    @property
    def is_draft(self) -> bool:
        """Part of the MTP block or of DSpark."""
        return self.name.startswith("mtp.")

    @property
    def num_parameters(self) -> int:
        """Elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor as a file holds it. `skip` names the rule by which it is not loaded, empty if it is."""

    shape: tuple[int, ...]
    dtypes: tuple[str, ...]
    role: Role
    skip: str = ""
    expert: int | None = None


def expected_tensors(config: ModelConfig, layout: Layout | None = None) -> dict[str, TensorSpec]:
    """Return every tensor that the config announces, draft tensors included.

    Raises: ConfigError if a width does not divide into FP4 groups.
    """
    layout = layout or layout_of(config)
    _check_groups(config, layout)
    specs: dict[str, TensorSpec] = {}
    for weight in model_weights(config, layout):
        specs.update(stored_tensors(weight, layout))
    return specs


def model_weights(config: ModelConfig, layout: Layout) -> Iterator[Weight]:
    """Yield every weight in reading order: embedding, layers, head, draft."""
    names = _Names(config, layout)
    yield Weight("embed.weight", (config.vocab_size, config.hidden_size), Storage.BF16, Role.VOCAB_ROWS)
    for index, layer in enumerate(config.layers):
        yield from names.layer(f"layers.{index}", layer)
    yield from names.head_mixing("")
    yield names.plain_matrix("head", config.vocab_size, config.hidden_size, Role.VOCAB_ROWS)
    if config.draft.kind is not DraftKind.NONE:
        yield from names.draft()


def stored_tensors(weight: Weight, layout: Layout) -> Iterator[tuple[str, TensorSpec]]:
    """Yield the tensors that hold one weight, its codes first."""
    draft = DRAFT_RULE if weight.is_draft else ""

    def spec(shape: tuple[int, ...], *dtypes: str, role: Role = weight.role, skip: str = "") -> TensorSpec:
        return TensorSpec(shape, dtypes, role, skip or draft, weight.expert)

    codes, prefix = weight.name, weight.name.removesuffix(".weight")
    if weight.storage in (Storage.F32, Storage.BF16, Storage.I64):
        yield codes, spec(weight.shape, *_plain_types(weight.storage, layout))
        return
    rows, columns = weight.shape
    if weight.storage is Storage.FP8:
        yield codes, spec((rows, columns), "F8_E4M3")
        yield f"{prefix}.scale", spec((-(-rows // FP8_BLOCK), -(-columns // FP8_BLOCK)), *_fp8_scale_types(layout))
        return
    groups = -(-columns // FP4_GROUPS[weight.storage])
    if weight.storage is Storage.MXFP4:
        yield codes, spec((rows, columns // 2), "I8", "U8")
        yield f"{prefix}.scale", spec((rows, groups), "F8_E8M0")
        return
    yield codes, spec((rows, columns // 2), "U8")
    yield f"{prefix}.weight_scale", spec((rows, groups), "F8_E4M3")
    yield f"{prefix}.weight_scale_2", spec((), "F32", role=Role.REPLICATED)
    yield f"{prefix}.input_scale", spec((), "F32", role=Role.REPLICATED, skip=INPUT_SCALE_RULE)


def _check_groups(config: ModelConfig, layout: Layout) -> None:
    used = {layout.experts, layout.draft_experts} | ({Storage.NVFP4} if layout.nvfp4 else set())
    for storage, group in FP4_GROUPS.items():
        for name, size in (("hidden_size", config.hidden_size), ("moe_intermediate_size", config.moe_size)):
            if storage in used and size % group:
                raise ConfigError(f"{name} is {size} but must be a multiple of {group} (one {storage.value} group).")


def _plain_types(storage: Storage, layout: Layout) -> tuple[str, ...]:
    """The release's own type; an unquantised checkpoint may hold BF16 or F32 anywhere."""
    if storage is Storage.I64:
        return ("I64", "I32")
    if layout.is_plain:
        return ("BF16", "F32") if storage is Storage.BF16 else ("F32", "BF16")
    return ("BF16",) if storage is Storage.BF16 else ("F32",)


def _fp8_scale_types(layout: Layout) -> tuple[str, ...]:
    """Base models, whose experts are FP8 too, are said to hold float32 scales; they must be powers of two."""
    return ("F8_E8M0", "F32") if layout.experts is Storage.FP8 else ("F8_E8M0",)


class _Names:
    """Builds the weights of one config; a method yields one block of the tables in the facts."""

    def __init__(self, config: ModelConfig, layout: Layout) -> None:
        self.config = config
        self.layout = layout

    def layer(self, prefix: str, layer: LayerSpec) -> Iterator[Weight]:
        """One decoder layer: mHC, attention, experts."""
        yield self.norm(f"{prefix}.attn_norm", self.config.hidden_size)
        yield self.norm(f"{prefix}.ffn_norm", self.config.hidden_size)
        for part in ("attn", "ffn"):
            streams = self.config.hc_mult
            yield from self.hyper(f"{prefix}.hc_{part}", (2 + streams) * streams, 3)
        yield from self.attention(f"{prefix}.attn")
        if layer.kind is not LayerKind.WINDOW:
            copies = 2 if layer.kind is LayerKind.CSA else 1
            yield from self.compressor(f"{prefix}.attn.compressor", layer.ratio, copies, self.config.head_dim)
        if layer.kind is LayerKind.CSA:
            yield from self.indexer(f"{prefix}.attn.indexer", layer.ratio)
        yield from self.moe(f"{prefix}.ffn", is_hash_routed=layer.is_hash_routed)

    def attention(self, prefix: str) -> Iterator[Weight]:
        """Low-rank queries, the one key/value head, sinks, grouped output."""
        config = self.config
        width, out = config.num_heads * config.head_dim, config.o_groups * config.o_lora_rank
        yield Weight(f"{prefix}.attn_sink", (config.num_heads,), Storage.F32, Role.HEAD_ROWS)
        yield self.matrix(f"{prefix}.wq_a", config.q_lora_rank, config.hidden_size)
        yield self.norm(f"{prefix}.q_norm", config.q_lora_rank)
        yield self.matrix(f"{prefix}.wq_b", width, config.q_lora_rank, Role.HEAD_ROWS)
        yield self.matrix(f"{prefix}.wkv", config.head_dim, config.hidden_size)
        yield self.norm(f"{prefix}.kv_norm", config.head_dim)
        yield self.matrix(f"{prefix}.wo_a", out, width // config.o_groups, Role.GROUP_ROWS)
        yield self.matrix(f"{prefix}.wo_b", config.hidden_size, out, Role.GROUP_COLUMNS)

    def compressor(self, prefix: str, ratio: int, copies: int, width: int) -> Iterator[Weight]:
        """Pools `ratio` tokens into one entry; overlapping ones have two series (copies)."""
        yield self.plain_matrix(f"{prefix}.wkv", copies * width, self.config.hidden_size)
        yield self.plain_matrix(f"{prefix}.wgate", copies * width, self.config.hidden_size)
        yield Weight(f"{prefix}.ape", (ratio, copies * width), Storage.F32)
        yield self.norm(f"{prefix}.norm", width)

    def indexer(self, prefix: str, ratio: int) -> Iterator[Weight]:
        """Scores compressed entries; owns a compressor for its keys."""
        config = self.config
        yield self.matrix(f"{prefix}.wq_b", config.index_heads * config.index_head_dim, config.q_lora_rank)
        yield self.plain_matrix(f"{prefix}.weights_proj", config.index_heads, config.hidden_size)
        yield from self.compressor(f"{prefix}.compressor", ratio, 2, config.index_head_dim)

    def moe(self, prefix: str, *, is_hash_routed: bool) -> Iterator[Weight]:
        """Router, routed experts, shared expert."""
        config = self.config
        yield self.plain_matrix(f"{prefix}.gate", config.num_experts, config.hidden_size)
        if is_hash_routed:
            yield Weight(f"{prefix}.gate.tid2eid", (config.vocab_size, config.num_active_experts), Storage.I64)
        else:
            yield Weight(f"{prefix}.gate.bias", (config.num_experts,), Storage.F32)
        for expert in range(config.num_experts):
            for part, (rows, columns, role) in self._parts(config.moe_size).items():
                storage = self.layout.expert(f"{prefix}.experts", expert, part)
                yield Weight(f"{prefix}.experts.{expert}.{part}.weight", (rows, columns), storage, role, True, expert)
        for part, (rows, columns, role) in self._parts(config.moe_size * config.num_shared_experts).items():
            yield self.matrix(f"{prefix}.shared_experts.{part}", rows, columns, role)

    def draft(self) -> Iterator[Weight]:
        """The stages of the draft model: complete ratio-0 layers with a learned router, and what joins them."""
        config, draft = self.config, self.config.draft
        for stage in range(draft.num_stages):
            yield from self.layer(f"mtp.{stage}", draft.layer)
            if draft.kind is DraftKind.MTP:
                for part in ("e", "h"):
                    yield self.matrix(f"mtp.{stage}.{part}_proj", config.hidden_size, config.hidden_size)
                    yield self.norm(f"mtp.{stage}.{part}norm", config.hidden_size)
                yield from self.head_mixing(f"mtp.{stage}.")
        if draft.kind is DraftKind.DSPARK:
            yield from self.dspark()

    def dspark(self) -> Iterator[Weight]:
        """What DSpark has besides its stages."""
        config, draft = self.config, self.config.draft
        last = f"mtp.{draft.num_stages - 1}"
        yield self.matrix("mtp.0.main_proj", config.hidden_size, len(draft.target_layer_ids) * config.hidden_size)
        yield self.norm("mtp.0.main_norm", config.hidden_size)
        yield from self.head_mixing(f"{last}.")
        for part in ("markov_w1", "markov_w2"):
            name = f"{last}.markov_head.{part}"
            yield self.plain_matrix(name, config.vocab_size, draft.markov_rank, Role.VOCAB_ROWS)
        yield self.plain_matrix(f"{last}.confidence_head.proj", 1, config.hidden_size + draft.markov_rank)

    def head_mixing(self, prefix: str) -> Iterator[Weight]:
        """The last norm, and the weights that mix the streams into one."""
        yield self.norm(f"{prefix}norm", self.config.hidden_size)
        yield from self.hyper(f"{prefix}hc_head", self.config.hc_mult, 1)

    def hyper(self, prefix: str, rows: int, num_scales: int) -> Iterator[Weight]:
        """One mHC mapping."""
        width = self.config.hc_mult * self.config.hidden_size
        yield Weight(f"{prefix}_fn", (rows, width), Storage.F32, is_matmul=True)
        yield Weight(f"{prefix}_base", (rows,), Storage.F32)
        yield Weight(f"{prefix}_scale", (num_scales,), Storage.F32)

    def norm(self, prefix: str, width: int) -> Weight:
        """The scale of an RMSNorm."""
        return Weight(f"{prefix}.weight", (width,), Storage.BF16)

    def matrix(self, name: str, rows: int, columns: int, role: Role = Role.REPLICATED) -> Weight:
        """A matrix that the FP8 layouts quantise."""
        return Weight(f"{name}.weight", (rows, columns), self.layout.dense, role, is_matmul=True)

    def plain_matrix(self, name: str, rows: int, columns: int, role: Role = Role.REPLICATED) -> Weight:
        """A matrix that is BF16 in every layout."""
        return Weight(f"{name}.weight", (rows, columns), Storage.BF16, role, is_matmul=True)

    def _parts(self, inner: int) -> dict[str, tuple[int, int, Role]]:
        hidden = self.config.hidden_size
        return {
            "w1": (inner, hidden, Role.INNER_ROWS),
            "w2": (hidden, inner, Role.INNER_COLUMNS),
            "w3": (inner, hidden, Role.INNER_ROWS),
        }
