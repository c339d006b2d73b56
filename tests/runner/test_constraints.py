"""Constraints on the real model: the answer matches, reasoning is free, a dead end ends one request alone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from library import answer, answer_together, prompt

from dsv4_backend.assemble import build_engine, load_vocabulary
from dsv4_backend.config import ServingConfig
from dsv4_backend.engine import Engine
from dsv4_backend.records import Constraint, ConstraintKind, FinishReason, Limits, Prompt, SamplingParams
from dsv4_backend.runner.inline import InlineExecutor
from dsv4_backend.runner.rank import Rank
from dsv4_backend.text import Vocabulary, join_bytes


@pytest.fixture(scope="module")
def config(random_checkpoint: Path) -> ServingConfig:
    return ServingConfig(checkpoint=str(random_checkpoint), num_threads=1)


@pytest.fixture(scope="module")
def engine(config: ServingConfig) -> Iterator[Engine]:
    built = build_engine(config, executor=InlineExecutor(lambda: Rank.load(config)))
    built.start()
    yield built
    built.close()


@pytest.fixture(scope="module")
def vocabulary(config: ServingConfig) -> Vocabulary:
    return load_vocabulary(config)


def _constrained(kind: ConstraintKind, value: str, *, ids: tuple[int, ...] = ()) -> Prompt:
    item = prompt(12)
    return Prompt(
        token_ids=item.token_ids + ids,
        sampling=SamplingParams(temperature=1.0, seed=3),
        limits=Limits(max_tokens=60),
        constraint=Constraint(kind=kind, value=value),
    )


def _text(vocabulary: Vocabulary, token_ids: tuple[int, ...]) -> str:
    return join_bytes(vocabulary, [token for token in token_ids if token != vocabulary.eos_id]).decode()


def test_the_answer_matches_the_expression(engine: Engine, vocabulary: Vocabulary) -> None:
    got = answer(engine, _constrained(ConstraintKind.REGEX, "(yes|no) [0-9]{3}"))
    assert re.fullmatch("(yes|no) [0-9]{3}", _text(vocabulary, got.token_ids))
    assert got.final.finish_reason is FinishReason.STOP


def test_the_answer_matches_the_schema(engine: Engine, vocabulary: Vocabulary) -> None:
    schema = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}
    got = answer(engine, _constrained(ConstraintKind.JSON_SCHEMA, json.dumps(schema | {"additionalProperties": False})))
    assert set(json.loads(_text(vocabulary, got.token_ids))) == {"on"}


def test_reasoning_is_free_and_the_answer_after_it_is_not(engine: Engine, vocabulary: Vocabulary) -> None:
    assert vocabulary.think_open_id is not None
    item = _constrained(ConstraintKind.REGEX, "[0-9]{4}", ids=(vocabulary.think_open_id,))
    item = replace(item, limits=replace(item.limits, max_reasoning_tokens=5))
    thought, _, rest = _text(vocabulary, answer(engine, item).token_ids).rpartition("</think>")
    assert thought and re.fullmatch("[0-9]{4}", rest)


def test_a_constrained_answer_is_the_same_alone_and_among_others(engine: Engine, vocabulary: Vocabulary) -> None:
    assert vocabulary.think_open_id is not None
    schema = {"type": "object", "properties": {"Größe": {"type": "string", "maxLength": 6}}, "required": ["Größe"]}
    items = [
        _constrained(ConstraintKind.JSON_SCHEMA, json.dumps(schema)),
        prompt(12, temperature=1.0),
        _constrained(ConstraintKind.REGEX, "[0-9]{4}", ids=(vocabulary.think_open_id,)),
        _constrained(ConstraintKind.REGEX, "(yes|no) [0-9]{3}"),
    ]
    alone = [answer(engine, item).token_ids for item in items]
    assert [got.token_ids for got in answer_together(engine, items)] == alone


def test_a_dead_end_ends_that_request_alone(engine: Engine) -> None:
    dead = _constrained(ConstraintKind.REGEX, "[0-9]{4}")
    banned = tuple((token, -1e38) for token in range(1024))
    item = replace(dead, sampling=replace(dead.sampling, logit_bias=tuple((t, float("-inf")) for t, _ in banned)))
    stuck, good = answer_together(engine, [item, prompt(12)])
    assert (stuck.final.finish_reason, good.final.finish_reason) == (FinishReason.ERROR, FinishReason.LENGTH)
    assert "allows no token" in stuck.final.error


def test_a_constraint_that_cannot_be_compiled_names_the_reason(engine: Engine) -> None:
    got = answer(engine, _constrained(ConstraintKind.GRAMMAR, "root ::= undefined_rule"))
    assert got.final.finish_reason is FinishReason.ERROR and "cannot be compiled" in got.final.error
