"""Rows of training conversations by number, so that a run resumes anywhere and ranks share one stream."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nano_data import Example, Mix, Split, stream

from nano_train.batch import Batch, Document, aligned, pack

PAD_ID = 2
ROW_STRIDE = 1 << 16  # numbers of the stream that belong to one row; far more than fit into it
MAX_MISSES = 6  # examples in a row that did not fit, after which the row is closed


@dataclass(frozen=True, slots=True)
class Row:
    """One packed row with the examples it is made of, in order."""

    batch: Batch
    examples: tuple[Example, ...]


def make_row(seed: int, number: int, mix: Mix, num_tokens: int, split: Split = "train") -> Row:
    """Return row `number`, which depends on the arguments alone. mix.max_tokens may be at most num_tokens."""
    chosen = tuple(_fill(stream(seed, split, mix, start=number * ROW_STRIDE), num_tokens))
    documents = [Document(example.token_ids, example.loss_mask) for example in chosen]
    return Row(pack(documents, num_tokens, PAD_ID), chosen)


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
