"""Without the compiled library, as on a GPU, a pass gives the same losses and gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from dsv4_kernels.dispatch import bind
from nano_train import fast
from nano_train.config import CHUNK
from nano_train.data import RowMaker
from nano_train.model import Pass
from nano_train.numerics import Rounding
from nano_train.objective import losses
from nano_train.plan import Plan
from nano_train.row import IndexPhase
from nano_train.weights import is_buffer
from nano_train_rig import packed, random_documents, random_weights, tiny_config
from torch import Tensor


@contextmanager
def torch_alone() -> Iterator[None]:
    token = fast.plain.set(True)
    try:
        yield
    finally:
        fast.plain.reset(token)


def step(*, is_dense: bool, rounding: Rounding) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Gradients of every weight, and the parts of the loss."""
    config = tiny_config()
    weights = random_weights(config, 4)
    batch = packed(random_documents((200, 33, 150, 70), 5))
    chunks = frozenset(range(0, batch.num_tokens // CHUNK, 2))
    run = Pass(config, weights, batch, rounding, IndexPhase(chunks, is_dense))
    found = losses(run, 2, has_prompt=True)
    found.total(0.3, 0.2).backward()  # type: ignore[no-untyped-call]
    gradients = {name: item.grad for name, item in weights.items() if not is_buffer(name) and item.grad is not None}
    parts = [found.next_token, *found.drafts, found.index, found.prompt]
    return gradients, [item.detach() for item in parts]


@pytest.mark.parametrize("is_dense", [True, False])
def test_losses_and_gradients_are_the_same(is_dense: bool) -> None:
    expected, expected_parts = step(is_dense=is_dense, rounding=Rounding())
    with torch_alone():
        found, parts = step(is_dense=is_dense, rounding=Rounding())
    torch.testing.assert_close(parts, expected_parts, rtol=1e-4, atol=1e-5)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        size = float(gradient.abs().max())
        assert float((found[name] - gradient).abs().max()) <= 2e-4 * size + 1e-7, name


def test_losses_with_round_trips_are_nearly_the_same() -> None:
    """A value may be rounded to the other side where sums are made in another order."""
    rounding = Rounding(bind("cpu"))
    _, expected = step(is_dense=True, rounding=rounding)
    with torch_alone():
        _, found = step(is_dense=True, rounding=rounding)
    torch.testing.assert_close(found, expected, rtol=5e-3, atol=1e-3)


def test_rows_made_ahead_are_those_that_are_asked_for() -> None:
    plan = Plan(num_steps=40, row_tokens=1024, packed_rows=2)
    ahead, direct = (RowMaker(plan, 1, is_ahead=is_ahead) for is_ahead in (True, False))
    for number in (0, 1, 2, 30):
        mine, other = (maker.take(number, number) for maker in (ahead, direct))
        assert mine.batch.num_tokens == 2048
        assert torch.equal(mine.batch.token_ids, other.batch.token_ids) and mine.examples == other.examples
