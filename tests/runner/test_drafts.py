"""Drafts change no answer: the same tokens and the same logprobs, whatever is asked for and whatever happens."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from library import Answer, Counts, answer, answer_together, open_engine, prompt

from dsv4_backend.config import CacheFormat, Drafter
from dsv4_backend.errors import ConfigError
from dsv4_backend.records import Constraint, ConstraintKind, Prompt

ROOT = Path(__file__).resolve().parents[2]
MAX_DRAFTS = 4
DRAFTERS = [Drafter.NGRAM, Drafter.MTP, Drafter.DSPARK]


@dataclass(frozen=True)
class Drafting:
    """A checkpoint, and the settings with which it drafts."""

    checkpoint: Path
    settings: dict[str, object]


@pytest.fixture(scope="module", params=DRAFTERS, ids=lambda item: item.value)
def drafting(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Drafting:
    drafter: Drafter = request.param
    folder = tmp_path_factory.mktemp("drafts") / drafter.value
    kind = drafter.value if drafter.is_model else "none"
    command = [sys.executable, str(ROOT / "build" / "random_checkpoint.py"), str(folder), "--draft", kind]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return Drafting(folder, {"drafter": drafter, "max_drafts": MAX_DRAFTS, "max_draft_sequences": 8})


def repeating(length: int, salt: int, **changes: object) -> Prompt:
    """A prompt whose answer has three different tokens, so that its newest ones have often stood there before."""
    item = prompt(length, salt=salt, max_tokens=40)
    bias = tuple((token, 60.0) for token in item.token_ids[-3:])
    return replace(item, sampling=replace(item.sampling, logit_bias=bias), **changes)  # type: ignore[arg-type]


def bits(items: list[Answer]) -> list[object]:
    return [(item.token_ids, item.logprobs, item.final.finish_reason, item.final.usage) for item in items]


def both(drafting: Drafting, items: list[Prompt], **settings: object) -> tuple[list[Answer], list[Answer], Counts]:
    """Answers without and with drafts, and what the latter reported."""
    with open_engine(drafting.checkpoint, prefix_cache=False) as engine:
        plain = [answer(engine, item) for item in items]
    metrics = Counts()
    with open_engine(drafting.checkpoint, metrics, **drafting.settings, **settings) as engine:
        drafted = answer_together(engine, items)
    return plain, drafted, metrics


@pytest.mark.parametrize("temperature", [pytest.param(0.0, marks=pytest.mark.ci), 1.0])
def test_answers_are_those_without_drafts(drafting: Drafting, temperature: float) -> None:
    items = [repeating(length, salt) for salt, length in enumerate((30, 125, 127, 128, 129, 250))]
    items = [replace(item, sampling=replace(item.sampling, temperature=temperature)) for item in items]
    plain, drafted, metrics = both(drafting, items, prefix_cache=False)
    assert bits(drafted) == bits(plain)
    drafted_tokens, accepted = (metrics.counts[f"dsv4_{what}_tokens_total"] for what in ("drafted", "accepted"))
    assert 20 < accepted < drafted_tokens


@pytest.mark.ci
def test_penalties_stops_bias_and_a_grammar_apply_token_by_token(drafting: Drafting) -> None:
    base = repeating(100, 1)
    with open_engine(drafting.checkpoint) as engine:
        plain_text = answer(engine, base)
    items = [
        replace(base, sampling=replace(base.sampling, repetition_penalty=1.3, frequency_penalty=0.4)),
        replace(base, sampling=replace(base.sampling, logit_bias=((plain_text.token_ids[5], -60.0), (77, 60.0)))),
        replace(base, limits=replace(base.limits, max_tokens=3)),
        replace(base, limits=replace(base.limits, min_tokens=10, stop=(b"e",))),
        replace(base, constraint=Constraint(kind=ConstraintKind.REGEX, value="(ab|cd){3,30}")),
        replace(base, sampling=replace(base.sampling, temperature=0.8, top_p=0.9, top_k=20, min_p=0.01)),
    ]
    plain, drafted, _ = both(drafting, items, prefix_cache=False)
    assert bits(drafted) == bits(plain)


@pytest.mark.ci
def test_drafts_get_on_with_preemption_and_the_prefix_cache(drafting: Drafting) -> None:
    cache_format = CacheFormat.PACKED_FP4INDEX
    items = [repeating(length, salt) for salt, length in enumerate((120, 130, 200, 250, 260, 290))]
    with open_engine(drafting.checkpoint, prefix_cache=False, cache_format=cache_format) as engine:
        plain = [answer(engine, item).token_ids for item in items]
    metrics = Counts()
    squeezed = {"cache_tokens": 1024, "max_snapshots": 3, "host_cache_tokens": 1024, "cache_format": cache_format}
    with open_engine(drafting.checkpoint, metrics, **drafting.settings, **squeezed) as engine:
        found = [item.token_ids for _ in range(2) for item in answer_together(engine, items)]
    assert found == plain * 2
    assert metrics.counts["dsv4_preemptions_total"] > 0 and metrics.counts["dsv4_cached_tokens_total"] > 0
    assert metrics.counts["dsv4_accepted_tokens_total"] > 0


def test_nothing_is_drafted_while_many_run(drafting: Drafting) -> None:
    metrics = Counts()
    items = [repeating(60, salt) for salt in range(6)]
    with open_engine(drafting.checkpoint, metrics, **(drafting.settings | {"max_draft_sequences": 1})) as engine:
        answer_together(engine, items)
    assert metrics.counts["dsv4_drafted_tokens_total"] < 6 * 40


def test_a_drafter_without_its_model_is_refused(random_checkpoint: Path) -> None:
    refused = pytest.raises(ConfigError, match="drafter is dspark but the draft model of this checkpoint is mtp")
    with refused, open_engine(random_checkpoint, drafter=Drafter.DSPARK, max_drafts=3):
        pass
