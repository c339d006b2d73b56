"""Thinking and answer are told apart while the text streams."""

from __future__ import annotations

from dsv4_client.thinking import ThinkingSplitter
from hypothesis import given
from hypothesis import strategies as st


def split(chunks: list[str], *, is_thinking: bool = True) -> tuple[str, str]:
    """Push chunks and return thinking and answer."""
    splitter = ThinkingSplitter(is_thinking=is_thinking)
    pieces = [piece for chunk in chunks for piece in splitter.push(chunk)] + list(splitter.finish())
    return ("".join(piece.text for piece in pieces if piece.is_thinking),
            "".join(piece.text for piece in pieces if not piece.is_thinking))  # fmt: skip


def test_text_before_the_closing_tag_is_thinking() -> None:
    assert split(["let me see</think>four"]) == ("let me see", "four")


def test_without_thinking_all_text_is_the_answer() -> None:
    assert split(["four"], is_thinking=False) == ("", "four")


def test_opening_tag_begins_thinking() -> None:
    assert split(["a<think>b</think>c"], is_thinking=False) == ("b", "ac")


def test_beginning_of_a_tag_that_does_not_come_is_text() -> None:
    assert split(["2 </thin", "g"]) == ("2 </thing", "")


def test_text_that_cannot_begin_a_tag_is_not_held_back() -> None:
    assert [piece.text for piece in ThinkingSplitter(is_thinking=True).push("so ")] == ["so "]


@given(thinking=st.text("ab<>/think"), answer=st.text("ab c"), data=st.data())
def test_cuts_between_chunks_change_nothing(thinking: str, answer: str, data: st.DataObject) -> None:
    thinking = thinking.replace("</think>", "")
    text = f"{thinking}</think>{answer}"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)))))
    chunks = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert split(chunks) == split([text])
