"""Pages: reserved together, trimmed behind the window, never lost."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dsv4_backend.config import ServingConfig
from dsv4_backend.kv.layout import CacheLayout, KindSpec
from dsv4_backend.kv.manager import CacheManager, page_counts
from dsv4_backend.kv.pool import PagePool

LAYOUT = CacheLayout(
    kinds=(
        KindSpec(name="window", layer_ids=(0,), rows_per_page=128, width=4, element_bytes=4, is_windowed=True),
        KindSpec(name="csa", layer_ids=(0,), rows_per_page=32, width=4, element_bytes=4),
        KindSpec(name="state", layer_ids=(0,), rows_per_page=1, width=4, element_bytes=4, is_fixed=True),
    ),
    rings=(),
    window=128,
)


def _manager(window: int = 12, csa: int = 8, state: int = 3) -> CacheManager:
    return CacheManager(LAYOUT, {"window": window, "csa": csa, "state": state})


def test_a_reservation_covers_every_block() -> None:
    grants = {grant.kind: grant for grant in _manager().reserve(1, 257) or ()}
    assert {kind: len(grant.page_ids) for kind, grant in grants.items()} == {"window": 3, "csa": 3, "state": 1}


def test_a_second_reservation_grants_only_what_is_new() -> None:
    manager = _manager()
    manager.reserve(1, 100)
    assert [(grant.kind, grant.first_block) for grant in manager.reserve(1, 129) or ()] == [("window", 1), ("csa", 1)]


def test_nothing_is_reserved_when_one_kind_is_short() -> None:
    manager = _manager(csa=2)
    assert manager.reserve(1, 300) is None
    assert all(used == 0 for used, _ in manager.usage().values())


def test_a_block_leaves_the_window_when_no_later_token_sees_it() -> None:
    manager = _manager()
    manager.reserve(1, 256)
    manager.trim(1, 254)
    assert manager.usage()["window"][0] == 2
    manager.trim(1, 255)
    assert manager.usage()["window"][0] == 1


def test_all_grants_of_a_trimmed_sequence_start_at_its_first_kept_block() -> None:
    manager = _manager()
    manager.reserve(1, 300)
    manager.trim(1, 300)
    assert {grant.kind: grant.first_block for grant in manager.grants(1)} == {"window": 1, "csa": 0, "state": 0}


def test_a_page_cannot_be_released_twice() -> None:
    pool = PagePool("csa", 2)
    pages = pool.reserve(1)
    pool.release(pages)
    with pytest.raises(ValueError, match="not in use"):
        pool.release(pages)


def test_capacity_is_what_the_growing_kinds_hold() -> None:
    assert _manager(csa=8).capacity_tokens == 8 * 128


def test_windows_of_a_full_batch_always_find_pages() -> None:
    config = ServingConfig(max_sequences=2, max_step_tokens=256, cache_tokens=65_536)
    manager = CacheManager(LAYOUT, page_counts(LAYOUT, config))
    length = {1: 0, 2: 0}
    for _ in range(64):
        for sequence_id, chunk in ((1, 255), (2, 1)):
            assert manager.reserve(sequence_id, length[sequence_id] + chunk) is not None
            length[sequence_id] += chunk
        for sequence_id, tokens in length.items():
            manager.trim(sequence_id, tokens)


class ManagerMachine(RuleBasedStateMachine):
    """Any order of reserve, trim and release keeps every page accounted for."""

    def __init__(self) -> None:
        super().__init__()
        self.manager = _manager()
        self.lengths: dict[int, int] = {}

    @rule(sequence_id=st.integers(0, 4), count=st.integers(1, 300))
    def reserve(self, sequence_id: int, count: int) -> None:
        wanted = self.lengths.get(sequence_id, 0) + count
        if self.manager.reserve(sequence_id, wanted) is not None:
            self.lengths[sequence_id] = wanted

    @precondition(lambda self: self.lengths)
    @rule(data=st.data())
    def trim(self, data: st.DataObject) -> None:
        sequence_id = data.draw(st.sampled_from(sorted(self.lengths)))
        self.manager.trim(sequence_id, self.lengths[sequence_id])

    @precondition(lambda self: self.lengths)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        sequence_id = data.draw(st.sampled_from(sorted(self.lengths)))
        self.manager.release(sequence_id)
        del self.lengths[sequence_id]

    @invariant()
    def every_page_is_accounted_for(self) -> None:
        self.manager.check()
        if not self.lengths:
            assert all(used == 0 for used, _ in self.manager.usage().values())


TestManagerMachine = ManagerMachine.TestCase
TestManagerMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
