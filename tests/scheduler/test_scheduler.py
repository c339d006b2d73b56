"""Scheduling: fair, bounded, and nothing is ever lost."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dsv4_backend.config import ServingConfig
from dsv4_backend.kv.manager import CacheManager, cache_rules
from dsv4_backend.records import (
    Constraint,
    ConstraintKind,
    Prompt,
    Request,
    RowResult,
    SamplingParams,
    StepPlan,
    StepResult,
)
from dsv4_backend.scheduler.budget import chunk_tokens, fair_shares
from dsv4_backend.scheduler.queue import STARVATION_S
from dsv4_backend.scheduler.reasoning import ReasoningBudget, ThinkTokens
from dsv4_backend.scheduler.scheduler import Scheduler
from dsv4_backend.scheduler.sequence import Sequence
from dsv4_backend.scheduler.sharing import turn_edges


def _sequence(
    number: int,
    num_prompt: int,
    *,
    priority: int = 0,
    arrival_s: float = 0.0,
    text: int | None = None,
    turn_id: int | None = None,
    constraint: Constraint | None = None,
) -> Sequence:
    """A sequence of its own text; two with one `text` begin alike."""
    first = 10_000 * (number if text is None else text)
    ids = tuple(range(first, first + num_prompt))
    prompt = Prompt(token_ids=ids, priority=priority, sampling=SamplingParams(seed=0), constraint=constraint)
    request = Request(id=str(number), prompt=prompt)
    return Sequence(
        id=number,
        request=request,
        max_tokens=10**6,
        arrival_s=arrival_s,
        token_ids=list(ids),
        num_prompt=num_prompt,
        turn_id=turn_id,
    )


def _scheduler(**settings: int) -> Scheduler:
    config = ServingConfig(**{"max_step_tokens": 256, "max_sequences": 4, "cache_tokens": 1024} | settings)  # type: ignore[arg-type]
    return Scheduler(config, CacheManager(cache_rules(config)))


def _run(plan: StepPlan, token_id: int = 7, compiling: tuple[int, ...] = ()) -> StepResult:
    rows = [RowResult(sequence_id=row.sequence_id, token_ids=(token_id,) * row.is_sampled) for row in plan.rows]
    return StepResult(step=plan.step, rows=tuple(rows), compiling=compiling)


def _step(scheduler: Scheduler, now_s: float = 0.0, compiling: tuple[int, ...] = ()) -> StepPlan:
    plan = scheduler.plan(now_s)
    assert plan is not None
    scheduler.commit(plan, _run(plan, compiling=compiling))
    return plan


def _spans(plan: StepPlan) -> list[tuple[int, int, bool]]:
    return [(row.sequence_id, len(row.token_ids), row.is_sampled) for row in plan.rows]


DIGITS = Constraint(kind=ConstraintKind.REGEX, value="[0-9]+")


def test_the_others_go_on_while_a_grammar_is_compiled() -> None:
    scheduler = _scheduler()
    scheduler.add(_sequence(1, 4))
    _step(scheduler)
    scheduler.add(_sequence(2, 20, constraint=DIGITS))
    assert _spans(_step(scheduler, compiling=(2,))) == [(1, 1, True), (2, 19, False)]
    assert _spans(_step(scheduler, compiling=(2,))) == [(1, 1, True)]
    assert _spans(_step(scheduler)) == [(1, 1, True)]
    assert _spans(_step(scheduler)) == [(1, 1, True), (2, 1, True)]


def test_a_grammar_that_becomes_due_later_holds_its_sequence_alone() -> None:
    """Thinking has ended before the grammar was compiled."""
    scheduler = _scheduler()
    for number in (1, 2):
        scheduler.add(_sequence(number, 4, constraint=DIGITS if number == 2 else None))
    for _ in range(3):
        _step(scheduler)
    _step(scheduler, compiling=(2,))
    assert _spans(_step(scheduler)) == [(1, 1, True)]
    assert _spans(_step(scheduler)) == [(1, 1, True), (2, 1, True)]


def test_sequences_that_all_lack_their_grammar_wait_for_it_in_a_step() -> None:
    scheduler = _scheduler()
    for number in (1, 2):
        scheduler.add(_sequence(number, 5, constraint=DIGITS))
    assert _spans(_step(scheduler, compiling=(1, 2))) == [(1, 4, False), (2, 4, False)]
    assert _spans(_step(scheduler)) == [(1, 1, True), (2, 1, True)]


def test_a_constrained_prompt_alone_is_computed_in_one_step() -> None:
    scheduler = _scheduler()
    scheduler.add(_sequence(1, 20, constraint=DIGITS))
    assert _spans(_step(scheduler)) == [(1, 20, True)]


def test_lost_ranks_compile_again_and_are_asked_again() -> None:
    scheduler = _scheduler()
    scheduler.add(_sequence(1, 4))
    scheduler.add(_sequence(2, 20, constraint=DIGITS))
    _step(scheduler, compiling=(2,))
    scheduler.lose_ranks()
    assert _spans(_step(scheduler)) == [(1, 5, True), (2, 19, False)]


def test_a_long_prompt_is_computed_in_chunks_that_end_at_page_edges() -> None:
    scheduler = _scheduler()
    scheduler.add(_sequence(1, 600))
    spans = [(row.start, row.start + len(row.token_ids)) for _ in range(3) for row in _step(scheduler).rows]
    assert spans == [(0, 256), (256, 512), (512, 600)]


def test_only_the_last_chunk_is_sampled() -> None:
    scheduler = _scheduler()
    scheduler.add(_sequence(1, 300))
    assert [row.is_sampled for _ in range(3) for row in _step(scheduler).rows] == [False, True, True]


def test_a_decoding_sequence_gets_its_token_beside_a_long_prefill() -> None:
    scheduler = _scheduler()
    scheduler.add(_sequence(1, 4))
    _step(scheduler)
    scheduler.add(_sequence(2, 600))
    assert [(row.sequence_id, len(row.token_ids)) for row in _step(scheduler).rows] == [(1, 1), (2, 128)]


def test_two_prompts_share_the_budget() -> None:
    scheduler = _scheduler()
    scheduler.add(_sequence(1, 400))
    scheduler.add(_sequence(2, 400, arrival_s=1.0))
    assert [(row.sequence_id, len(row.token_ids)) for row in _step(scheduler).rows] == [(1, 128), (2, 128)]


def test_the_lower_priority_value_is_admitted_first() -> None:
    scheduler = _scheduler(max_sequences=1)
    scheduler.add(_sequence(1, 10, priority=5))
    scheduler.add(_sequence(2, 10, priority=1, arrival_s=1.0))
    assert _step(scheduler).rows[0].sequence_id == 2


def test_a_starving_sequence_goes_before_urgent_ones() -> None:
    scheduler = _scheduler(max_sequences=1)
    scheduler.add(_sequence(1, 10, priority=5))
    scheduler.add(_sequence(2, 10, priority=1, arrival_s=STARVATION_S))
    assert _step(scheduler, now_s=STARVATION_S).rows[0].sequence_id == 1


def test_the_least_urgent_sequence_is_preempted_and_resumes_with_its_tokens() -> None:
    scheduler = _scheduler(cache_tokens=512)
    scheduler.add(_sequence(1, 250))
    scheduler.add(_sequence(2, 250, arrival_s=1.0))
    for _ in range(12):
        _step(scheduler)
    assert scheduler.num_preemptions == 1
    assert [item.id for item in scheduler.running] == [1]
    scheduler.finish(scheduler.running[0])
    plan = _step(scheduler)
    assert plan.starts[0].num_prompt_tokens == 250 and len(plan.starts[0].token_ids) > 250


def test_a_preempted_sequence_is_dropped_on_the_rank() -> None:
    scheduler = _scheduler(cache_tokens=512)
    scheduler.add(_sequence(1, 250))
    scheduler.add(_sequence(2, 250, arrival_s=1.0))
    assert [item for _ in range(12) for item in _step(scheduler).finished] == [2]


def test_lost_ranks_make_every_running_sequence_start_over() -> None:
    scheduler = _scheduler()
    scheduler.add(_sequence(1, 10))
    for _ in range(3):
        _step(scheduler)
    scheduler.lose_ranks()
    scheduler.check()
    plan = _step(scheduler)
    assert plan.starts[0].token_ids == (*range(10_000, 10_010), 7, 7, 7)
    assert plan.rows[0].start == 0 and plan.rows[0].is_sampled


def test_a_finished_sequence_gives_every_page_back() -> None:
    scheduler = _scheduler()
    scheduler.add(_sequence(1, 300))
    _step(scheduler)
    scheduler.finish(scheduler.running[0])
    scheduler.check()


@given(st.lists(st.integers(1, 2000), max_size=12), st.integers(1, 1024))
def test_shares_keep_the_budget_and_the_demands(demands: list[int], budget: int) -> None:
    shares = fair_shares(demands, budget)
    assert sum(shares) == min(budget, sum(demands))
    assert all(0 <= share <= demand for share, demand in zip(shares, demands, strict=True))


@given(st.integers(0, 5000), st.integers(1, 5000), st.integers(1, 600))
def test_a_chunk_is_never_empty_and_never_too_long(start: int, pending: int, share: int) -> None:
    assert 1 <= chunk_tokens(start, pending, share) <= min(pending, share)


THINK = ThinkTokens(open_id=100, close_id=101)


def test_the_end_of_thinking_is_forced_when_the_budget_is_spent() -> None:
    budget = ReasoningBudget(THINK, 2, (1, 100))
    budget.push(5)
    assert budget.forced_id is None
    budget.push(5)
    assert budget.forced_id == 101


def test_nothing_is_forced_after_thinking_has_ended() -> None:
    budget = ReasoningBudget(THINK, 0, (1, 100, 101))
    assert budget.forced_id is None


def test_a_budget_of_zero_ends_thinking_at_once() -> None:
    assert ReasoningBudget(THINK, 0, (1, 100)).forced_id == 101


def test_a_sequence_that_gave_way_in_this_step_gets_no_page_in_it() -> None:
    scheduler = _scheduler(cache_tokens=640)
    for number, num_prompt in enumerate((103, 1, 233)):
        scheduler.add(_sequence(number, num_prompt, arrival_s=float(number)))
    for _ in range(40):  # the third takes the last page, then the first needs one
        plan = scheduler.plan(0.0)
        assert plan is not None
        scheduler.commit(plan, _run(plan))
        scheduler.check()
        running = {item.id for item in scheduler.running}
        assert all(not scheduler._cache.grants(number) for number in {0, 1, 2} - running)
    assert scheduler.num_preemptions == 1


def test_prompts_that_begin_alike_are_computed_once() -> None:
    scheduler = _scheduler(cache_tokens=8192)
    for number in range(4):
        scheduler.add(_sequence(number, 600, text=0))
    computed = sum(len(row.token_ids) for _ in range(5) for row in _step(scheduler).rows if len(row.token_ids) > 1)
    assert computed == 600 + 3 * (600 - 512)
    assert [item.num_shared for item in scheduler.running] == [0, 512, 512, 512]


def test_a_prompt_that_waits_for_another_lets_others_pass() -> None:
    scheduler = _scheduler(cache_tokens=8192)
    for number, text in enumerate((0, 0, 5)):
        scheduler.add(_sequence(number, 600, text=text, arrival_s=float(number)))
    _step(scheduler)
    assert [item.id for item in scheduler.running] == [0, 2]


def test_nobody_waits_for_a_prompt_that_was_cancelled_or_for_too_long() -> None:
    scheduler = _scheduler(cache_tokens=8192)
    for number in range(3):
        scheduler.add(_sequence(number, 600, text=0, arrival_s=float(number)))
    _step(scheduler)
    scheduler.finish(scheduler.running[0])
    _step(scheduler)
    assert [item.id for item in scheduler.running] == [1]
    _step(scheduler, now_s=STARVATION_S + 2)
    assert [item.id for item in scheduler.running] == [1, 2]


def test_a_conversation_edited_at_a_turn_goes_on_from_the_page_before_that_turn() -> None:
    scheduler, turn = _scheduler(cache_tokens=8192), 900
    first = _sequence(0, 1500, turn_id=turn)
    edited = _sequence(1, 1500, text=0, turn_id=turn)
    edited.token_ids[turn + 1] = 7
    scheduler.add(first)
    while first.is_prefilling:
        _step(scheduler)
    scheduler.add(edited)
    _step(scheduler)
    assert edited.num_shared == turn // 128 * 128


def test_edges_stand_before_the_first_turn_and_the_newest_ones() -> None:
    turns = (130, 300, 400, 700, 701, 1000, 1100)
    tokens = [9 if position in turns else 5 for position in range(1200)]
    assert turn_edges(tokens, 9) == {128, 384, 640, 896, 1024}
    assert turn_edges(tokens[:130], 9) == turn_edges(tokens, None) == turn_edges([9] * 100, 9) == frozenset()


class SchedulerMachine(RuleBasedStateMachine):
    """Any order of adding, stepping, cancelling and losing ranks keeps the books right and the tokens in order."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = _scheduler(cache_tokens=640, max_sequences=3, host_cache_tokens=512, max_host_snapshots=3)
        self.num_added = 0
        self.on_rank: dict[int, int] = {}
        self.begun: StepPlan | None = None

    @precondition(lambda self: len(self.scheduler.sequences) < 6)
    @rule(num_prompt=st.integers(1, 400), priority=st.integers(0, 2), text=st.integers(0, 1), is_bound=st.booleans())
    def add(self, num_prompt: int, priority: int, text: int, is_bound: bool) -> None:
        self.num_added += 1
        sequence = _sequence(
            self.num_added,
            num_prompt,
            priority=priority,
            arrival_s=float(self.num_added),
            text=text,
            turn_id=150,
            constraint=DIGITS if is_bound else None,
        )
        self.scheduler.add(sequence)

    @precondition(lambda self: self.scheduler.sequences)
    @rule(is_compiling=st.booleans(), may_overlap=st.booleans())
    def step(self, is_compiling: bool, may_overlap: bool) -> None:
        plan = self.begun or self.scheduler.plan(0.0)
        assert plan is not None, "sequences are admitted but nothing is planned"
        self.begun = self.scheduler.plan_after(plan) if may_overlap else None
        assert sum(len(row.token_ids) for row in plan.rows) <= 256
        for sequence_id in plan.finished:
            del self.on_rank[sequence_id]
        for start in plan.starts:
            assert start.sequence_id not in self.on_rank
            shared = next(row.start for row in plan.rows if row.sequence_id == start.sequence_id)
            assert shared % 128 == 0 and shared < len(start.token_ids)
            self.on_rank[start.sequence_id] = shared
        for row in plan.rows:
            assert row.start == self.on_rank[row.sequence_id], "a row leaves a gap in the cache"
            self.on_rank[row.sequence_id] += len(row.token_ids)
        bound = [item.id for item in self.scheduler.running if item.prompt.constraint is not None]
        self.scheduler.commit(plan, _run(plan, compiling=tuple(bound) if is_compiling else ()))
        for sequence in self.scheduler.sequences:
            if len(sequence.token_ids) > 500:
                self.scheduler.finish(sequence)

    @precondition(lambda self: self.scheduler.sequences)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.scheduler.finish(data.draw(st.sampled_from(self.scheduler.sequences)))

    @rule()
    def lose_ranks(self) -> None:
        self.scheduler.lose_ranks()
        self.on_rank.clear()
        self.begun = None

    @invariant()
    def books_are_right(self) -> None:
        self.scheduler.check()


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
