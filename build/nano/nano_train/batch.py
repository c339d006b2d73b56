"""Documents packed into one row of tokens, and the geometry that every layer derives from it.

Document ─ pack ─► Batch ─ geometry ─► Geometry     (integers only; nothing here needs a gradient)
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from nano_train.config import ALIGNMENT, CHUNK

NO_DOCUMENT = -1
T = TypeVar("T", bound=Any)


@dataclass(frozen=True, slots=True)
class Document:
    """One conversation.

    Rule: is_target[i] says that token i is to be predicted; both have the same length. Positions go on from token i by
          jumps[i] more than one, as if tokens had been left out; i and jumps[i] are multiples of all ratios.
    """

    token_ids: Sequence[int]
    is_target: Sequence[bool]
    jumps: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Batch:
    """One packed row.

    Shapes: token_ids, positions, documents, next_ids, is_target, is_prompt [T]; T a multiple of CHUNK. starts: row of
            each document's first token.
    Rule:   tokens between documents continue the document before them; those after the last one have document -1.
            is_target[t] says that next_ids[t] is to be predicted from t; is_prompt[t] that it is another token of the
            same document.
    """

    token_ids: Tensor
    positions: Tensor
    documents: Tensor
    next_ids: Tensor
    is_target: Tensor
    is_prompt: Tensor
    starts: tuple[int, ...]

    def to(self, device: torch.device) -> Batch:
        """The row on a device."""
        return moved(self, device)

    @property
    def num_tokens(self) -> int:
        """Tokens of the row, padding included."""
        return self.token_ids.shape[0]


@dataclass(frozen=True, slots=True)
class EntryGeometry:
    """Compressed entries of one ratio, in the order of the row, documents one after the other.

    Shapes: tokens [C, ratio], rows of the tokens that each entry compresses; positions [C], of their first token;
            has_previous [C], whether the entry before it belongs to the same document.
    Rule:   queries of chunk c can see entries ranges[c][0] ... ranges[c][1] - 1, as far as masks[c] [CHUNK, n] is 0 and
            not -inf; visible[c] [CHUNK] counts them.
    """

    ratio: int
    tokens: Tensor
    positions: Tensor
    has_previous: Tensor
    ranges: tuple[tuple[int, int], ...]
    masks: tuple[Tensor, ...]
    visible: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Geometry:
    """What the attention layers share. Shapes: window_masks [chunks, CHUNK, window + CHUNK], 0 or -inf."""

    window: int
    window_masks: Tensor
    entries: dict[int, EntryGeometry]

    def to(self, device: torch.device) -> Geometry:
        """What the stacked operators need of it, on a device."""
        entries = {ratio: moved(item, device) for ratio, item in self.entries.items()}
        return replace(moved(self, device), entries=entries)


def moved(item: T, device: torch.device) -> T:
    """A copy of a dataclass with its tensors on a device."""
    tensors = {field.name: getattr(item, field.name) for field in fields(item)}
    return replace(item, **{name: value.to(device) for name, value in tensors.items() if isinstance(value, Tensor)})


def pack(documents: Sequence[Document], num_tokens: int, pad_id: int) -> Batch:
    """Lay documents one after the other into a row; what does not fit whole is left out by the caller.

    Raises: ValueError if the documents are longer than the row.
    """
    ids = torch.full((num_tokens,), pad_id, dtype=torch.int64)
    owner = torch.full((num_tokens,), NO_DOCUMENT, dtype=torch.int64)
    positions = torch.zeros(num_tokens, dtype=torch.int64)
    wanted, inside = (torch.zeros(num_tokens + 1, dtype=torch.bool) for _ in range(2))
    starts, place = [], 0
    for index, document in enumerate(documents):
        length = len(document.token_ids)
        end = place + aligned(length)
        if end > num_tokens:
            raise ValueError(f"documents need {end} tokens but the row holds {num_tokens}. Pack fewer.")
        ids[place : place + length] = torch.tensor(document.token_ids)
        wanted[place + 1 : place + length] = torch.tensor(document.is_target[1:], dtype=torch.bool)
        inside[place + 1 : place + length] = True
        owner[place:end] = index
        positions[place:end] = torch.arange(end - place)
        for row, size in document.jumps.items():
            positions[place + row : end] += size
        starts.append(place)
        place = end
    positions[place:] = torch.arange(num_tokens - place)
    return Batch(
        token_ids=ids,
        positions=positions,
        documents=owner,
        next_ids=torch.cat([ids[1:], ids.new_full((1,), pad_id)]),
        is_target=wanted[1:],
        is_prompt=(inside & ~wanted)[1:],
        starts=(*starts, place) if place < num_tokens else tuple(starts),
    )


def target_chunks(batch: Batch) -> frozenset[int]:
    """Return the chunks in which a token is to be predicted."""
    wanted = batch.is_target.view(-1, CHUNK).any(1)
    return frozenset(wanted.nonzero().flatten().tolist())


def aligned(length: int) -> int:
    """Tokens that a document of this length takes up in a row."""
    return -(-length // ALIGNMENT) * ALIGNMENT


def geometry(batch: Batch, window: int, ratios: Sequence[int]) -> Geometry:
    """Derive masks and entries from a row. `ratios` are those of the compressed layers."""
    return Geometry(
        window=window,
        window_masks=_window_masks(batch, window),
        entries={ratio: _entries(batch, ratio) for ratio in sorted(set(ratios)) if ratio},
    )


def _window_masks(batch: Batch, window: int) -> Tensor:
    rows = torch.arange(batch.num_tokens).view(-1, CHUNK, 1)
    keys = rows[:, :1] - window + torch.arange(window + CHUNK)  # [chunks, 1, window + CHUNK]
    is_seen = (keys <= rows) & (keys > rows - window) & (keys >= 0)
    is_seen &= batch.documents.view(-1, CHUNK, 1) == batch.documents[keys.clamp(0, batch.num_tokens - 1)]
    return _additive(is_seen)


def _entries(batch: Batch, ratio: int) -> EntryGeometry:
    ends = [*batch.starts[1:], batch.num_tokens]
    spans = [(start, (end - start) // ratio) for start, end in zip(batch.starts, ends, strict=True)]
    firsts = torch.cat([start + ratio * torch.arange(count) for start, count in spans])  # [C]
    tokens = firsts[:, None] + torch.arange(ratio)
    owner, last = batch.documents[firsts], firsts + ratio - 1
    ranges, masks, visible = [], [], []
    for row in range(0, batch.num_tokens, CHUNK):
        begin = batch.starts[bisect_right(batch.starts, row) - 1]
        low, high = (int(item) for item in torch.searchsorted(last, torch.tensor([begin, row + CHUNK])))
        queries = torch.arange(row, row + CHUNK)[:, None]
        is_seen = (last[low:high] <= queries) & (owner[low:high] == batch.documents[queries])
        ranges.append((low, high))
        masks.append(_additive(is_seen))
        visible.append(is_seen.sum(1))
    return EntryGeometry(
        ratio=ratio,
        tokens=tokens,
        positions=batch.positions[firsts],
        has_previous=batch.positions[firsts] > 0,
        ranges=tuple(ranges),
        masks=tuple(masks),
        visible=tuple(visible),
    )


def _additive(is_seen: Tensor) -> Tensor:
    return torch.where(is_seen, 0.0, float("-inf"))
