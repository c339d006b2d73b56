"""Drafts from a sequence's own text, and how many of them it gets."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dsv4_backend.speculative import DraftPace, NgramDrafts
from dsv4_backend.speculative.pace import PAUSE_TOKENS


def test_what_followed_the_newest_tokens_is_proposed() -> None:
    assert NgramDrafts([1, 2, 3, 4, 5, 9, 2, 3]).propose(2) == (4, 5)


def test_a_longer_run_wins_over_a_later_shorter_one() -> None:
    assert NgramDrafts([1, 2, 3, 7, 0, 2, 3, 8, 0, 1, 2, 3]).propose(1) == (7,)


def test_the_latest_of_equal_runs_wins() -> None:
    assert NgramDrafts([5, 6, 1, 5, 6, 2, 5, 6]).propose(1) == (2,)


def test_new_tokens_are_seen() -> None:
    tokens = [1, 2, 3]
    drafts = NgramDrafts(tokens)
    assert drafts.propose(3) == ()
    tokens += [1, 2]
    assert drafts.propose(3) == (3, 1, 2)


@given(tokens=st.lists(st.integers(0, 3), max_size=40), count=st.integers(1, 5))
def test_a_proposal_followed_the_same_two_tokens_before(tokens: list[int], count: int) -> None:
    found = NgramDrafts(tokens).propose(count)
    followers = [tokens[end : end + count] for end in range(2, len(tokens)) if tokens[end - 2 : end] == tokens[-2:]]
    assert list(found) in followers if found else not followers


def test_accepted_drafts_bring_more_and_rejected_ones_a_pause() -> None:
    pace = DraftPace(max_drafts=4)
    for _ in range(20):
        pace.note(4, 4)
    assert pace.count() == 4
    for _ in range(20):
        pace.note(4, 0)
        if pace.pause:
            break
    assert [pace.count() for _ in range(PAUSE_TOKENS)] == [0] * PAUSE_TOKENS
    assert pace.count() == 1
