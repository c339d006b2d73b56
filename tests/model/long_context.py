"""A long prompt in chunks through a small model, its attention checked against float64 at sampled positions.

What a token may see is found here from the grants of the cache manager, not from the tensors that the model was given.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from dsv4_kernels.dispatch import bind
from dsv4_kernels.ops import OpTable
from dsv4_kernels.reference.cache import unpack_rows
from hf_oracle import HfSource, make_oracle, random_tokens
from torch import Tensor

from dsv4_backend.config import CacheFormat, Numerics
from dsv4_backend.kv.layout import BLOCK, KINDS, STATE, make_layout
from dsv4_backend.kv.manager import CacheManager, CacheRules
from dsv4_backend.model import Transformer
from dsv4_backend.records import PlanRow, SamplingParams, SequenceStart, StepPlan
from dsv4_backend.runner.cache import RankCache
from dsv4_backend.runner.inputs import InputBuilder

PAGE = 128
SHAPE: dict[str, Any] = {
    "num_hidden_layers": 3,
    "compress_ratios": [0, 4, 128],
    "num_hash_layers": 0,
    "num_attention_heads": 2,
    "head_dim": 64,
    "index_n_heads": 2,
    "index_topk": 64,
    "n_routed_experts": 4,
    "num_experts_per_tok": 1,
    "max_position_embeddings": 1_048_576,
}


@dataclass
class Report:
    """What a passage took. Units: bytes; `pace` is (tokens so far, seconds so far) after every reported part."""

    num_tokens: int
    num_sampled: int = 0
    max_difference: float = 0.0
    max_score_gap: float = 0.0
    cache_bytes: int = 0
    extra_bytes: int = 0
    pace: list[tuple[int, float]] = field(default_factory=list)


class Watched:
    """Operators that check themselves at sampled positions."""

    def __init__(self, report: Report, positions: set[int], topk: int) -> None:
        self.report = report
        self.positions = positions
        self.topk = topk
        self.start = 0
        self.pages = torch.empty(0, dtype=torch.int64)
        self.state = 0

    def table(self, ops: OpTable) -> OpTable:
        return replace(
            ops,
            sparse_attention=self._watched(ops.sparse_attention, self._check_attention),
            index_select=self._watched(ops.index_select, self._check_choice),
        )

    def _watched(self, op: Callable[..., Tensor], check: Callable[..., None]) -> Callable[..., Tensor]:
        def call(query: Tensor, *args: Any) -> Tensor:
            result = op(query, *args)
            for token in range(query.shape[0]):
                if self.start + token in self.positions:
                    check(token, result[token], query[token].double(), *args)
            return result

        return call

    def _check_attention(self, token: int, got: Tensor, query: Tensor, *args: Any) -> None:
        window, entries, sink, scale = args
        position = self.start + token
        seen = range(max(0, position - PAGE + 1), position + 1)
        old = torch.tensor([self.state * PAGE + p % PAGE for p in seen if p < self.start], dtype=torch.int64)
        new = torch.tensor([p - self.start for p in seen if p >= self.start])
        kv = [unpack_rows(window.ring, old), unpack_rows(window.fresh, new)]
        if entries is not None:
            numbers = torch.arange((position + 1) // PAGE)
            if entries.rows.shape[1] == self.topk:  # CSA: the choice is checked by itself
                rows = entries.rows[token]
                kv.append(unpack_rows(entries.cache, rows[rows >= 0]))
            else:
                kv.append(unpack_rows(entries.cache, self.pages[numbers]))
        keys = torch.cat(kv).double()
        logits = torch.cat([query @ keys.T * scale, sink.double()[:, None]], 1)
        expected = torch.softmax(logits, 1)[:, :-1] @ keys
        self.report.num_sampled += 1
        self.report.max_difference = max(self.report.max_difference, float((got.double() - expected).abs().max()))

    def _check_choice(self, token: int, got: Tensor, query: Tensor, *args: Any) -> None:
        head_weights, cache, _, _, k = args
        count = (self.start + token + 1) // 4
        numbers = torch.arange(count)
        keys = unpack_rows(cache, self.pages[numbers // 32] * 32 + numbers % 32).double()
        scores = head_weights[token].double() @ torch.relu(query @ keys.T)
        kept = torch.zeros(count, dtype=torch.bool)
        kept[got[got >= 0]] = True
        if int(kept.sum()) != min(k, count):
            raise AssertionError(f"position {self.start + token}: {int(kept.sum())} of {min(k, count)} were chosen.")
        if count > k:
            gap = float(scores[~kept].max() - scores[kept].min()) / float(scores.abs().max())
            self.report.max_score_gap = max(self.report.max_score_gap, gap)


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run(
    num_tokens: int,
    *,
    chunk: int = 512,
    num_sampled: int = 64,
    num_parts: int = 32,
    progress: Callable[[int, float], None] | None = None,
) -> Report:
    """Compute a prompt. num_tokens is a multiple of chunk; float64 checks and progress come at even distances."""
    oracle, config = make_oracle(77, **SHAPE)
    report = Report(num_tokens)
    positions = {(number + 1) * num_tokens // num_sampled - 1 - 37 * number % 128 for number in range(num_sampled)}
    watched = Watched(report, positions, config.index_topk)
    model = Transformer.load(config, HfSource(oracle), watched.table(bind("cpu")), Numerics.TRAINED)
    del oracle
    layout = make_layout(config, CacheFormat.PACKED_FP4INDEX)
    places = {BLOCK: num_tokens // PAGE, STATE: 1}
    manager, builder = CacheManager(CacheRules(device=places)), InputBuilder(config, layout)
    tokens = random_tokens(num_tokens, 77)
    before_bytes = peak_bytes()
    cache = RankCache(layout, {kind: places[kind] for kind in KINDS})
    started_s = time.perf_counter()
    starts = (SequenceStart(sequence_id=1, token_ids=(), num_prompt_tokens=0, sampling=SamplingParams()),)
    for start in range(0, num_tokens, chunk):
        grants = manager.reserve(1, start + chunk) or ()
        held = {grant.kind: grant.page_ids for grant in manager.grants(1)}
        watched.start, watched.state, watched.pages = start, held[STATE][0], torch.tensor(held[BLOCK])
        row = PlanRow(sequence_id=1, start=start, token_ids=tuple(tokens[start : start + chunk]), grants=grants)
        inputs = builder.build(StepPlan(step=start // chunk, rows=(row,), starts=() if start else starts))
        model.forward(inputs, cache)
        if (start + chunk) % (num_tokens // num_parts) < chunk:
            report.pace.append((start + chunk, round(time.perf_counter() - started_s, 2)))
            if progress:
                progress(*report.pace[-1])
    report.cache_bytes = cache.num_bytes
    report.extra_bytes = peak_bytes() - before_bytes - cache.num_bytes
    return report
