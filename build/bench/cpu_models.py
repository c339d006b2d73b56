"""Two random V4 checkpoints in the official FP4+FP8 layout, and a way to step a model without scheduler and server.

small   about 40 million parameters: fits the last-level cache, so Python and calls count
large   more than 1.1 GB of packed weights: several times the cache, so memory bandwidth counts
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from dsv4_kernels.cpu.plan import unplanned
from dsv4_kernels.dispatch import bind
from dsv4_kernels.memory import keep_freed_memory
from dsv4_kernels.placement import HOST
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from random_checkpoint import config_values  # noqa: E402 - build/ is no package

from dsv4_backend.checkpoint.load import Checkpoint  # noqa: E402
from dsv4_backend.checkpoint.names import model_weights  # noqa: E402
from dsv4_backend.checkpoint.write import LayoutName, WriteOptions, with_layout, write_checkpoint  # noqa: E402
from dsv4_backend.config import CacheFormat, LayerKind, ServingConfig  # noqa: E402
from dsv4_backend.kv.layout import BLOCK, KINDS, STATE, make_layout  # noqa: E402
from dsv4_backend.kv.manager import CacheManager, CacheRules  # noqa: E402
from dsv4_backend.model import StepInputs, Transformer  # noqa: E402
from dsv4_backend.records import PlanRow, SamplingParams, SequenceStart, StepPlan  # noqa: E402
from dsv4_backend.runner.cache import RankCache  # noqa: E402
from dsv4_backend.runner.graphs import DecodeGraphs, Recorder  # noqa: E402
from dsv4_backend.runner.inputs import InputBuilder  # noqa: E402
from dsv4_backend.runner.padding import Padding  # noqa: E402
from dsv4_backend.runner.target import Target  # noqa: E402
from dsv4_backend.runner.upload import Upload  # noqa: E402

VOCAB_SIZE = 8192
SHAPES: dict[str, dict[str, object]] = {
    "small": {
        "num_hidden_layers": 6,
        "compress_ratios": [0, 0, 4, 128, 4, 128],
        "hidden_size": 512,
        "num_attention_heads": 8,
        "head_dim": 128,
        "qk_rope_head_dim": 64,
        "q_lora_rank": 256,
        "o_groups": 4,
        "o_lora_rank": 128,
        "index_n_heads": 8,
        "n_routed_experts": 16,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 160,
    },
    "large": {
        "num_hidden_layers": 8,
        "compress_ratios": [0, 0, 4, 128, 4, 128, 4, 128],
        "hidden_size": 2048,
        "num_attention_heads": 16,
        "head_dim": 256,
        "qk_rope_head_dim": 64,
        "q_lora_rank": 768,
        "o_groups": 4,
        "o_lora_rank": 512,
        "index_n_heads": 16,
        "index_head_dim": 128,
        "n_routed_experts": 68,
        "num_experts_per_tok": 6,
        "moe_intermediate_size": 512,
    },
}


def values_of(name: str) -> dict[str, object]:
    """config.json of one of the checkpoints."""
    return with_layout({**config_values(VOCAB_SIZE, "none"), **SHAPES[name]}, LayoutName.OFFICIAL)


def make_checkpoint(folder: Path, name: str) -> Path:
    """Write a checkpoint unless the folder holds it already."""
    target = folder / name
    if not (target / "model.safetensors.index.json").exists():
        write_checkpoint(target, values_of(name), WriteOptions(seed=4, shard_bytes=512 << 20))
    return target


def stored_bytes(target: Path) -> int:
    """Bytes of all shards."""
    return sum(file.stat().st_size for file in target.glob("*.safetensors"))


def num_parameters(target: Path) -> int:
    """Elements of every weight of the checkpoint."""
    opened = Checkpoint.open(target)
    return sum(weight.num_parameters for weight in model_weights(opened.config, opened.layout))


def load_model(target: Path, place: Target | None = None) -> Transformer:
    """The model with the numerics of the settings' default, on the CPU's operators or what `place` names."""
    keep_freed_memory()  # as a rank's process does, like the collector's freeze below
    opened, place = Checkpoint.open(target), place or Target(bind("cpu"), HOST)
    numerics = ServingConfig(checkpoint=str(target)).numerics
    with opened.source() as source:
        model = Transformer.load(opened.config, source, place.ops, numerics, place.placement)
        source.finish()
    gc.collect()
    gc.freeze()
    return model


class Streams:
    """Sequences that are stepped together. Tokens are chosen greedily by the caller, or given."""

    def __init__(
        self,
        model: Transformer,
        num_tokens: int,
        num_streams: int,
        cache_format: CacheFormat,
        recorder: Recorder | None = None,
    ) -> None:
        """recorder: decode steps are recorded and replayed."""
        self.model = model
        layout = make_layout(model.config, cache_format, 0)
        places = dict.fromkeys(KINDS, num_streams * (num_tokens // 128 + 2))
        self.manager = CacheManager(CacheRules(device=places))
        device = model.placement.device
        self.cache, self.upload = RankCache(layout, places, device=device, num_spare=1), Upload(device)
        self.builder = InputBuilder(model.config, layout, model.ops)
        padding = Padding(self.builder, layout, places[BLOCK], places[STATE])
        self.graphs = DecodeGraphs(model, self.cache, padding, (), recorder) if recorder else None
        self.done: dict[int, int] = {}
        self.num_steps = 0

    def step(self, tokens: Mapping[int, list[int]]) -> Tensor:
        """Compute the given tokens of each sequence and return the logits of each one's last. Shapes: [S, V]."""
        plan = self._plan(tokens)
        inputs = self.builder.build(plan)
        if self.graphs is not None and (replayed := self.graphs.run(unplanned(inputs), plan)) is not None:
            return replayed[1]
        return self.model.forward(self.upload(inputs), self.cache)

    def inputs(self, tokens: Mapping[int, list[int]]) -> StepInputs:
        """Plan one step and build its tensors, on the host."""
        return unplanned(self.builder.build(self._plan(tokens)))

    def place(self, sequence_id: int, num_tokens: int) -> None:
        """Begin a sequence behind num_tokens that were never computed: its pages hold what `fill` put there."""
        row = self._row(sequence_id, [0] * num_tokens)
        start = SequenceStart(sequence_id=sequence_id, token_ids=(0,), num_prompt_tokens=1, sampling=SamplingParams())
        self.builder.tables.apply(StepPlan(step=self.num_steps, rows=(row,), starts=(start,)))

    def fill(self) -> None:
        """Random entries and index keys in all pages, the same few thousand over and over."""
        chance = torch.Generator().manual_seed(6)
        for layer_id, layer in enumerate(self.model.config.layers):
            kinds = [self.cache.entries] if layer.kind is not LayerKind.WINDOW else []
            for held in kinds + ([self.cache.index_keys] if layer.kind is LayerKind.CSA else []):
                cache = held(layer_id)
                values = torch.randn(min(4096, cache.num_rows), cache.spec.width, generator=chance)
                rows = self.model.ops.pack_rows(self.model.placement.tensor(values), cache.spec).data
                for first in range(0, cache.num_rows, rows.shape[0]):
                    part = cache.data[first : first + rows.shape[0]]
                    part.copy_(rows[: part.shape[0]])

    def _plan(self, tokens: Mapping[int, list[int]]) -> StepPlan:
        starts = tuple(
            SequenceStart(
                sequence_id=each,
                token_ids=tuple(ids),
                num_prompt_tokens=len(ids),
                sampling=SamplingParams(),
            )
            for each, ids in tokens.items()
            if each not in self.done
        )
        rows = tuple(self._row(each, ids) for each, ids in tokens.items())
        self.num_steps += 1
        return StepPlan(step=self.num_steps - 1, rows=rows, starts=starts)

    def _row(self, sequence_id: int, tokens: list[int]) -> PlanRow:
        start = self.done.get(sequence_id, 0)
        grants = self.manager.reserve(sequence_id, start + len(tokens))
        if grants is None:
            raise SystemExit("too few pages; give Streams more tokens")
        self.done[sequence_id] = start + len(tokens)
        return PlanRow(
            sequence_id=sequence_id,
            start=start,
            token_ids=tuple(tokens),
            num_written=start,
            grants=grants,
            is_sampled=True,
        )


def random_prompt(count: int, seed: int) -> list[int]:
    """Token ids of a prompt."""
    generator = torch.Generator().manual_seed(seed)
    return [int(token) for token in torch.randint(2, VOCAB_SIZE, (count,), generator=generator)]
