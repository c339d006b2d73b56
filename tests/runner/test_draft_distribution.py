"""Sampled with drafts, tokens have the distribution that the model gives: 100,000 of them against its own table."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from draft_config import TABLE
from dsv4_kernels.dispatch import bind
from dsv4_kernels.placement import HOST
from torch import Tensor

from dsv4_backend.config import CacheFormat, Drafter, ServingConfig, parse_model_config
from dsv4_backend.kv.manager import CacheManager, cache_rules
from dsv4_backend.model.step import StepInputs
from dsv4_backend.model.transformer import Computed
from dsv4_backend.records import PlanRow, Prompt, Request, SamplingParams
from dsv4_backend.runner.drafting import DraftRow
from dsv4_backend.runner.rank import Rank
from dsv4_backend.sampling import Choice
from dsv4_backend.scheduler.scheduler import Scheduler
from dsv4_backend.scheduler.sequence import Sequence as Running

pytestmark = pytest.mark.ci
NUM_WORDS = 16
NUM_TOKENS = 100_000
PER_SEQUENCE = 250
SIGNIFICANCE = 0.001
CHANCE = torch.Generator().manual_seed(11)
TARGET = 1.5 * torch.randn(NUM_WORDS, NUM_WORDS, generator=CHANCE)  # logits of the next word, by the word before
GUESS = TARGET + 0.7 * torch.randn(NUM_WORDS, NUM_WORDS, generator=CHANCE)


class TableModel:
    """A model whose next word depends on the newest one alone."""

    config = parse_model_config(TABLE | {"vocab_size": NUM_WORDS, "eos_token_id": 15})
    ops = bind("cpu")
    placement = HOST

    def run(self, inputs: StepInputs, cache: object, tapped: tuple[int, ...] = ()) -> Computed:
        return Computed(inputs.token_ids, None)

    def logits(self, streams: Tensor) -> Tensor:
        return TARGET[streams]


class TableDrafts:
    """A draft model that knows the table roughly."""

    tapped: tuple[int, ...] = ()

    def propose(self, rows: Sequence[DraftRow], computed: Computed, cache: object) -> dict[int, tuple[int, ...]]:
        found = {}
        for row in rows:
            tokens = [row.next_ids[-1]]
            for number in range(row.num_wanted):
                tokens.append(row.choose(GUESS[tokens[-1]], number))
            found[row.sequence_id] = tuple(tokens[1:])
        return found


class BrokenRank(Rank):
    """Takes a draft for good where the model finds it likely enough, instead of what was sampled."""

    def _accept(self, sequence_id: int, choice: Choice) -> Choice:
        state = self._states[sequence_id]
        number = state.sampling.num_tokens - self.base[sequence_id]
        drafts = self.drafts[sequence_id]
        if number < len(drafts) and float(torch.softmax(TARGET[state.token_ids[-1]], 0)[drafts[number]]) > 0.2:
            choice = Choice(token_id=drafts[number])
        return super()._accept(sequence_id, choice)

    def _choose(self, plan, logits, spans):  # type: ignore[no-untyped-def]
        def tail(row: PlanRow) -> tuple[int, ...]:
            return row.token_ids[len(row.token_ids) - row.num_drafts :]

        self.drafts = {row.sequence_id: tail(row) for row in plan.rows}
        self.base = {row.sequence_id: self._states[row.sequence_id].sampling.num_tokens for row in plan.rows}
        return super()._choose(plan, logits, spans)


def sampled(kind: type[Rank], num_tokens: int, seed: int) -> tuple[Tensor, float]:
    """Counts [before, after] of all sampled words, and the share of drafts that were accepted."""
    config = ServingConfig(
        drafter=Drafter.MTP,
        max_drafts=3,
        max_sequences=8,
        max_draft_sequences=8,
        prefix_cache=False,
        cache_format=CacheFormat.FP32,
    )
    rank = kind(TableModel(), config, None, TableDrafts())  # type: ignore[arg-type]
    scheduler = Scheduler(config, CacheManager(cache_rules(config)))
    counts, drafted, accepted = torch.zeros(NUM_WORDS, NUM_WORDS), 0, 0
    for number in range(num_tokens // PER_SEQUENCE):
        prompt = Prompt(token_ids=(number % NUM_WORDS,), sampling=SamplingParams(seed=seed * 10_000 + number))
        scheduler.add(
            Running(
                id=number, request=Request(id=str(number), prompt=prompt), max_tokens=PER_SEQUENCE + 8,
                arrival_s=0.0, token_ids=list(prompt.token_ids), num_prompt=1,
            )
        )  # fmt: skip
    while (plan := scheduler.plan(0.0)) is not None:
        for advance in scheduler.commit(plan, rank.execute(plan)):
            drafted, accepted = drafted + advance.num_drafted, accepted + advance.num_accepted
            sequence = advance.sequence
            if sequence.num_output >= PER_SEQUENCE:
                words = torch.tensor(sequence.token_ids[: PER_SEQUENCE + 1])
                counts.index_put_((words[:-1], words[1:]), torch.ones(PER_SEQUENCE), accumulate=True)
                scheduler.finish(sequence)
    return counts, accepted / drafted


def p_value(counts: Tensor) -> float:
    """How likely at least this distance from the model's table is, if the words were drawn from it."""
    expected = counts.sum(1, keepdim=True) * torch.softmax(TARGET.double(), 1)
    is_common = expected >= 5
    statistic = float((((counts - expected) ** 2) / expected)[is_common].sum())
    freedom = int(is_common.sum() - is_common.any(1).sum())
    halves = torch.tensor([freedom / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(halves[0], halves[1]))


def test_words_sampled_with_drafts_have_the_distribution_of_the_model() -> None:
    counts, accepted = sampled(Rank, NUM_TOKENS, 1)
    assert int(counts.sum()) == NUM_TOKENS
    assert 0.2 < accepted < 0.95
    assert p_value(counts) > SIGNIFICANCE


def test_a_broken_rule_of_acceptance_is_found_out() -> None:
    counts, _ = sampled(BrokenRank, NUM_TOKENS // 4, 1)
    assert p_value(counts) < SIGNIFICANCE
