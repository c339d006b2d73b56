"""Cutting a stream of bytes never changes its text."""

from __future__ import annotations

import codecs

from hypothesis import example, given
from hypothesis import strategies as st

from dsv4_backend.text import complete_length

# Bytes at the edges of the UTF-8 table, so that wrong sequences are as frequent as right ones.
edges = st.sampled_from(
    bytes.fromhex("0041 7f80 8f90 9fa0 bfc0 c1c2 dfe0 e1ec edee eff0 f1f3 f4f5 ff".replace(" ", ""))
)
broken = st.lists(edges, max_size=12).map(bytes)
whole = st.text(max_size=6).map(str.encode)


def held_by_python(data: bytes) -> int:
    """Bytes that Python's incremental decoder keeps back, surrogates left out: only `surrogatepass` completes them."""
    if len(data) > 1 and data[-2] == 0xED and 0xA0 <= data[-1] <= 0xBF:
        return 0
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(data)
    return len(decoder.getstate()[0])


@given(data=broken | whole | st.builds(bytes.__add__, whole, broken) | st.binary(max_size=6))
@example("€".encode()[:2])
@example("🙂".encode()[:3])
@example(b"\xf4\x90")
@example(b"\xed\xa0")
def test_as_much_is_held_as_python_holds(data: bytes) -> None:
    assert len(data) - complete_length(data) == held_by_python(data)


@given(data=broken, cuts=st.lists(st.integers(0, 12)))
def test_released_pieces_join_to_the_text_of_the_whole(data: bytes, cuts: list[int]) -> None:
    text, start, held = "", 0, b""
    for end in [*sorted(cut for cut in cuts if cut < len(data)), len(data)]:
        held += data[start:end]
        start = end
        cut = complete_length(held)
        text += held[:cut].decode("utf-8", "replace")
        held = held[cut:]
    assert text + held.decode("utf-8", "replace") == data.decode("utf-8", "replace")
