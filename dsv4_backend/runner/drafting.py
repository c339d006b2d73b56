"""Drafts of a model: after a step, tell the draft model of what is certain now, and ask it what may come next.

Letters: R rows of the plan, T positions that the draft model is told of, W window, B tokens of a DSpark block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dsv4_backend.config import DraftKind
from dsv4_backend.kv.layout import CacheLayout
from dsv4_backend.model.draft import DsparkBlock, MtpBlock
from dsv4_backend.model.draft_weights import load_dspark, load_mtp
from dsv4_backend.model.step import StepCache, StepInputs
from dsv4_backend.model.transformer import Computed, Transformer
from dsv4_backend.model.weights import Loader, WeightSource
from dsv4_backend.runner.pages import Rows
from dsv4_backend.runner.upload import Upload

WORTH = 0.3  # a block ends where it is less likely than this that all of it up to there is accepted


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftRow:
    """What a drafter is told of one plan row.

    Rule: positions [start, start + len(next_ids)) are certain now, their streams begin at first_token of the step, and
          next_ids are the tokens after them. The draft model knows all positions from known_from on.
          `choose` takes the draft model's logits [V] and the number of the draft, which is called in order.
    """

    sequence_id: int
    state: int
    first_token: int
    start: int
    next_ids: Sequence[int]
    known_from: int
    num_wanted: int
    choose: Callable[[Tensor, int], int]

    @property
    def end(self) -> int:
        """The position of the newest token, which the backbone has not computed."""
        return self.start + len(self.next_ids)


class DraftModel(Protocol):
    """A draft model on one rank."""

    tapped: tuple[int, ...]

    def propose(self, rows: Sequence[DraftRow], computed: Computed, cache: StepCache) -> dict[int, tuple[int, ...]]:
        """Take over what is certain, and return the drafts of each sequence that wants some."""


def load_draft_model(model: Transformer, source: WeightSource, layout: CacheLayout) -> DraftModel:
    """Load the draft model that the checkpoint has."""
    loader, windows = Loader(source, model.placement), _Windows(layout, Upload(model.placement.device))
    if model.config.draft.kind is DraftKind.MTP:
        return MtpDrafts(MtpBlock(model, load_mtp(model.config, loader)), windows)
    block = DsparkBlock(model, load_dspark(model.config, loader))
    return DsparkDrafts(block, windows, model.config.draft.target_layer_ids)


class MtpDrafts:
    """Drafts of an MTP block: the first from the backbone's streams, each further one from the block's own."""

    tapped: tuple[int, ...] = ()

    def __init__(self, block: MtpBlock, windows: _Windows) -> None:
        self._block = block
        self._windows = windows

    def propose(self, rows: Sequence[DraftRow], computed: Computed, cache: StepCache) -> dict[int, tuple[int, ...]]:
        """As `DraftModel.propose`."""
        told = self._windows.told(rows)
        streams = self._block(computed.streams[torch.from_numpy(told.tokens)], told.inputs, cache)
        last = torch.from_numpy(told.last)
        asking = [index for index, row in enumerate(rows) if row.num_wanted]
        drafts: dict[int, list[int]] = {rows[index].sequence_id: [] for index in asking}
        streams = streams[last[asking]]
        for number in range(max((row.num_wanted for row in rows), default=0)):
            logits = self._block.logits(streams)
            for index, scores in zip(asking, logits, strict=True):
                row = rows[index]
                drafts[row.sequence_id].append(row.choose(scores, number))
            kept = [place for place, index in enumerate(asking) if rows[index].num_wanted > number + 1]
            if not kept:
                break
            asking = [asking[place] for place in kept]
            behind = [rows[index] for index in asking]
            ids = [drafts[row.sequence_id][-1] for row in behind]
            streams = self._block(streams[kept], self._windows.behind(behind, ids, number), cache)
        return {sequence_id: tuple(ids) for sequence_id, ids in drafts.items()}


class DsparkDrafts:
    """Drafts of DSpark: one block per sequence, cut where the confidence says so."""

    def __init__(self, block: DsparkBlock, windows: _Windows, tapped: tuple[int, ...]) -> None:
        self.tapped = tapped
        self._block = block
        self._windows = windows

    def propose(self, rows: Sequence[DraftRow], computed: Computed, cache: StepCache) -> dict[int, tuple[int, ...]]:
        """As `DraftModel.propose`."""
        told = self._windows.told(rows)
        if computed.taps is not None:
            self._block.keep(computed.taps[torch.from_numpy(told.tokens)], told.inputs, cache)
        asking = [row for row in rows if row.num_wanted]
        if not asking:
            return {}
        before = self._windows.ids([row.next_ids[-1] for row in asking])
        guess = self._block.guess(before, self._windows.blocks(asking, self._block.block_tokens), cache)
        drafts: dict[int, list[int]] = {row.sequence_id: [] for row in asking}
        survival = torch.ones(len(asking), device=before.device)
        for number in range(min(self._block.block_tokens, max(row.num_wanted for row in asking))):
            survival = survival * self._block.confidence(guess.hidden[:, number], before)
            scores = guess.base[:, number] + self._block.bias(before)
            chosen = [row.choose(scores[place], number) for place, row in enumerate(asking)]
            for place, row in enumerate(asking):
                ids = drafts[row.sequence_id]
                if len(ids) == number < row.num_wanted and float(survival[place]) >= WORTH:
                    ids.append(chosen[place])
            before = self._windows.ids(chosen)
        return {sequence_id: tuple(ids) for sequence_id, ids in drafts.items()}


@dataclass(frozen=True, slots=True)
class _Told:
    """What a draft model reads of a step. Shapes: tokens [T], of the step; last [R], the last of each row among T."""

    inputs: StepInputs
    tokens: Rows
    last: Rows


class _Windows:
    """Where the layers of a draft model read and write."""

    def __init__(self, layout: CacheLayout, upload: Upload) -> None:
        self._upload = upload
        self._window = layout.window_tokens
        self._size = layout.window.ring_rows

    def ids(self, values: Sequence[int]) -> Tensor:
        """Token ids on the device. Shapes: returns int64 [len(values)]."""
        return self._upload(torch.tensor(values, dtype=torch.int64))

    def told(self, rows: Sequence[DraftRow]) -> _Told:
        """What is certain now, as far as a window reaches back: nothing before it can be seen any more."""
        firsts = np.array([max(row.start, row.end - self._window) for row in rows], np.int64)
        counts = np.array([row.end for row in rows], np.int64) - firsts
        owners = np.repeat(np.arange(len(rows)), counts)
        begins = np.cumsum(counts) - counts
        positions = firsts[owners] + np.arange(len(owners)) - begins[owners]
        offsets = positions - np.array([row.start for row in rows], np.int64)[owners]
        ids = [token for row, count in zip(rows, counts.tolist(), strict=True) for token in row.next_ids[-count:]]
        whole = firsts == [row.start for row in rows]  # else the ring lacks what lies before the first position
        known = np.where(whole, [row.known_from for row in rows], firsts)
        seen = positions[:, None] + np.arange(1 - self._window, 1)  # positions [T, W]
        fresh = -2 - (begins[owners, None] + seen - firsts[owners, None])
        old = self._rows(rows, owners, seen)
        windows = np.where(seen >= firsts[owners, None], fresh, np.where(seen >= known[owners, None], old, -1))
        inputs = self._inputs(ids, positions, windows, self._rows(rows, owners, positions[:, None])[:, 0])
        tokens = np.array([row.first_token for row in rows], np.int64)[owners] + offsets
        return _Told(inputs, tokens, begins + counts - 1)

    def behind(self, rows: Sequence[DraftRow], ids: Sequence[int], number: int) -> StepInputs:
        """One position per row: that of draft `number`, whose keys are replaced when it is certain."""
        positions = np.array([row.end for row in rows], np.int64) + number
        owners = np.arange(len(rows))
        seen = positions[:, None] + np.arange(1 - self._window, 1)
        known = np.array([row.known_from for row in rows], np.int64)
        windows = np.where(seen >= known[:, None], self._rows(rows, owners, seen), -1)
        windows[:, -1] = -2 - owners
        return self._inputs(ids, positions, windows, self._rows(rows, owners, positions[:, None])[:, 0])

    def blocks(self, rows: Sequence[DraftRow], size: int) -> StepInputs:
        """Blocks behind the context: every token sees the last W positions before its block, and the whole block."""
        owners = np.repeat(np.arange(len(rows)), size)
        ends = np.array([row.end for row in rows], np.int64)[owners]
        positions = ends + np.tile(np.arange(size), len(rows))
        seen = ends[:, None] + np.arange(-self._window, 0)
        known = np.array([row.known_from for row in rows], np.int64)[owners]
        context = np.where(seen >= known[:, None], self._rows(rows, owners, seen), -1)
        block = -2 - (owners[:, None] * size + np.arange(size))
        none = np.zeros(0, np.int64)
        return self._inputs([0] * len(owners), positions, np.concatenate([context, block], 1), none)

    def _inputs(self, ids: Sequence[int], positions: Rows, windows: Rows, ring_rows: Rows) -> StepInputs:
        return self._upload(_window_inputs(ids, positions, windows, ring_rows))

    def _rows(self, rows: Sequence[DraftRow], owners: Rows, positions: Rows) -> Rows:
        """Ring rows of positions. Shapes: owners [T]; positions [T, W]."""
        states = np.array([row.state for row in rows], np.int64)[owners, None]
        found: Rows = states * self._size + positions % self._size
        return found


def _window_inputs(ids: Sequence[int], positions: Rows, windows: Rows, ring_rows: Rows) -> StepInputs:
    """Inputs of layers that have nothing but a window; the keys of all tokens go into the ring, or of none."""
    none = torch.zeros(0, dtype=torch.int64)
    return StepInputs(
        token_ids=torch.tensor(ids, dtype=torch.int64),
        positions=torch.from_numpy(positions),
        window_rows=torch.from_numpy(windows),
        ring_tokens=torch.arange(len(ring_rows)),
        ring_rows=torch.from_numpy(ring_rows),
        csa=None,
        csa_tables=(),
        csa_rows=none,
        first_entries=none,
        num_visible=none,
        hca=None,
        hca_rows=none,
        logit_tokens=none,
        logit_spans=(),
    )
