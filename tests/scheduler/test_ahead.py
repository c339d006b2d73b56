"""Planning behind a running step: the same tokens in the same places, or no plan."""

from __future__ import annotations

import pytest
from test_scheduler import _run, _scheduler, _sequence, _step

from dsv4_backend.config import Drafter
from dsv4_backend.records import CHOSEN_BEFORE, Constraint, ConstraintKind, StepPlan
from dsv4_backend.scheduler.reasoning import ReasoningBudget, ThinkTokens
from dsv4_backend.scheduler.scheduler import Scheduler
from dsv4_backend.scheduler.sequence import Sequence

ANY = Constraint(kind=ConstraintKind.JSON_OBJECT, value="")


def decoding(*sequences: Sequence, **settings: object) -> tuple[Scheduler, StepPlan]:
    """A scheduler whose sequences have had their prompts, and a decode step that runs."""
    scheduler = _scheduler(**settings)  # type: ignore[arg-type]
    for sequence in sequences:
        scheduler.add(sequence)
    while any(sequence.is_prefilling for sequence in sequences):
        _step(scheduler)
    plan = scheduler.plan(0.0)
    assert plan is not None
    return scheduler, plan


def test_the_step_behind_has_the_token_that_is_not_known_yet() -> None:
    scheduler, plan = decoding(_sequence(1, 9), _sequence(2, 20))
    after = scheduler.plan_after(plan)
    assert after is not None and after.step == plan.step + 1
    assert [(row.sequence_id, row.start, row.token_ids) for row in after.rows] == [
        (row.sequence_id, row.start + 1, (CHOSEN_BEFORE,)) for row in plan.rows
    ]
    scheduler.commit(plan, _run(plan))
    scheduler.commit(after, _run(after))
    scheduler.check()
    following = scheduler.plan(0.0)
    assert following is not None
    assert [row.start for row in following.rows] == [row.start + 2 for row in plan.rows]


def test_what_ended_meanwhile_is_passed_over() -> None:
    one, two = _sequence(1, 9), _sequence(2, 20)
    scheduler, plan = decoding(one, two)
    after = scheduler.plan_after(plan)
    assert after is not None
    scheduler.commit(plan, _run(plan))
    scheduler.finish(one)
    assert scheduler.plan_after(after) is None  # it holds a row of nobody
    assert [each.sequence.id for each in scheduler.commit(after, _run(after))] == [2]
    following = scheduler.plan(0.0)
    assert following is not None and following.finished == (1,)


def test_an_answer_that_is_complete_is_left_out() -> None:
    short, long = _sequence(1, 9), _sequence(2, 20)
    short.max_tokens = 2
    scheduler, plan = decoding(short, long)
    after = scheduler.plan_after(plan)
    assert after is not None and [row.sequence_id for row in after.rows] == [2]


@pytest.mark.parametrize("num_prompt", [127, 128], ids=["a page is full", "past it"])
def test_no_step_crosses_a_page_edge(num_prompt: int) -> None:
    scheduler, plan = decoding(_sequence(1, num_prompt))
    assert (scheduler.plan_after(plan) is None) == ((num_prompt + 1) % 128 == 0)


@pytest.mark.parametrize("why", ["constraint", "budget", "waiting", "drafts", "restarted", "off"])
def test_what_depends_on_the_token_is_not_planned(why: str) -> None:
    sequence = _sequence(1, 9, constraint=ANY if why == "constraint" else None)
    if why == "budget":
        sequence.reasoning = ReasoningBudget(ThinkTokens(open_id=3, close_id=4), 5, sequence.token_ids)
    settings: dict[str, object] = {
        "drafts": {"drafter": Drafter.NGRAM, "max_drafts": 2},
        "off": {"overlap": False},
    }.get(why, {})
    scheduler, plan = decoding(sequence, **settings)
    if why == "waiting":
        scheduler.add(_sequence(2, 5))
    if why == "restarted":
        sequence.num_restarts = 1
    assert scheduler.plan_after(plan) is None


def test_a_full_house_does_not_wait_for_those_outside() -> None:
    scheduler, plan = decoding(_sequence(1, 9), max_sequences=1)
    scheduler.add(_sequence(2, 5))
    assert scheduler.plan_after(plan) is not None


def test_both_steps_in_flight_are_blamed_for_a_lost_rank() -> None:
    sequence = _sequence(1, 9)
    scheduler, plan = decoding(sequence)
    assert scheduler.plan_after(plan) is not None
    assert scheduler.lose_ranks(plan.step) == (sequence,)
    assert sequence.num_restarts == 1 and not sequence.is_on_rank
