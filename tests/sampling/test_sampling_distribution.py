"""Sampled tokens follow the distribution that the filters leave. Seeds are fixed, so the outcome is too."""

from __future__ import annotations

import math

import pytest
import torch
from dsv4_kernels.dispatch import bind

from dsv4_backend.records import SamplingParams, SequenceStart
from dsv4_backend.sampling import Choosing, SequenceSampling, prompt_logprobs, sample, token_logprob
from dsv4_backend.sampling.uniform import uniform

VOCAB, DRAWS = 12, 6000
LOGITS = torch.linspace(-1.5, 2.0, VOCAB)[torch.randperm(VOCAB, generator=torch.Generator().manual_seed(1))]


def chi_square(counts: torch.Tensor, probs: torch.Tensor) -> float:
    expected = probs * counts.sum()
    return float((((counts - expected) ** 2) / expected).sum())


def critical(freedom: int) -> float:
    """Upper 0.1 % point of the chi-square distribution (Wilson and Hilferty's approximation)."""
    part = 2 / (9 * freedom)
    return freedom * (1 - part + 3.09 * math.sqrt(part)) ** 3


def draw(params: SamplingParams, *, by_seed: bool) -> torch.Tensor:
    """Count tokens over many seeds, or over many positions of one seed."""
    rows = []
    for index in range(DRAWS):
        fixed = SamplingParams(temperature=params.temperature, top_k=params.top_k, seed=index if by_seed else 9)
        token_ids = (0,) if by_seed else (0,) * (index + 1)
        start = SequenceStart(sequence_id=1, token_ids=token_ids, num_prompt_tokens=1, sampling=fixed)
        rows.append(Choosing(state=SequenceSampling(start, VOCAB, [1])))
    tokens = [item.token_id for item in sample(LOGITS.expand(DRAWS, -1), rows, bind("cpu"))]
    return torch.bincount(torch.tensor(tokens), minlength=VOCAB).double()


@pytest.mark.parametrize("by_seed", [True, False], ids=["over seeds", "over positions"])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_counts_follow_the_softmax(temperature: float, by_seed: bool) -> None:
    probs = torch.softmax(LOGITS.double() / temperature, dim=0)
    counts = draw(SamplingParams(temperature=temperature), by_seed=by_seed)
    assert chi_square(counts, probs) < critical(VOCAB - 1)


def test_counts_follow_what_top_k_leaves() -> None:
    kept = LOGITS.topk(4).indices
    counts = draw(SamplingParams(top_k=4), by_seed=True)
    assert counts[kept].sum() == DRAWS
    assert chi_square(counts[kept], torch.softmax(LOGITS[kept].double(), dim=0)) < critical(3)


@pytest.mark.parametrize("axis", ["seed", "position"])
def test_random_numbers_are_even(axis: str) -> None:
    draws = [uniform(index, 7) if axis == "seed" else uniform(7, index) for index in range(DRAWS)]
    counts = torch.histc(torch.tensor(draws, dtype=torch.float64), bins=20, min=0.0, max=1.0)
    assert chi_square(counts, torch.full((20,), 0.05, dtype=torch.float64)) < critical(19)


def test_neighbouring_seeds_share_no_sequence() -> None:
    one = {uniform(1, position) for position in range(1000)}
    assert one.isdisjoint(uniform(2, position) for position in range(1000))


def test_the_first_numbers_never_change() -> None:
    """A release that changed these would change every seeded answer."""
    assert [uniform(0, 0), uniform(-1, 5)] == [uniform(0, 0), uniform(2**64 - 1, 5)]
    assert uniform(42, 1000).hex() == "0x1.63f919049aa49p-1"


def test_logprobs_are_those_of_the_raw_logits_best_first() -> None:
    expected = torch.log_softmax(LOGITS.double(), dim=0)
    found = token_logprob(LOGITS, 3, 5)
    assert found.logprob == pytest.approx(float(expected[3]), abs=1e-12)
    assert [token for token, _ in found.top] == expected.argsort(descending=True)[:5].tolist()


def test_equal_logprobs_are_listed_by_id() -> None:
    logits = torch.zeros(8)
    logits[5] = 1.0
    assert [token for token, _ in token_logprob(logits, 0, 4).top] == [5, 0, 1, 2]


def test_more_alternatives_than_tokens_are_all_of_them() -> None:
    assert len(token_logprob(LOGITS, 0, 100).top) == VOCAB


def test_prompt_logprobs_pair_each_target_with_its_row() -> None:
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(0))
    found = prompt_logprobs(logits, [4, 0, 11], 1)
    assert found == tuple(token_logprob(row, target, 1) for row, target in zip(logits, [4, 0, 11], strict=True))
