"""Pack conversations into rows of one length, many documents side by side."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from nano_data.records import Example

PAD_ID = 2
NO_DOCUMENT = -1
NUM_OPEN_ROWS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """A batch of packed rows.

    Shapes: all [R, L]. token_ids, positions, documents int32; loss_mask bool.
    Rule:   positions start at 0 in every document; documents are numbered from 0 in each row, padding is -1.
            loss_mask marks the tokens to be predicted: the loss at t - 1 counts where loss_mask[t].
    """

    token_ids: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int32]
    documents: npt.NDArray[np.int32]
    loss_mask: npt.NDArray[np.bool_]


@dataclass(slots=True)
class Row:
    """Examples with the place where each starts, and how many tokens they take up."""

    used: int = 0
    items: list[tuple[int, Example]] = field(default_factory=list)

    def add(self, example: Example, align: int) -> None:
        """Put an example behind the others."""
        self.items.append((self.used, example))
        self.used += -(-len(example.token_ids) // align) * align


def fill_rows(examples: Iterable[Example], length: int, *, align: int = 1) -> Iterator[Row]:
    """Yield rows of at most `length` tokens, as full as they get.

    Rule:   each example goes whole into the fullest row that has room; when too many are open, the fullest closes.
            Examples start at multiples of `align`, so that compression blocks of that size never cross them.
    Raises: ValueError for an example longer than a row.
    """
    rows: list[Row] = []
    for example in examples:
        size = -(-len(example.token_ids) // align) * align
        if size > length:
            raise ValueError(f"an example takes {size} tokens but a row holds {length}. Lower Mix.max_tokens.")
        fitting = [row for row in rows if row.used + size <= length]
        if not fitting:
            if len(rows) >= NUM_OPEN_ROWS:
                fullest = max(rows, key=lambda row: row.used)
                rows.remove(fullest)
                yield fullest
            fitting = [Row()]
            rows += fitting
        max(fitting, key=lambda row: row.used).add(example, align)


def pack(examples: Iterable[Example], length: int, *, num_rows: int = 1, align: int = 1) -> Iterator[Packed]:
    """Yield batches of `num_rows` rows of `length` tokens. Raises: ValueError, as fill_rows does."""
    rows = fill_rows(examples, length, align=align)
    while batch := list(itertools.islice(rows, num_rows)):
        yield _stack(batch, length)


def _stack(rows: list[Row], length: int) -> Packed:
    shape = (len(rows), length)
    packed = Packed(
        token_ids=np.full(shape, PAD_ID, np.int32),
        positions=np.zeros(shape, np.int32),
        documents=np.full(shape, NO_DOCUMENT, np.int32),
        loss_mask=np.zeros(shape, np.bool_),
    )
    for index, row in enumerate(rows):
        for number, (start, example) in enumerate(row.items):
            span = slice(start, start + len(example.token_ids))
            packed.token_ids[index, span] = example.token_ids
            packed.positions[index, span] = np.arange(len(example.token_ids))
            packed.documents[index, span] = number
            packed.loss_mask[index, span] = example.loss_mask
    return packed
