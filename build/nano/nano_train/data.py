"""Rows of training conversations by number, so that a run resumes anywhere and ranks share one stream."""

from __future__ import annotations

import random
from collections.abc import Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import torch
from nano_data import Example, Mix, Split, stream

from nano_train.batch import Batch, Document, aligned, pack
from nano_train.plan import Plan

PAD_ID = 2
ROW_STRIDE = 1 << 16  # numbers of the stream that belong to one row; far more than fit into it
ROWS_AHEAD = 32
MAX_MISSES = 6  # examples in a row that did not fit, after which the row is closed
JUMP = 128  # a multiple of all ratios, so that entries hold the same tokens as without jumps
SPREAD_SHARE = 0.6  # of the recalled lists
MAX_JUMPS = 3


@dataclass(frozen=True, slots=True)
class Row:
    """One packed row with the examples it is made of, in order."""

    batch: Batch
    examples: tuple[Example, ...]


def make_row(seed: int, number: int, mix: Mix, num_tokens: int, split: Split = "train", reach: int = 0) -> Row:
    """Return row `number`, which depends on the arguments alone. mix.max_tokens may be at most num_tokens.

    Rule: in a row with a reach, some recalled lists jump on to positions up to there.
    """
    chosen = tuple(_fill(stream(seed, split, mix, start=number * ROW_STRIDE), num_tokens))
    draw = random.Random(f"{seed}/{number}/jumps")
    documents = [Document(example.token_ids, example.loss_mask, jumps(example, reach, draw)) for example in chosen]
    return Row(pack(documents, num_tokens, PAD_ID), chosen)


def jumps(example: Example, reach: int, draw: random.Random) -> dict[int, int]:
    """Return where the positions of a recalled list jump, and how far: a short row then teaches long distances.

    Rule: no jump within JUMP tokens of the first answer. Source: Zhu et al., "PoSE", arXiv 2309.10400.
    """
    length, is_chosen = len(example.token_ids), draw.random() < SPREAD_SHARE
    places = range(JUMP, example.loss_mask.index(True) - JUMP + 1, JUMP)
    if example.family != "recall" or not is_chosen or not places or reach < length + JUMP:
        return {}
    blocks = int(length * (reach / length) ** draw.random() - length) // JUMP
    rows = sorted(draw.sample(places, min(MAX_JUMPS, len(places), draw.randint(1, MAX_JUMPS))))
    ends = sorted(draw.randint(0, blocks) for _ in rows[1:])
    parts = (high - low for low, high in zip((0, *ends), (*ends, blocks), strict=True))
    return {row: part * JUMP for row, part in zip(rows, parts, strict=True)}


class RowMaker:
    """The training rows of a plan, made when they are asked for, or ahead by other processes."""

    def __init__(self, plan: Plan, rows_per_step: int, *, is_ahead: bool) -> None:
        self._plan, self._rows_per_step = plan, rows_per_step
        spawned = get_context("spawn")  # a fork of a process that uses a GPU would be broken
        self._pool = ProcessPoolExecutor(None, spawned, torch.set_num_threads, (1,)) if is_ahead else None
        self._made: dict[int, Future[Row]] = {}

    def take(self, step: int, number: int) -> Row:
        """Return row `number`, which belongs to a step."""
        if self._pool is None:
            return _make(self._plan, step, number)
        for later in range(number, number + ROWS_AHEAD):
            if later not in self._made:
                self._made[later] = self._pool.submit(_make, self._plan, later // self._rows_per_step, later)
        return self._made.pop(number).result()


def _make(plan: Plan, step: int, number: int) -> Row:
    return make_row(plan.seed, number, plan.mix(step), plan.tokens(step), reach=plan.stage(step).reach)


def _fill(examples: Iterable[Example], num_tokens: int) -> Iterable[Example]:
    room, misses = num_tokens, 0
    for example in examples:
        size = aligned(len(example.token_ids))
        if size <= room:
            room, misses = room - size, 0
            yield example
        else:
            misses += 1
        if misses > MAX_MISSES or room < 4 * MAX_MISSES:
            return
