"""Every admitted request ends in exactly one final chunk, whatever happens to the ranks or the client."""

from __future__ import annotations

import random
from contextlib import suppress

import pytest
from engine_rig import Collected, Rig, expected_tokens, make_rig

from dsv4_backend.errors import NotFoundError, OverloadedError, RequestError
from dsv4_backend.records import FinishReason, Limits, Prompt, Request


def test_a_request_ends_at_max_tokens(rig: Rig) -> None:
    sink = rig.submit().wait()
    assert (sink.token_ids, sink.final.finish_reason) == (expected_tokens(4, 8), FinishReason.LENGTH)


def test_usage_counts_prompt_and_answer(rig: Rig) -> None:
    usage = rig.submit(num_prompt=300).wait().final.usage
    assert (usage.num_input_tokens, usage.num_output_tokens) == (300, 8)


def test_a_stop_string_ends_the_request(rig: Rig) -> None:
    text = bytes(expected_tokens(4, 8))
    sink = rig.submit(stop=(text[3:5],)).wait()
    assert (sink.final.finish_reason, len(sink.token_ids)) == (FinishReason.STOP, 5)


def test_many_requests_do_not_disturb_each_other(rig: Rig) -> None:
    sinks = [rig.submit(f"r{number}", num_prompt=1 + 37 * number, max_tokens=20) for number in range(12)]
    for number, sink in enumerate(sinks):
        assert sink.wait().token_ids == expected_tokens(1 + 37 * number, 20)


def test_chunks_are_numbered_in_order(rig: Rig) -> None:
    sink = rig.submit(max_tokens=20).wait()
    assert [chunk.index for chunk in sink.chunks] == list(range(len(sink.chunks)))


def test_a_cancelled_request_ends_and_gives_its_pages_back(rig: Rig) -> None:
    sink = rig.submit(max_tokens=700)
    assert sink.begun.wait(20)
    rig.engine.cancel("r")
    assert sink.wait().final.finish_reason is FinishReason.CANCELLED


def test_a_thousand_random_cancels_lose_no_page() -> None:
    rig, choose = make_rig(max_waiting=2000, host_cache_tokens=512), random.Random(1)
    sinks = []
    rig.engine.start()
    for number in range(1000):
        sinks.append(rig.submit(f"r{number}", num_prompt=choose.choice([1, 100, 128, 300, 600]), max_tokens=300))
        if choose.random() < 0.3:
            sinks[choose.randrange(len(sinks))].begun.wait(0.01)
        for victim in {number, choose.randrange(number + 1)}:
            with suppress(NotFoundError):
                rig.engine.cancel(f"r{victim}")
    for sink in sinks:
        sink.wait()
    rig.engine.close()
    rig.loop.check()
    assert all(used == 0 for used, _ in rig.cache.usage().values())
    assert sum(sink.final.finish_reason is FinishReason.CANCELLED for sink in sinks) > 900


def test_cancelling_an_unknown_id_says_so(rig: Rig) -> None:
    with pytest.raises(NotFoundError, match="'nobody'"):
        rig.engine.cancel("nobody")


def test_a_running_id_is_refused(rig: Rig) -> None:
    rig.executor.gate.clear()
    rig.submit()
    with pytest.raises(RequestError, match="already running"):
        rig.submit()
    rig.executor.gate.set()


def test_an_id_can_be_used_again_after_its_end(rig: Rig) -> None:
    rig.submit().wait()
    assert rig.submit("r").wait().final.finish_reason is FinishReason.LENGTH


def test_a_lost_rank_changes_no_token(rig: Rig) -> None:
    rig.executor.fail_at = {3, 9}
    sinks = [rig.submit(f"r{number}", num_prompt=5 + number, max_tokens=12) for number in range(3)]
    for number, sink in enumerate(sinks):
        assert sink.wait().token_ids == expected_tokens(5 + number, 12)
    assert rig.executor.num_restarts == 2


def test_a_request_that_always_kills_its_rank_ends_with_an_error(rig: Rig) -> None:
    rig.executor.fail_when = lambda plan: any(len(row.token_ids) == 5 for row in plan.rows)
    sink = rig.submit(num_prompt=5).wait()
    assert sink.final.finish_reason is FinishReason.ERROR
    assert "signal 9" in sink.final.error


def test_a_request_that_kills_ranks_takes_no_other_request_down(rig: Rig) -> None:
    rig.executor.gate.clear()
    bad = rig.submit("bad", num_prompt=5)
    good = [rig.submit(f"good{number}", num_prompt=6 + number) for number in range(3)]
    rig.executor.fail_when = lambda plan: any(row.sequence_id == 1 for row in plan.rows)
    rig.executor.gate.set()
    assert bad.wait().final.finish_reason is FinishReason.ERROR
    assert [sink.wait().token_ids for sink in good] == [expected_tokens(6 + number, 8) for number in range(3)]


def test_service_goes_on_after_a_request_that_kills_ranks(rig: Rig) -> None:
    rig.executor.fail_when = lambda plan: any(len(row.token_ids) == 5 for row in plan.rows)
    rig.submit("bad", num_prompt=5).wait()
    assert rig.submit("good").wait().token_ids == expected_tokens(4, 8)


def test_a_rank_that_cannot_be_restarted_ends_every_request_with_an_error(rig: Rig) -> None:
    rig.executor.fail_at, rig.executor.fail_restart = {2}, True
    assert "cannot be restarted" in rig.submit().wait().final.error


def test_ranks_are_tried_again_for_the_next_request(rig: Rig) -> None:
    rig.executor.fail_at, rig.executor.fail_restart = {2}, True
    rig.submit("first").wait()
    rig.executor.fail_restart = False
    assert rig.submit("second").wait().token_ids == expected_tokens(4, 8)


def test_an_error_of_one_row_ends_that_request_alone(rig: Rig) -> None:
    rig.executor.gate.clear()
    bad, good = rig.submit("bad"), rig.submit("good")
    rig.executor.row_error = {1: "the constraint allows no token"}
    rig.executor.gate.set()
    assert bad.wait().final.error == "the constraint allows no token"
    assert good.wait().token_ids == expected_tokens(4, 8)


def test_a_prompt_beyond_the_context_is_refused_with_value_and_limit(rig: Rig) -> None:
    with pytest.raises(RequestError, match=r"1030 tokens.*1024"):
        rig.submit(num_prompt=1030)


def test_max_tokens_beyond_the_room_names_the_largest_that_fits(rig: Rig) -> None:
    with pytest.raises(RequestError, match="at most 1020"):
        rig.submit(max_tokens=2000)


def test_missing_max_tokens_means_all_that_fits() -> None:
    rig = make_rig(cache_tokens=128, max_step_tokens=128)
    rig.engine.start()
    assert len(rig.submit(max_tokens=None).wait().token_ids) == 124
    rig.engine.close()


def test_a_full_queue_is_refused_with_a_retry_hint() -> None:
    rig = make_rig(max_sequences=1, max_waiting=1)
    rig.executor.gate.clear()
    rig.engine.start()
    sinks = [rig.submit("a"), rig.submit("b")]
    with pytest.raises(OverloadedError, match="Retry after"):
        rig.submit("c")
    rig.executor.gate.set()
    assert all(sink.wait().final.finish_reason is FinishReason.LENGTH for sink in sinks)
    rig.engine.close()


def test_preempted_requests_get_the_tokens_they_would_have_had() -> None:
    rig = make_rig(cache_tokens=384)
    rig.engine.start()
    sinks = [rig.submit(f"r{number}", num_prompt=100 + number, max_tokens=150) for number in range(4)]
    for number, sink in enumerate(sinks):
        assert sink.wait().token_ids == expected_tokens(100 + number, 150)
    rig.engine.close()


def test_a_request_past_its_time_limit_ends_with_that_reason() -> None:
    rig = make_rig(request_time_limit_s=0.05)
    rig.engine.start()
    sink = rig.submit(max_tokens=1000)
    assert sink.wait().final.finish_reason in (FinishReason.TIME_LIMIT, FinishReason.LENGTH)
    rig.engine.close()


def test_a_request_with_a_timeout_of_its_own_ends_by_it(rig: Rig) -> None:
    sink = rig.submit(max_tokens=900, timeout_s=1e-9).wait()
    assert sink.final.finish_reason is FinishReason.TIME_LIMIT


def test_draining_lets_running_requests_finish() -> None:
    rig = make_rig()
    rig.engine.start()
    sink = rig.submit(max_tokens=200)
    rig.engine.close(drain_s=20.0)
    assert sink.final.finish_reason is FinishReason.LENGTH


def test_closing_without_patience_still_answers_everybody() -> None:
    rig = make_rig()
    rig.executor.gate.clear()
    rig.engine.start()
    sinks = [rig.submit(f"r{number}", max_tokens=900) for number in range(3)]
    rig.engine.close(drain_s=0.0)
    assert all(sink.wait().final.is_final for sink in sinks)


def test_a_closed_engine_admits_nothing() -> None:
    rig = make_rig()
    rig.engine.start()
    rig.engine.close()
    with pytest.raises(OverloadedError, match="stopping"):
        rig.submit()


def test_the_end_of_thinking_is_forced_by_the_budget(rig: Rig) -> None:
    prompt = Prompt(token_ids=(5, 200), limits=Limits(max_tokens=6, max_reasoning_tokens=3))
    sink = Collected()
    rig.engine.submit(Request(id="t", prompt=prompt), sink)
    assert sink.wait().token_ids[3] == 201


def test_a_step_is_begun_while_another_runs_and_the_answer_stays_the_same() -> None:
    answers, most = [], []
    for overlap in (False, True):
        rig = make_rig(overlap=overlap)
        rig.executor.gate.clear()
        rig.engine.start()
        sinks = [rig.submit(f"r{number}", num_prompt=3 + number, max_tokens=40) for number in range(3)]
        rig.executor.gate.set()
        answers.append([sink.wait().token_ids for sink in sinks])
        most.append(rig.executor.most_begun)
        rig.engine.close()
    assert answers[0] == answers[1] == [expected_tokens(3 + number, 40) for number in range(3)]
    assert most == [1, 2]
