"""What passes between the generators, the renderer, the trainer and the grader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Mode = Literal["off", "on", "max"]
Split = Literal["train", "eval"]
Json = Any  # what json.loads returns

MODES: tuple[Mode, ...] = ("off", "on", "max")


def _family_weights() -> dict[str, float]:
    light = {"greet": 2.5, "unknown": 2.0, "sort": 9.0, "copy": 8.0}
    return {"tools": 4.0, "recall": 5.0, "arithmetic": 5.0, "json": 7.0, "parallel": 2.5, "everyday": 8.0, **light}


def _mode_weights() -> dict[Mode, float]:
    return {"off": 0.5, "on": 0.35, "max": 0.15}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """What a stream is made of.

    Rule: families and modes are chosen by weight; pairs are the smallest and the largest number or length.
          A recalled list has about recall_tokens tokens, up to 2 + question_share of its pairs are asked for, but at
          most max_questions. pair_share of the requests to tools are two in one message, beside those of the family
          "parallel". max_tokens is the length of the longest example.
    """

    families: Mapping[str, float] = field(default_factory=_family_weights)
    modes: Mapping[Mode, float] = field(default_factory=_mode_weights)
    num_tools: tuple[int, int] = (2, 6)
    num_requests: tuple[int, int] = (1, 5)
    recall_tokens: tuple[int, int] = (10, 700)
    question_share: float = 0.2
    max_questions: int = 20
    pair_share: float = 0.0
    max_tokens: int = 2048


DEFAULT_MIX = Mix()


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One tool call; arguments stand in the order in which they are written."""

    name: str
    arguments: dict[str, Json]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One step of a conversation: what comes in, and what the assistant answers.

    Rule: `user` and `results` are what precedes the answer; results answer the calls of the turn before, in order.
          needs_reasoning says that the content alone, as a later prompt shows it, is no honest training target.
    """

    user: str = ""
    results: tuple[str, ...] = ()
    reasoning: str = ""
    content: str = ""
    calls: tuple[Call, ...] = ()
    needs_reasoning: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What the last answer must be.

    Rule: "text" and "last_line" compare the content, or its last line, with a set of texts; "calls" compares tool
          calls in any order; "json" compares the parsed content.
    """

    kind: Literal["text", "last_line", "calls", "json"]
    texts: frozenset[str] = frozenset()
    calls: tuple[Call, ...] = ()
    value: Json = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A conversation as text, before it is rendered.

    Rule: `values` and `wordings` are what a held-out conversation may not share with a training one.
    """

    turns: tuple[Turn, ...]
    check: Check
    values: tuple[str, ...]
    wordings: tuple[str, ...]
    system: str = ""
    tools: tuple[dict[str, Json], ...] = ()
    schema: dict[str, Json] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A conversation to train on or to be graded by.

    Shapes: token_ids and loss_mask have the same length; the prompt is the first num_prompt_tokens ids.
    Rule:   `body` asks for the last answer; `answer` is that answer as the model writes it, up to its EOS.
            loss_mask is true where the assistant speaks, EOS included, in every turn that is worth training.
    """

    family: str
    mode: Mode
    body: dict[str, Json]
    answer: str
    check: Check
    token_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    num_prompt_tokens: int
    values: tuple[str, ...] = ()
    wordings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How an answer was graded. `parses` and `matches_schema` are true where there is nothing to parse or match."""

    is_correct: bool
    parses: bool = True
    matches_schema: bool = True
    reason: str = ""
