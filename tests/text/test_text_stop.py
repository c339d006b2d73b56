"""The stop matcher against a search that looks at everything again after each byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv4_backend.errors import RequestError
from dsv4_backend.text import StopMatcher, StopState

few = st.lists(st.sampled_from(b"ab"), min_size=1, max_size=4).map(bytes)
stop_lists = st.lists(few, max_size=4)
pieces = st.lists(st.lists(st.sampled_from(b"abc"), max_size=5).map(bytes), max_size=8)


def searched(stops: list[bytes], data: bytes) -> StopState:
    """What the matcher must say after `data`."""
    for end in range(len(data) + 1):
        ending = [stop for stop in stops if data[:end].endswith(stop)]
        if ending:
            return StopState(hit_at=end - max(map(len, ending)))
    beginnings = [length for stop in stops for length in range(1, len(stop)) if data.endswith(stop[:length])]
    return StopState(pending=max(beginnings, default=0))


@given(stops=stop_lists, data=pieces)
def test_the_matcher_agrees_with_a_plain_search(stops: list[bytes], data: list[bytes]) -> None:
    matcher, seen = StopMatcher(stops), b""
    for piece in data:
        seen += piece
        assert matcher.push(piece) == searched(stops, seen)


def test_a_stop_string_is_found_across_pieces() -> None:
    matcher = StopMatcher([b"\n\nUser:"])
    assert matcher.push(b"done\n") == StopState(pending=1)
    assert matcher.push(b"\nUs") == StopState(pending=4)
    assert matcher.push(b"er: more") == StopState(hit_at=4)


def test_a_hit_stays() -> None:
    matcher = StopMatcher([b"x"])
    matcher.push(b"ax")
    assert matcher.push(b"x") == StopState(hit_at=1)


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(RequestError, match="empty"):
        StopMatcher([b"a", b""])


def test_without_stop_strings_nothing_is_pending() -> None:
    assert StopMatcher([]).push(b"anything") == StopState()
