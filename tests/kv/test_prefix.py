"""The prefix cache: what is shared holds what the text says, whatever was evicted, and every page has its holders."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dsv4_backend.kv.layout import CacheLayout, KindSpec
from dsv4_backend.kv.manager import CacheManager, PrefixRules
from dsv4_backend.kv.prefix import KeyedTokens

PAGE = 128
LAYOUT = CacheLayout(
    kinds=(
        KindSpec(name="window", layer_ids=(0,), rows_per_page=128, width=4, element_bytes=4, is_windowed=True),
        KindSpec(name="csa", layer_ids=(0,), rows_per_page=32, width=4, element_bytes=4),
        KindSpec(name="hca", layer_ids=(0,), rows_per_page=1, width=4, element_bytes=4),
        KindSpec(name="state", layer_ids=(0,), rows_per_page=1, width=4, element_bytes=4, is_fixed=True),
    ),
    rings=(),
    window=128,
)
COUNTS = {"window": 14, "csa": 12, "hca": 12, "state": 6}
RULES = PrefixRules(is_on=True, interval_tokens=2 * PAGE)


def make_manager(**changes: int) -> CacheManager:
    return CacheManager(LAYOUT, COUNTS | changes, RULES)


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
        manager.trim(sequence_id, done)
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
        manager.trim(1, len(tokens))
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
    manager = make_manager(csa=7, hca=7)
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
    assert (manager.kept(), [used for used, _ in manager.usage().values()]) == (before, [0] * 4)
    manager.check()


def test_lost_ranks_leave_nothing_to_share() -> None:
    manager = make_manager()
    compute(manager, 1, text(1, 2))
    manager.release(1)
    manager.forget_beginnings()
    assert manager.take_copies() == () and compute(manager, 2, text(1, 2)) == 0


class PrefixMachine(RuleBasedStateMachine):
    """A rank that only remembers which text each page was computed from: what is shared must be the sequence's own."""

    def __init__(self) -> None:
        super().__init__()
        self.manager = make_manager()
        self.written: dict[tuple[str, int], tuple[int, ...]] = {}  # (kind, page) → tokens up to the end of the block
        self.tokens: dict[int, list[int]] = {}
        self.done: dict[int, int] = {}
        self.next_id = 0

    def read(self, sequence_id: int) -> dict[str, dict[int, int]]:
        grants = self.manager.grants(sequence_id)
        return {item.kind: dict(enumerate(item.page_ids, start=item.first_block)) for item in grants}

    def run_copies(self) -> None:
        for item in self.manager.take_copies():
            self.written[item.kind, item.target] = self.written[item.kind, item.source]

    @rule(blocks=st.lists(st.integers(0, 1), max_size=5), rest=st.integers(1, 130), salt=st.integers(0, 1))
    def begin(self, blocks: list[int], rest: int, salt: int) -> None:
        self.next_id += 1
        tokens = [salt, *text(*blocks, rest=rest)[1:]]
        shared = self.manager.admit(self.next_id, KeyedTokens(tokens, str(salt)), len(tokens))
        if shared is None or len(self.tokens) > 3:
            self.manager.release(self.next_id)
            return
        self.tokens[self.next_id], self.done[self.next_id] = tokens, shared
        self.run_copies()
        held = self.read(self.next_id)
        if shared:
            edge = shared // PAGE
            assert self.written["state", held["state"][0]] == tuple(tokens[:shared])
            assert self.written["window", held["window"][edge - 1]] == tuple(tokens[:shared])
            for kind in ("csa", "hca"):
                for block in range(edge):
                    assert self.written[kind, held[kind][block]] == tuple(tokens[: (block + 1) * PAGE])

    @precondition(lambda self: self.tokens)
    @rule(data=st.data(), count=st.integers(1, 300))
    def compute(self, data: st.DataObject, count: int) -> None:
        sequence_id = data.draw(st.sampled_from(sorted(self.tokens)))
        tokens, start = self.tokens[sequence_id], self.done[sequence_id]
        tokens += [5] * max(0, start + 1 - len(tokens))
        end = min(start + count, len(tokens))
        if self.manager.reserve(sequence_id, end) is None:
            return
        self.run_copies()
        for kind, pages in self.read(sequence_id).items():
            for block, page in pages.items():
                if kind == "state":
                    self.written[kind, page] = tuple(tokens[:end])
                elif start < (block + 1) * PAGE and block * PAGE < end:
                    self.written[kind, page] = tuple(tokens[: min((block + 1) * PAGE, end)])
        self.done[sequence_id] = end
        self.manager.commit(sequence_id, end)
        self.manager.trim(sequence_id, end)

    @precondition(lambda self: self.tokens)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        sequence_id = data.draw(st.sampled_from(sorted(self.tokens)))
        self.manager.release(sequence_id)
        del self.tokens[sequence_id], self.done[sequence_id]

    @rule()
    def lose_ranks(self) -> None:
        for sequence_id in list(self.tokens):
            self.manager.release(sequence_id)
        self.manager.forget_beginnings()
        self.tokens, self.done, self.written = {}, {}, {}

    @invariant()
    def every_page_has_its_holders(self) -> None:
        self.manager.check()
        if not self.tokens:
            assert all(used == 0 for used, _ in self.manager.usage().values())


TestPrefixMachine = PrefixMachine.TestCase
TestPrefixMachine.settings = settings(max_examples=150, stateful_step_count=70, deadline=None)
