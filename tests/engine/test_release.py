"""What leaves the runtime: complete characters, no byte of a stop string, every token once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dsv4_backend.engine.coalesce import join_chunks
from dsv4_backend.engine.release import Released, Releaser
from dsv4_backend.records import Chunk, Usage

TOKENS = [bytes([value]) for value in range(256)] + [
    "é".encode(), "日本".encode(), b"ab", b"abc", b"\xe6\x97", b"\xa5\xe6", b"\x9c\xac!", b"", b"END", b"xEN", b"Dy",
    "🙂".encode()[:3], "🙂".encode()[3:] + b"z",
]  # fmt: skip
ids = st.lists(st.one_of(st.integers(256, len(TOKENS) - 1), st.integers(32, 126), st.integers(0, 255)), max_size=24)


def _bytes(token_id: int) -> bytes:
    return TOKENS[token_id]


def _text(part: Released) -> str:
    joined = b"".join(_bytes(token) for token in part.text_ids)
    assert 0 <= part.skip_bytes <= part.keep_bytes <= len(joined)
    return joined[part.skip_bytes : part.keep_bytes].decode("utf-8", "replace")


def _run(token_ids: list[int], stop: tuple[bytes, ...] = (), echo: tuple[int, ...] = ()) -> list[Released]:
    releaser = Releaser(_bytes, stop, echo)
    parts = []
    for token_id in token_ids:
        if releaser.push(token_id):
            break
        parts.append(releaser.take())
    return [*parts, releaser.flush()]


def _expected(token_ids: list[int], stop: tuple[bytes, ...]) -> tuple[bytes, int]:
    """The slow truth: add tokens until some stop string is inside, then cut at the match that completes first."""
    data = b""
    for count, token_id in enumerate(token_ids, 1):
        data += _bytes(token_id)
        hits = [(data.find(item) + len(item), data.find(item)) for item in stop if item in data]
        if hits:
            return data[: min(hits)[1]], count
    return data, len(token_ids)


@given(ids)
def test_released_text_is_the_text_of_all_bytes(token_ids: list[int]) -> None:
    whole = b"".join(map(_bytes, token_ids)).decode("utf-8", "replace")
    assert "".join(map(_text, _run(token_ids))) == whole


@given(ids)
def test_every_token_is_listed_once_and_in_order(token_ids: list[int]) -> None:
    assert [token for part in _run(token_ids) for token in part.token_ids] == token_ids


@given(ids)
def test_at_most_three_bytes_are_held_back(token_ids: list[int]) -> None:
    releaser = Releaser(_bytes, (), ())
    for token_id in token_ids:
        releaser.push(token_id)
        releaser.take()
        assert releaser.num_held_bytes <= 3


stops = st.lists(
    st.sampled_from([b"END", b"ab", b"b", "日".encode(), b"\xe6\x97\xa5\xe6", b"abc"]), min_size=1, max_size=3
)


@given(ids, stops)
def test_text_is_cut_at_the_first_byte_of_the_stop_string(token_ids: list[int], stop: list[bytes]) -> None:
    parts = _run(token_ids, tuple(stop))
    data, num_tokens = _expected(token_ids, tuple(stop))
    assert "".join(map(_text, parts)) == data.decode("utf-8", "replace")
    assert [token for part in parts for token in part.token_ids] == token_ids[:num_tokens]


@given(ids, ids)
def test_an_echoed_prompt_stands_before_the_answer(prompt: list[int], answer: list[int]) -> None:
    whole = b"".join(map(_bytes, prompt + answer)).decode("utf-8", "replace")
    assert "".join(map(_text, _run(answer, echo=tuple(prompt)))) == whole


def test_a_stop_string_is_not_sought_in_the_echoed_prompt() -> None:
    prompt = tuple(b"an END here ")
    assert "".join(map(_text, _run(list(b"okEND"), (b"END",), prompt))) == "an END here ok"


def test_tokens_before_min_tokens_are_not_searched() -> None:
    releaser = Releaser(_bytes, (b"END",), ())
    assert not any(releaser.push(byte, is_matched=False) for byte in b"END")
    assert [releaser.push(byte) for byte in b"xEND"] == [False, False, False, True]
    assert _text(releaser.flush()) == "ENDx"


def test_the_end_token_is_listed_without_text() -> None:
    releaser = Releaser(_bytes, (), ())
    releaser.push(ord("a"))
    releaser.push(1, is_text=False)
    part = releaser.flush()
    assert (part.token_ids, _text(part)) == ((ord("a"), 1), "a")


@given(ids, st.lists(st.booleans(), min_size=26, max_size=26), stops)
def test_joined_chunks_say_what_the_single_ones_say(token_ids: list[int], joins: list[bool], stop: list[bytes]) -> None:
    parts = _run(token_ids, tuple(stop))
    chunks = [
        Chunk(
            request_id="r",
            index=index,
            token_ids=part.token_ids,
            text_ids=part.text_ids,
            skip_bytes=part.skip_bytes,
            keep_bytes=part.keep_bytes,
            usage=Usage(num_input_tokens=1, num_output_tokens=index),
        )
        for index, part in enumerate(parts)
    ]
    joined = [chunks[0]]
    for chunk, is_joined in zip(chunks[1:], joins, strict=False):
        if is_joined:
            joined[-1] = join_chunks(joined[-1], chunk)
        else:
            joined.append(chunk)
    texts = [_text(Released(text_ids=c.text_ids, skip_bytes=c.skip_bytes, keep_bytes=c.keep_bytes)) for c in joined]
    assert "".join(texts) == "".join(map(_text, parts))
    assert [token for chunk in joined for token in chunk.token_ids] == [t for p in parts for t in p.token_ids]
