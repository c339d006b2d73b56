"""Places: reserved together, shared by forks, never lost."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dsv4_backend.config import ServingConfig
from dsv4_backend.kv.manager import CacheManager, CacheRules, cache_rules
from dsv4_backend.kv.pool import PagePool
from dsv4_backend.kv.prefix import KeyedTokens
from dsv4_backend.records import PageCopy


def _manager(block: int = 8, state: int = 3) -> CacheManager:
    return CacheManager(CacheRules(device={"block": block, "state": state}))


def test_a_reservation_covers_every_block() -> None:
    grants = {grant.kind: grant for grant in _manager().reserve(1, 257) or ()}
    assert {kind: len(grant.page_ids) for kind, grant in grants.items()} == {"block": 3, "state": 1}


def test_a_second_reservation_grants_only_what_is_new() -> None:
    manager = _manager()
    manager.reserve(1, 100)
    assert [(grant.kind, grant.first_block) for grant in manager.reserve(1, 129) or ()] == [("block", 1)]
    assert manager.reserve(1, 250) == ()


@pytest.mark.parametrize(("block", "state"), [(2, 3), (8, 0)])
def test_nothing_is_reserved_when_one_kind_is_short(block: int, state: int) -> None:
    manager = _manager(block, state)
    assert manager.reserve(1, 300) is None
    assert all(used == 0 for used, _ in manager.usage().values())


def test_all_grants_of_a_sequence_start_at_its_first_block() -> None:
    manager = _manager()
    manager.reserve(1, 100)
    manager.reserve(1, 300)
    assert {grant.kind: (grant.first_block, len(grant.page_ids)) for grant in manager.grants(1)} == {
        "block": (0, 3),
        "state": (0, 1),
    }


def test_a_page_cannot_be_released_twice() -> None:
    pool = PagePool("block", 2)
    pages = pool.reserve(1)
    pool.release(pages)
    with pytest.raises(ValueError, match="not in use"):
        pool.release(pages)


def test_capacity_is_what_the_pages_hold() -> None:
    assert _manager(block=8).capacity_tokens == 8 * 128


def test_a_state_is_there_for_every_sequence_and_snapshot() -> None:
    rules = cache_rules(ServingConfig(max_sequences=5, max_snapshots=7, cache_tokens=1024, host_cache_tokens=256))
    assert (rules.device, rules.host) == ({"block": 8, "state": 12}, {"block": 2, "state": 256})


def test_a_fork_shares_full_blocks_and_copies_the_rest() -> None:
    manager = _manager()
    manager.reserve(1, 300)
    assert manager.fork(1, 2, KeyedTokens([0] * 300), 300)
    first, second = ({grant.kind: grant.page_ids for grant in manager.grants(number)} for number in (1, 2))
    assert first["block"][:2] == second["block"][:2] and first["block"][2] != second["block"][2]
    assert manager.take_copies() == (
        PageCopy(kind="block", source=first["block"][2], target=second["block"][2]),
        PageCopy(kind="state", source=first["state"][0], target=second["state"][0]),
    )
    manager.release(1)
    manager.check()
    assert manager.usage()["block"][0] == 3


def test_a_fork_at_a_page_edge_copies_the_state_alone() -> None:
    manager = _manager()
    manager.reserve(1, 256)
    assert manager.fork(1, 2, KeyedTokens([0] * 256), 256)
    assert [item.kind for item in manager.take_copies()] == ["state"]


@pytest.mark.parametrize(("block", "state"), [(3, 2), (8, 1)])
def test_a_fork_without_room_holds_nothing(block: int, state: int) -> None:
    manager = _manager(block, state)
    manager.reserve(1, 300)
    before = manager.usage()
    assert not manager.fork(1, 2, KeyedTokens([0] * 300), 300)
    assert (manager.usage(), manager.take_copies()) == (before, ())
    manager.check()


class ManagerMachine(RuleBasedStateMachine):
    """Any order of reserve, fork and release keeps every place accounted for."""

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
    @rule(data=st.data(), child=st.integers(5, 9))
    def fork(self, data: st.DataObject, child: int) -> None:
        parent = data.draw(st.sampled_from(sorted(self.lengths)))
        length = data.draw(st.integers(1, self.lengths[parent]))
        if child not in self.lengths and self.manager.fork(parent, child, KeyedTokens([0] * length), length):
            self.lengths[child] = length

    @precondition(lambda self: self.lengths)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        sequence_id = data.draw(st.sampled_from(sorted(self.lengths)))
        self.manager.release(sequence_id)
        del self.lengths[sequence_id]

    @invariant()
    def every_place_is_accounted_for(self) -> None:
        self.manager.check()
        if not self.lengths:
            assert all(used == 0 for used, _ in self.manager.usage().values())


TestManagerMachine = ManagerMachine.TestCase
TestManagerMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
