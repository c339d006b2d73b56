"""Packing: whole documents side by side, positions from 0, masks in place."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from nano_data import Mix, Packed, fill_rows, pack, stream

MIX = Mix(recall_tokens=(10, 200), max_tokens=1024)


def some(align: int = 1, num_rows: int = 2, count: int = 3) -> list[Packed]:
    return list(itertools.islice(pack(stream(2, "train", MIX), 2048, num_rows=num_rows, align=align), count))


def test_batches_have_the_shape_that_is_asked_for() -> None:
    assert {part.token_ids.shape for part in some(num_rows=3)} == {(3, 2048)}


def test_every_document_is_whole_and_starts_at_position_0() -> None:
    examples = {example.token_ids for example in itertools.islice(stream(2, "train", MIX), 2000)}
    for batch in some():
        for ids, positions, documents in zip(batch.token_ids, batch.positions, batch.documents, strict=True):
            for number in range(documents.max() + 1):
                place = np.flatnonzero(documents == number)
                assert positions[place].tolist() == list(range(len(place)))
                assert tuple(ids[place].tolist()) in examples


def test_documents_start_at_multiples_of_the_alignment() -> None:
    for batch in some(align=128):
        starts = np.flatnonzero((batch.positions[0] == 0) & (batch.documents[0] >= 0))
        assert not (starts % 128).any()


def test_padding_is_never_trained() -> None:
    for batch in some():
        assert not batch.loss_mask[batch.documents < 0].any()


def test_rows_are_nearly_full() -> None:
    rows = list(itertools.islice(fill_rows(stream(2, "train", MIX), 2048), 10))
    assert sum(row.used for row in rows) > 0.95 * 10 * 2048


def test_an_example_longer_than_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match="Lower Mix"):
        list(itertools.islice(pack(stream(2, "train"), 16), 1))
