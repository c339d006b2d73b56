"""Drive a model through plans, pages and caches as the engine does, without scheduler or sampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dsv4_backend.config import CacheFormat
from dsv4_backend.kv.layout import KINDS, make_layout
from dsv4_backend.kv.manager import CacheManager, CacheRules
from dsv4_backend.model import EntrySelector, Transformer
from dsv4_backend.records import PlanRow, SamplingParams, SequenceStart, StepPlan
from dsv4_backend.runner.cache import RankCache
from dsv4_backend.runner.inputs import InputBuilder
from dsv4_backend.runner.upload import Upload


class Driver:
    """Runs sequences in steps of the caller's choosing and collects the logits of every token."""

    def __init__(
        self,
        model: Transformer,
        num_pages: int = 12,
        selector: EntrySelector | None = None,
        cache_format: CacheFormat = CacheFormat.FP32,
        max_drafts: int = 0,
    ) -> None:
        self.model = model
        self.selector = selector
        layout = make_layout(model.config, cache_format, max_drafts)
        places = dict.fromkeys(KINDS, num_pages)
        self.manager = CacheManager(CacheRules(device=places))
        device = model.placement.device
        self.cache, self.upload = RankCache(layout, places, device=device, num_spare=1), Upload(device)
        self.builder = InputBuilder(model.config, layout, model.ops)
        self.tokens: dict[int, Sequence[int]] = {}
        self.done: dict[int, int] = {}
        self.written: dict[int, int] = {}
        self.finished: list[int] = []
        self.logits: dict[int, list[Tensor]] = {}
        self.num_steps = 0

    def step(self, counts: Mapping[int, int], prompts: Mapping[int, Sequence[int]] | None = None) -> None:
        """Compute the next `counts[sequence]` tokens of each sequence; `prompts` begin new sequences."""
        starts = []
        for sequence_id, tokens in (prompts or {}).items():
            self.tokens[sequence_id], self.done[sequence_id], self.logits[sequence_id] = tokens, 0, []
            self.written[sequence_id] = 0
            starts.append(
                SequenceStart(
                    sequence_id=sequence_id,
                    token_ids=tuple(tokens),
                    num_prompt_tokens=len(tokens),
                    sampling=SamplingParams(),
                )
            )
        rows = tuple(self._row(sequence_id, count) for sequence_id, count in counts.items())
        plan = StepPlan(step=self.num_steps, rows=rows, starts=tuple(starts), finished=tuple(self.finished))
        self.finished = []
        inputs = self.builder.build(plan)
        logits = self.model.forward(self.upload(inputs), self.cache, self.selector)
        for row, (begin, end) in zip(rows, inputs.logit_spans, strict=True):
            self.logits[row.sequence_id].append(logits[begin:end])
            self.done[row.sequence_id] += len(row.token_ids)
            self.written[row.sequence_id] = max(self.written[row.sequence_id], self.done[row.sequence_id])
        self.num_steps += 1

    def take_back(self, sequence_id: int, count: int) -> None:
        """The last tokens of the last step were drafts, and are rejected."""
        self.done[sequence_id] -= count
        self.logits[sequence_id][-1] = self.logits[sequence_id][-1][:-count]

    def finish(self, sequence_id: int) -> None:
        """Give a sequence's pages back; the rank hears of it with the next step."""
        self.manager.release(sequence_id)
        self.finished.append(sequence_id)

    def result(self, sequence_id: int) -> Tensor:
        """Logits of every token so far. Shapes: [T, V]."""
        return torch.cat(self.logits[sequence_id])

    def run(self, tokens: Sequence[int], chunks: Sequence[int] | None = None) -> Tensor:
        """Run one sequence alone, in the given chunks (whole by default), and return all its logits."""
        sequence_id = len(self.tokens)
        for index, count in enumerate(chunks or [len(tokens)]):
            self.step({sequence_id: count}, None if index else {sequence_id: tokens})
        self.finish(sequence_id)
        return self.result(sequence_id)

    def _row(self, sequence_id: int, count: int) -> PlanRow:
        start = self.done[sequence_id]
        grants = self.manager.reserve(sequence_id, start + count)
        assert grants is not None, "the driver has too few pages for this test"
        tokens = tuple(self.tokens[sequence_id][start : start + count])
        return PlanRow(
            sequence_id=sequence_id,
            start=start,
            token_ids=tokens,
            num_written=self.written[sequence_id],
            grants=grants,
            wants_prompt_logprobs=True,
        )
