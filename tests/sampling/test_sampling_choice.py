"""The next token of a row: filters, penalties, constraints, forced tokens, broken rows."""

from __future__ import annotations

import pytest
import torch
from dsv4_kernels.dispatch import bind
from dsv4_kernels.sampling import pack_bits, unpack_bits
from hypothesis import given
from hypothesis import strategies as st

from dsv4_backend.records import SamplingParams, SequenceStart
from dsv4_backend.sampling import Choice, Choosing, SequenceSampling, sample

VOCAB = 50
OPS = bind("cpu")
EOS = 1


def make_state(
    token_ids: tuple[int, ...] = (0, 5),
    *,
    num_prompt_tokens: int = 2,
    min_tokens: int = 0,
    **params: object,
) -> SequenceSampling:
    params = {name: value for name, value in params.items() if name not in ("allowed", "forced")}
    start = SequenceStart(
        sequence_id=1,
        token_ids=token_ids,
        num_prompt_tokens=num_prompt_tokens,
        sampling=SamplingParams(**params),  # type: ignore[arg-type]
        min_tokens=min_tokens,
    )
    return SequenceSampling(start, VOCAB, [EOS])


def make_logits(seed: int, rows: int = 1) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def choose(
    logits: torch.Tensor, state: SequenceSampling, *, allowed: torch.Tensor | None = None, forced: int | None = None
) -> Choice:
    words = None if allowed is None else pack_bits(allowed)[None]
    return sample(logits.reshape(1, -1), [Choosing(state=state, forced_token_id=forced)], OPS, words)[0]


def reachable(logits: torch.Tensor, **params: object) -> set[int]:
    """Tokens that come up over many positions."""
    states = [make_state((0,) * (position + 1), num_prompt_tokens=1, seed=3, **params) for position in range(300)]
    return {item.token_id for item in sample(logits.expand(300, -1), [Choosing(state=state) for state in states], OPS)}


def allowed_words(seed: object) -> torch.Tensor:
    """A mask of one row, by its seed; None: everything."""
    if seed is None:
        return torch.full((2,), -1, dtype=torch.int32)
    return pack_bits(torch.rand(VOCAB, generator=torch.Generator().manual_seed(int(str(seed)))) < 0.3)


filters = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.3, 1.0, 2.0]),
        "top_k": st.sampled_from([0, 1, 7]),
        "top_p": st.sampled_from([1.0, 0.9, 0.2]),
        "min_p": st.sampled_from([0.0, 0.1]),
        "repetition_penalty": st.sampled_from([1.0, 1.3]),
        "presence_penalty": st.sampled_from([0.0, 0.5]),
        "logprobs": st.sampled_from([-1, 0, 3]),
        "seed": st.integers(-(2**63), 2**63 - 1),
        "min_tokens": st.sampled_from([0, 2]),
        "allowed": st.sampled_from([None, 1, 2]),
        "forced": st.sampled_from([None, None, 7]),
    }
)


@given(rows=st.lists(filters, min_size=1, max_size=6), seed=st.integers(0, 1000))
def test_a_row_chooses_alone_what_it_chooses_in_a_batch(rows: list[dict[str, object]], seed: int) -> None:
    logits = make_logits(seed, len(rows))
    choosing = [Choosing(state=make_state(**row), forced_token_id=row["forced"]) for row in rows]  # type: ignore[arg-type]
    words = torch.stack([allowed_words(row["allowed"]) for row in rows])
    together = sample(logits, choosing, OPS, words)
    cases = enumerate(choosing)
    alone = [sample(logits[index : index + 1], [row], OPS, words[index : index + 1])[0] for index, row in cases]
    assert together == alone


@given(row=filters, seed=st.integers(0, 1000))
def test_a_mask_is_a_score_of_minus_infinity(row: dict[str, object], seed: int) -> None:
    """The plain twin of the mask: a bias that leaves nothing of the other tokens."""
    words, logits = allowed_words(row["allowed"]), make_logits(seed)
    banned = tuple((token, -torch.inf) for token in (~unpack_bits(words, VOCAB)).nonzero().flatten().tolist())
    masked = sample(logits, [Choosing(state=make_state(**row))], OPS, words[None])
    assert masked == sample(logits, [Choosing(state=make_state(logit_bias=banned, **row))], OPS)


def test_a_row_without_a_constraint_ignores_its_neighbours_mask() -> None:
    rows = [Choosing(state=make_state(seed=seed)) for seed in range(2)]
    words = torch.stack([allowed_words(3), allowed_words(None)])
    logits = make_logits(4, 2)
    assert sample(logits, rows, OPS, words)[1] == sample(logits, rows, OPS)[1]


def test_greedy_takes_the_smallest_id_of_equal_scores() -> None:
    logits = torch.zeros(VOCAB)
    logits[[9, 4, 30]] = 2.0
    assert choose(logits, make_state(temperature=0.0)).token_id == 4


def test_the_same_seed_and_position_give_the_same_token() -> None:
    first = [choose(make_logits(2), make_state(seed=11)) for _ in range(3)]
    assert len(set(first)) == 1


def test_a_rebuilt_state_goes_on_as_the_first_one_would() -> None:
    params = {"seed": 5, "repetition_penalty": 1.5, "frequency_penalty": 0.7}
    state, tokens = make_state(**params), (0, 5)
    for step in range(20):
        rebuilt = make_state(tokens, **params)
        choice = choose(make_logits(step), state)
        assert choose(make_logits(step), rebuilt) == choice
        state.append(choice.token_id)
        tokens += (choice.token_id,)


def test_filters_that_remove_nothing_change_nothing() -> None:
    for seed in range(30):
        logits = make_logits(seed)
        bare = choose(logits, make_state(seed=seed))
        assert choose(logits, make_state(seed=seed, top_k=VOCAB - 1 + 1, top_p=1.0, min_p=0.0)) == bare


def test_top_k_keeps_exactly_k_with_ties_to_the_smaller_id() -> None:
    logits = torch.full((VOCAB,), -5.0)
    logits[[3, 8, 12, 20]] = 1.0
    assert reachable(logits, top_k=3) == {3, 8, 12}


def test_top_p_keeps_the_fewest_tokens_that_reach_it() -> None:
    logits = torch.full((VOCAB,), -torch.inf).clamp(min=-1e4)
    logits[[2, 3, 4]] = torch.tensor([0.5, 0.3, 0.2]).log()
    assert reachable(logits, top_p=0.7) == {2, 3}


def test_top_p_of_zero_is_greedy() -> None:
    logits = make_logits(1)
    assert reachable(logits[0], top_p=0.0) == {int(logits.argmax())}


def test_min_p_drops_what_is_far_below_the_best() -> None:
    logits = torch.full((VOCAB,), -1e4)
    logits[[2, 3, 4]] = torch.tensor([0.6, 0.35, 0.05]).log()
    assert reachable(logits, min_p=0.1) == {2, 3}


def test_repetition_penalty_counts_the_prompt() -> None:
    logits = torch.zeros(VOCAB)
    logits[5], logits[7] = 3.0, 2.0
    assert choose(logits, make_state((0, 5), temperature=0.0, repetition_penalty=2.0)).token_id == 7


def test_presence_penalty_leaves_the_prompt_alone() -> None:
    logits = torch.zeros(VOCAB)
    logits[5], logits[7] = 3.0, 2.0
    assert choose(logits, make_state((0, 5), temperature=0.0, presence_penalty=2.0)).token_id == 5
    assert choose(logits, make_state((0, 9, 5), temperature=0.0, presence_penalty=2.0)).token_id == 7


def test_frequency_penalty_grows_with_each_use() -> None:
    logits = torch.zeros(VOCAB)
    logits[5], logits[7] = 3.0, 2.0
    once, twice = (0, 9, 5), (0, 9, 5, 5)
    assert choose(logits, make_state(once, temperature=0.0, frequency_penalty=0.8)).token_id == 5
    assert choose(logits, make_state(twice, temperature=0.0, frequency_penalty=0.8)).token_id == 7


def test_logit_bias_moves_the_choice() -> None:
    bias = ((9, 100.0), (9, 1.0))
    assert choose(make_logits(0), make_state(temperature=0.0, logit_bias=bias)).token_id == 9


def test_the_end_waits_for_min_tokens() -> None:
    logits = torch.zeros(VOCAB)
    logits[EOS], logits[7] = 9.0, 5.0
    state = make_state(temperature=0.0, min_tokens=1)
    assert choose(logits, state).token_id == 7
    state.append(7)
    assert choose(logits, state).token_id == EOS


def test_only_allowed_tokens_are_chosen() -> None:
    allowed = torch.zeros(VOCAB, dtype=torch.bool)
    allowed[[10, 11]] = True
    states = [make_state(seed=seed) for seed in range(40)]
    rows = [Choosing(state=state) for state in states]
    words = pack_bits(allowed).expand(40, -1)
    assert {item.token_id for item in sample(make_logits(1).expand(40, -1), rows, OPS, words)} == {10, 11}


def test_a_finished_grammar_may_end_before_min_tokens() -> None:
    allowed = torch.zeros(VOCAB, dtype=torch.bool)
    allowed[EOS] = True
    assert choose(make_logits(1), make_state(min_tokens=5), allowed=allowed).token_id == EOS


def test_a_dead_end_is_an_error_of_its_row_only() -> None:
    words = torch.tensor([[0, 0], [-1, -1]], dtype=torch.int32)
    stuck, fine = sample(make_logits(1).expand(2, -1), [Choosing(state=make_state(seed=1))] * 2, OPS, words)
    assert "allows no token" in stuck.error and stuck.token_id == -1
    assert not fine.error


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_broken_logit_is_an_error_of_its_row_only(bad: float) -> None:
    logits = make_logits(1, 2)
    logits[0, 3] = bad
    broken, fine = sample(logits, [Choosing(state=make_state(seed=1)) for _ in range(2)], OPS)
    assert "not a finite number" in broken.error
    assert not fine.error


def test_a_forced_token_keeps_its_own_logprob() -> None:
    logits = make_logits(4)[0]
    choice = choose(logits, make_state(logprobs=0), forced=17)
    assert choice.token_id == 17 and choice.logprob is not None
    assert choice.logprob.logprob == pytest.approx(float(logits.log_softmax(0)[17]), abs=1e-6)


@pytest.mark.parametrize("params", [{"temperature": 1e-300}, {"temperature": 1e300}, {"repetition_penalty": 1e-44}])
def test_extreme_settings_still_choose_a_token(params: dict[str, object]) -> None:
    assert 0 <= choose(make_logits(1), make_state((0, 5, 6), seed=2, **params)).token_id < VOCAB
