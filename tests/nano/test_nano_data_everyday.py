"""Everyday tools: what is said is what is called, and evaluation has requests and tools of its own."""

from __future__ import annotations

import itertools
import re

import pytest
from nano_data import Example, Mix, Split, stream
from nano_data.coined import coined
from nano_data.common import COMMON
from nano_data.draw import Draw
from nano_data.everyday import (
    OFFERS,
    OPTIONAL,
    SINGLE,
    Offer,
    implied,
    make_everyday_tool,
    make_request,
    mentioned,
    needed,
)
from nano_data.talk import UNABLE, UNKNOWN
from nano_data.wordings import WORDINGS
from nano_wordings import words_apart

UNSEEN = {offer.key for offer in OFFERS if not offer.asks.train}
TABLES = {offer.key: (offer.asks.train, offer.asks.held_out) for offer in OFFERS} | {
    name: tuple(tuple(WORDINGS[name][part].splitlines()) for part in ("train", "held_out"))
    for name in ("everyday_frames", "everyday_joints")
}


def some(split: Split, count: int) -> list[Example]:
    mix = Mix(families={"everyday": 1}, modes={"off": 1})
    return list(itertools.islice(stream(5, split, mix), count))


@pytest.mark.parametrize("offer", OFFERS, ids=lambda offer: offer.key)
def test_every_request_can_be_made_and_carries_its_arguments(offer: Offer) -> None:
    keys = {item.key: item for item in offer.parameters}
    parts: tuple[tuple[Split, tuple[str, ...]], ...] = (("train", offer.asks.train), ("eval", offer.asks.held_out))
    for split, templates in parts:
        for number, template in enumerate(templates):
            assert set(mentioned(template)) | needed(template) <= keys.keys(), template
            draw = Draw(f"{offer.key}/{number}", split)
            item = make_everyday_tool(draw, offer)
            if not item.names.keys() >= needed(template):
                continue  # a parameter that may be left out was, and another request is chosen
            request = make_request(draw, item, template)
            fixed = {item.names[key]: value for key, value in implied(template.partition(" => ")[2]).items()}
            assert fixed.items() <= request.call.arguments.items()
            for name, value in request.call.arguments.items():
                texts = value if isinstance(value, list) else [value]
                assert name in fixed or all(str(text) in request.words for text in texts), request.words
            assert set(item.tool.required) <= request.call.arguments.keys()


def test_no_request_begins_with_words_to_be_copied() -> None:
    """Its first letter may change; digits have no case."""
    for offer in OFFERS:
        kinds = {item.key: item.kind for item in offer.parameters}
        for template in (*offer.asks.train, *offer.asks.held_out):
            begin = re.match(r"\[?\{(\w+)\}", template)
            assert not begin or begin[1] == "t" or kinds[begin[1]] in ("amount", "expression"), template


def test_requests_of_evaluation_are_no_training_requests_with_one_word_changed() -> None:
    for key, (train, held_out) in TABLES.items():
        for mine, theirs in itertools.product(train, held_out):
            pairs = itertools.product(spoken(mine), spoken(theirs))
            near = [pair for pair in pairs if len(pair[1].split()) >= 4 and words_apart(*pair) <= 1]
            assert not near, (key, near)


def spoken(template: str) -> tuple[str, str]:
    """A template without and with what is said only sometimes."""
    text = template.partition(" => ")[0]
    return OPTIONAL.sub("", text), OPTIONAL.sub(r"\1", text)


def test_some_tools_are_seen_in_evaluation_alone() -> None:
    splits: tuple[Split, ...] = ("train", "eval")
    names = {
        split: {tool["function"]["name"] for item in some(split, 150) for tool in item.body.get("tools", ())}
        for split in splits
    }
    unseen = {name for offer in SINGLE if offer.key in UNSEEN for name in offer.names}
    assert len(UNSEEN) >= 8
    assert not names["train"] & unseen
    assert len(names["eval"] & unseen) >= 5


def test_what_no_tool_can_do_is_refused() -> None:
    refused = [item for item in some("train", 300) if item.answer.strip() in (UNKNOWN, UNABLE)]
    assert 5 <= len(refused) <= 60
    assert any("tools" in item.body for item in refused)


def test_what_was_told_is_repeated() -> None:
    told = [item for item in some("eval", 300) if "tools" not in item.body and item.answer not in (UNKNOWN, UNABLE)]
    assert len(told) >= 10
    for item in told:
        value = item.answer.strip().partition(" is ")[2].removesuffix(".")
        assert any(f"is {value}" in message["content"] for message in item.body["messages"])


def test_coined_words_are_many_and_values_fit_their_schema() -> None:
    draw = Draw("coined", "train")
    assert len({coined(draw) for _ in range(1000)}) > 900
    for name, kind in COMMON.items():
        value = kind.sample(draw)
        wanted = {"string": str, "integer": int, "number": (int, float), "array": list, "boolean": bool}
        assert isinstance(value, wanted[kind.schema["type"]]), name  # type: ignore[arg-type]
