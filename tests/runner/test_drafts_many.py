"""Many random requests together: whatever they ask for and whatever happens, drafts change none of their tokens."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random

import pytest
from draft_config import with_draft
from library import Answer, Counts, answer_together, open_engine, prompt

from dsv4_backend.checkpoint.write import WriteOptions, write_checkpoint
from dsv4_backend.config import Drafter
from dsv4_backend.records import Constraint, ConstraintKind, Limits, Prompt, SamplingParams
from dsv4_backend.text import Vocabulary

DRAFTERS = [Drafter.NGRAM, Drafter.MTP, Drafter.DSPARK]
TOGETHER = 20
GRAMMARS = ("(ab|cd){2,12}", "[0-9]{1,9}( [0-9]{1,9}){0,4}", '\\{"a": (true|false|null|"[a-z]*")\\}')


def random_prompt(chance: Random) -> Prompt:
    """A prompt that may begin like others, with an answer that repeats itself more or less."""
    shared = prompt(128 * chance.randint(1, 2), salt=chance.randint(0, 3)).token_ids if chance.random() < 0.5 else ()
    tokens = shared + prompt(chance.randint(1, 150), salt=chance.randint(0, 10**6)).token_ids
    favourites = chance.sample(range(100, 900), chance.choice((0, 3, 3, 5)))
    sampling = SamplingParams(
        temperature=0.0,
        seed=chance.randint(0, 10**9),
        logit_bias=tuple((token, chance.uniform(10.0, 30.0)) for token in favourites),
        repetition_penalty=chance.choice((1.0, 1.0, 1.2)),
        frequency_penalty=chance.choice((0.0, 0.0, 0.5)),
        logprobs=chance.choice((-1, 1)),
    )
    limits = Limits(
        max_tokens=chance.choice((chance.randint(1, 30), chance.randint(1, 30), chance.randint(30, 200))),
        min_tokens=chance.choice((0, 0, 5)),
        stop=chance.choice(((), (), (b"e",), (b"th", b"0"))),
        ignore_eos=chance.random() < 0.5,
    )
    constraint = Constraint(kind=ConstraintKind.REGEX, value=chance.choice(GRAMMARS)) if chance.random() < 0.2 else None
    return Prompt(token_ids=tokens, sampling=sampling, limits=limits, constraint=constraint)


def essence(item: Answer) -> object:
    return (item.token_ids, item.logprobs, item.final.finish_reason, item.final.error)


@pytest.mark.parametrize("drafter", DRAFTERS, ids=lambda item: item.value)
@pytest.mark.parametrize("count", [pytest.param(100, marks=pytest.mark.ci), pytest.param(1000, marks=pytest.mark.slow)])
def test_random_requests_get_the_tokens_that_they_get_without_drafts(
    tmp_path: Path, tokenizer_path: Path, drafter: Drafter, count: int
) -> None:
    shutil.copy(tokenizer_path, tmp_path / "tokenizer.json")
    vocab_size = Vocabulary.load(tokenizer_path).size
    write_checkpoint(tmp_path, with_draft(drafter.value, vocab_size), WriteOptions(seed=5))
    chance = Random(count)
    items = [random_prompt(chance) for _ in range(count)]
    groups = [items[first : first + TOGETHER] for first in range(0, count, TOGETHER)]
    with open_engine(tmp_path, prefix_cache=False) as engine:
        plain = [essence(item) for group in groups for item in answer_together(engine, group)]
    metrics = Counts()
    squeezed = {"cache_tokens": 1536, "max_snapshots": 6, "host_cache_tokens": 512, "max_sequences": 8}
    squeezed["max_draft_sequences"] = 8
    with open_engine(tmp_path, metrics, drafter=drafter, max_drafts=3, **squeezed) as engine:
        drafted = [essence(item) for group in groups for item in answer_together(engine, group)]
    assert drafted == plain
    happened = ("preemptions", "cached_tokens", "accepted_tokens")
    assert all(metrics.counts[f"dsv4_{name}_total"] > 0 for name in happened), metrics.counts
