"""The prefix cache: what is shared holds what the text says, whatever was evicted, and every page has its holders."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dsv4_backend.kv.listing import DiskListing
from dsv4_backend.kv.manager import CacheManager, CacheRules
from dsv4_backend.kv.prefix import KeyedTokens
from dsv4_backend.records import Tier

PAGE = 128
NO_HOST = {"block": 0, "state": 0}


def make_manager(
    block: int = 12,
    state: int = 6,
    host: dict[str, int] = NO_HOST,
    max_drafts: int = 0,
    disk: DiskListing | None = None,
) -> CacheManager:
    return CacheManager(
        CacheRules(
            device={"block": block, "state": state},
            host=host,
            keeps_prefixes=True,
            interval_tokens=2 * PAGE,
            max_drafts=max_drafts,
        ),
        disk,
    )


def text(*blocks: int, rest: int = 1) -> list[int]:
    """Tokens of some blocks, each filled with one number, and a few more."""
    return [block for block in blocks for _ in range(PAGE)] + [99] * rest


def compute(manager: CacheManager, sequence_id: int, tokens: list[int], salt: str = "", chunk: int = PAGE) -> int:
    """Compute a text in chunks as the scheduler does; return the tokens that were shared."""
    shared = manager.admit(sequence_id, KeyedTokens(tokens, salt), len(tokens))
    assert shared is not None
    done = shared
    while done < len(tokens):
        done = min(done + chunk, len(tokens))
        assert manager.reserve(sequence_id, done) is not None
        manager.commit(sequence_id, done)
    return shared


def test_a_text_that_begins_alike_shares_up_to_the_last_page_edge() -> None:
    manager = make_manager()
    compute(manager, 1, text(1, 2, 3))
    manager.release(1)
    assert compute(manager, 2, text(1, 2, 3, 4)) == 3 * PAGE


def test_a_branch_shares_up_to_the_snapshot_before_it() -> None:
    manager = make_manager()
    compute(manager, 1, text(1, 2, 3, 4))
    manager.release(1)
    assert compute(manager, 2, text(1, 2, 3, 9)) == 2 * PAGE  # a multiple of the interval


def test_the_same_text_again_leaves_one_token_to_compute() -> None:
    manager = make_manager()
    compute(manager, 1, text(1, 2, rest=0))
    manager.release(1)
    assert manager.admit(2, KeyedTokens(text(1, 2, rest=0)), 2 * PAGE) == PAGE


def test_other_tenants_share_nothing() -> None:
    manager = make_manager()
    compute(manager, 1, text(1, 2), salt="a")
    assert compute(manager, 2, text(1, 2), salt="b") == 0


def test_a_sequence_that_may_not_hit_is_kept_for_others() -> None:
    manager = make_manager()
    compute(manager, 1, text(1, 2))
    assert manager.admit(2, KeyedTokens(text(1, 2), may_hit=False), 3 * PAGE) == 0
    assert manager.admit(3, KeyedTokens(text(1, 2)), 3 * PAGE) == 2 * PAGE


def test_a_running_text_is_shared_while_it_runs() -> None:
    manager = make_manager()
    compute(manager, 1, text(1, 2))
    assert compute(manager, 2, text(1, 2, 3)) == 2 * PAGE
    manager.check()


def test_decoding_keeps_one_passing_snapshot() -> None:
    manager = make_manager(state=9)
    tokens = text(1, rest=0)
    keyed = KeyedTokens(tokens)
    manager.admit(1, keyed, PAGE)
    for _ in range(5 * PAGE):
        manager.reserve(1, len(tokens))
        manager.commit(1, len(tokens))
        tokens.append(7)
    assert manager.kept()["state"] == 3  # at 256 and 512, and the passing one at 640


def test_kept_pages_give_way_to_sequences() -> None:
    manager = make_manager()
    for number in range(5):
        compute(manager, number, text(10 * number, 10 * number + 1, 10 * number + 2))
        manager.release(number)
        manager.check()
    assert manager.admit(9, KeyedTokens(text(*range(100, 111))), 12 * PAGE) == 0
    assert manager.reserve(9, 12 * PAGE) is not None


def test_the_least_recently_used_text_is_evicted_first() -> None:
    manager = make_manager(block=7)
    for number, blocks in ((1, (1, 2)), (2, (3, 4)), (3, (1, 2))):
        compute(manager, number, text(*blocks))
        manager.release(number)
    compute(manager, 4, text(5, 6, 7, 8))
    manager.release(4)
    assert manager.admit(5, KeyedTokens(text(3, 4)), PAGE) == 0
    assert manager.admit(6, KeyedTokens(text(1, 2)), PAGE) == 2 * PAGE


def test_a_sequence_without_room_holds_nothing() -> None:
    manager = make_manager()
    compute(manager, 1, text(1, 2))
    manager.release(1)
    before = manager.kept()
    assert manager.admit(2, KeyedTokens(text(1, 2)), 13 * PAGE) is None
    assert (manager.kept(), [used for used, _ in manager.usage().values()]) == (before, [0] * 2)
    manager.check()


def test_lost_ranks_leave_nothing_to_share() -> None:
    manager = make_manager()
    compute(manager, 1, text(1, 2))
    manager.release(1)
    manager.forget_beginnings()
    assert manager.take_copies() == () and compute(manager, 2, text(1, 2)) == 0


def test_what_has_no_room_moves_to_host_memory_and_comes_back() -> None:
    manager = make_manager(block=4, state=3, host={"block": 8, "state": 8})
    for number in range(3):
        compute(manager, number, text(10 * number, 10 * number + 1))
        manager.release(number)
        manager.check()
    moved = [item for item in manager.take_copies() if item.target_tier is Tier.HOST]
    assert {item.kind for item in moved} == {"block", "state"}
    assert manager.admit(9, KeyedTokens(text(0, 1)), 2 * PAGE) == 2 * PAGE
    back = [item for item in manager.take_copies() if item.source_tier is Tier.HOST]
    assert sorted(item.kind for item in back) == ["block", "block", "state"]
    manager.check()


def test_what_comes_back_is_not_lost_to_what_makes_room_for_it() -> None:
    manager = make_manager(block=3, host={"block": 2, "state": 6})
    for number, blocks in ((1, (1, 2)), (2, (3, 4))):  # the first text ends up in host memory, which is full then
        compute(manager, number, text(*blocks))
        manager.release(number)
    manager.reserve(3, 1)
    assert manager.admit(4, KeyedTokens(text(1, 2)), 2 * PAGE) == 2 * PAGE
    manager.check()


def test_the_least_recently_used_leaves_host_memory_first() -> None:
    manager = make_manager(block=2, state=2, host={"block": 4, "state": 2})
    for number in range(5):
        compute(manager, number, text(10 * number, rest=1))
        manager.release(number)
        manager.check()
    assert manager.admit(8, KeyedTokens(text(0)), PAGE) == 0
    assert manager.admit(9, KeyedTokens(text(30)), PAGE) == PAGE


def test_the_snapshot_that_is_cheapest_to_recompute_goes_first() -> None:
    manager = make_manager(block=20, state=6)
    compute(manager, 1, text(*range(6)))  # snapshots behind blocks 2, 4 and 6
    manager.release(1)
    compute(manager, 2, text(20, rest=1))
    manager.release(2)
    compute(manager, 3, text(30, 31, rest=1))
    manager.release(3)
    compute(manager, 4, text(40, rest=1))
    assert manager.admit(5, KeyedTokens(text(20)), PAGE) == 0  # one block to compute again, not two
    assert manager.admit(6, KeyedTokens(text(0, 1, 9)), PAGE) == 2 * PAGE


def test_a_snapshot_is_taken_although_drafts_jumped_over_the_edge() -> None:
    manager = make_manager(max_drafts=3)
    tokens = text(1, 2, rest=3)
    manager.admit(1, KeyedTokens(tokens), 2 * PAGE)
    for done in (2 * PAGE - 1, 2 * PAGE + 2):
        manager.reserve(1, done)
        manager.commit(1, done)
    assert manager.admit(2, KeyedTokens(tokens), 2 * PAGE) == 2 * PAGE


def test_no_snapshot_is_taken_where_the_rings_have_moved_on() -> None:
    manager = make_manager(max_drafts=3)
    manager.admit(1, KeyedTokens(text(1, 2, rest=9)), 2 * PAGE)
    manager.reserve(1, 2 * PAGE + 4)
    manager.commit(1, 2 * PAGE + 4)
    assert manager.kept()["state"] == 0


class PrefixMachine(RuleBasedStateMachine):
    """Ranks that only remember which text each place was computed from: what is shared must be the sequence's own."""

    def __init__(self) -> None:
        super().__init__()
        self.disk = DiskListing(None)
        self.disk.is_on = True
        self.manager = make_manager(block=7, state=5, host={"block": 6, "state": 4}, disk=self.disk)
        self.written: dict[tuple[Tier, str, int | bytes], tuple[int, ...]] = {}  # place → tokens up to its block's end
        self.tokens: dict[int, list[int]] = {}
        self.done: dict[int, int] = {}
        self.next_id = 0

    def read(self, sequence_id: int) -> dict[str, tuple[int, ...]]:
        return {item.kind: item.page_ids for item in self.manager.grants(sequence_id)}

    def run_copies(self) -> list[bytes]:
        """Make the copies; return the keys of files that were never written, because the ranks were lost before."""
        missing = []
        for item in self.manager.take_copies():
            if item.source_tier is Tier.DISK and (Tier.DISK, item.kind, item.key) not in self.written:
                missing.append(item.key)
                continue
            source = item.key if item.source_tier is Tier.DISK else item.source
            target = item.key if item.target_tier is Tier.DISK else item.target
            self.written[item.target_tier, item.kind, target] = self.written[item.source_tier, item.kind, source]
        return missing

    def check_shared(self, sequence_id: int, shared: int) -> None:
        """What a sequence begins with was computed from its own text."""
        tokens, held = self.tokens[sequence_id], self.read(sequence_id)
        if shared and shared % PAGE == 0:
            assert self.written[Tier.DEVICE, "state", held["state"][0]] == tuple(tokens[:shared])
        for block in range(shared // PAGE):
            assert self.written[Tier.DEVICE, "block", held["block"][block]] == tuple(tokens[: (block + 1) * PAGE])

    @rule(blocks=st.lists(st.integers(0, 1), max_size=5), rest=st.integers(1, 130), salt=st.integers(0, 1))
    def begin(self, blocks: list[int], rest: int, salt: int) -> None:
        self.next_id += 1
        tokens = [salt, *text(*blocks, rest=rest)[1:]]
        shared = self.manager.admit(self.next_id, KeyedTokens(tokens, str(salt)), len(tokens))
        if shared is None or len(self.tokens) > 3:
            self.manager.release(self.next_id)
            return
        missing = self.run_copies()
        if missing:  # as the scheduler does when a rank says so
            self.manager.forget(missing)
            self.manager.release(self.next_id)
            return
        self.tokens[self.next_id], self.done[self.next_id] = tokens, shared
        self.check_shared(self.next_id, shared)

    @rule(blocks=st.lists(st.integers(0, 1), min_size=1, max_size=4))
    def answer(self, blocks: list[int]) -> None:
        """A whole request: what it leaves is soon in host memory, and is asked for again."""
        self.begin(blocks, 1, 0)
        if self.next_id in self.tokens:
            while self.done[self.next_id] < len(self.tokens[self.next_id]):
                before = self.done[self.next_id]
                self.advance(self.next_id, PAGE)
                if self.done[self.next_id] == before:
                    break
            self.drop(self.next_id)

    @precondition(lambda self: any(self.done.values()) and len(self.tokens) <= 3)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        parent = data.draw(st.sampled_from(sorted(number for number, done in self.done.items() if done)))
        self.next_id += 1
        done, tokens = self.done[parent], list(self.tokens[parent])
        self.run_copies()
        if self.manager.reserve(parent, done) is None:
            return
        if self.manager.fork(parent, self.next_id, KeyedTokens(tokens, str(tokens[0])), done):
            self.tokens[self.next_id], self.done[self.next_id] = tokens, done
            self.run_copies()
            self.check_shared(self.next_id, done)

    @precondition(lambda self: self.tokens)
    @rule(data=st.data(), count=st.integers(1, 300))
    def compute(self, data: st.DataObject, count: int) -> None:
        self.advance(data.draw(st.sampled_from(sorted(self.tokens))), count)

    def advance(self, sequence_id: int, count: int) -> None:
        tokens, start = self.tokens[sequence_id], self.done[sequence_id]
        tokens += [5] * max(0, start + 1 - len(tokens))
        end = min(start + count, len(tokens))
        if self.manager.reserve(sequence_id, end) is None:
            return
        self.run_copies()
        held = self.read(sequence_id)
        self.written[Tier.DEVICE, "state", held["state"][0]] = tuple(tokens[:end])
        for block in range(start // PAGE, -(-end // PAGE)):
            self.written[Tier.DEVICE, "block", held["block"][block]] = tuple(tokens[: min((block + 1) * PAGE, end)])
        self.done[sequence_id] = end
        self.manager.commit(sequence_id, end)

    @precondition(lambda self: self.tokens)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        self.drop(data.draw(st.sampled_from(sorted(self.tokens))))

    def drop(self, sequence_id: int) -> None:
        self.manager.release(sequence_id)
        del self.tokens[sequence_id], self.done[sequence_id]

    @rule()
    def lose_ranks(self) -> None:
        self.manager.forget_beginnings()
        for sequence_id in list(self.tokens):
            self.manager.release(sequence_id)
        self.tokens, self.done = {}, {}
        self.written = {place: tokens for place, tokens in self.written.items() if place[0] is Tier.DISK}

    @precondition(lambda self: any(place[0] is Tier.DISK for place in self.written))
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        """A file cannot be read: whoever runs has not begun with it, so it is forgotten and nothing else happens."""
        keys = sorted(place[2] for place in self.written if place[0] is Tier.DISK)
        self.manager.forget([data.draw(st.sampled_from(keys))])

    @invariant()
    def every_place_has_its_holders(self) -> None:
        self.manager.check()
        if not self.tokens:
            assert all(used == 0 for used, _ in self.manager.usage().values())


TestPrefixMachine = PrefixMachine.TestCase
TestPrefixMachine.settings = settings(max_examples=150, stateful_step_count=70, deadline=None)
