"""A step's inputs as one buffer, and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dsv4_backend.runner.upload import Upload, rebuilt, staged


@dataclass(frozen=True)
class Inner:
    """Part of a record."""

    rows: Tensor
    name: str


@dataclass(frozen=True)
class Record:
    """Tensors somewhere in it."""

    ids: Tensor
    parts: tuple[Inner, ...]
    nothing: None
    count: int


RECORD = Record(
    ids=torch.arange(5),
    parts=(Inner(torch.arange(6).view(2, 3), "a"), Inner(torch.zeros(0, 4, dtype=torch.int64), "b")),
    nothing=None,
    count=3,
)


def test_every_tensor_is_a_view_of_one_buffer() -> None:
    flat = staged(RECORD, torch.device("cpu"))
    assert flat.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5]
    again = rebuilt(RECORD, flat)
    assert torch.equal(again.ids, RECORD.ids) and again.parts[1].rows.shape == (0, 4)
    assert torch.equal(again.parts[0].rows, RECORD.parts[0].rows) and again.parts[0].name == "a"
    assert (again.nothing, again.count) == (None, 3)
    flat.add_(10)  # filled anew, as for the next step
    assert again.parts[0].rows.tolist() == [[10, 11, 12], [13, 14, 15]]


def test_a_host_step_is_left_as_it_is() -> None:
    assert Upload(torch.device("cpu"))(RECORD) is RECORD
    assert Upload(torch.device("meta"))(RECORD).parts[0].rows.device.type == "meta"
