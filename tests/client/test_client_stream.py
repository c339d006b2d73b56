"""The streaming client against a scripted server."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from client_rig import WAIT_S, Call, FakeServer, Replies, count_to_three, refuse, reply, until_stopped
from dsv4_client import (
    BrokenStreamError,
    Client,
    DeadlineError,
    Delta,
    Final,
    ModelNotReadyError,
    ServerUnreachableError,
)
from dsv4_client.background import Background

from dsv4_backend.errors import Dsv4Error, NotFoundError, OverloadedError, RequestError
from dsv4_backend.records import FinishReason, TokenLogprob

Connect = Callable[[Callable[[Call], Replies]], tuple[Client, FakeServer]]


def test_stream_yields_deltas_in_order_then_one_final(connect: Connect) -> None:
    client, _ = connect(count_to_three)
    *deltas, final = client.generate("hello")
    assert [(delta.text, delta.token_ids, delta.index) for delta in deltas if isinstance(delta, Delta)] == [
        ("a", (10,), 0), ("b", (11,), 1), ("c", (12,), 2)]  # fmt: skip
    assert isinstance(final, Final) and final.finish_reason is FinishReason.STOP and final.usage.num_output_tokens == 3


def test_last_response_may_carry_text_and_the_end(connect: Connect) -> None:
    client, _ = connect(lambda call: iter([reply("all", (1, 2), reason="length", counts=(3, 2))]))
    first, final = client.generate("hello")
    assert isinstance(first, Delta) and first.text == "all" and isinstance(final, Final)


def test_complete_asks_for_one_response_and_joins_it(connect: Connect) -> None:
    client, server = connect(count_to_three)
    answer = client.complete("hello", max_tokens=3)
    assert (answer.text, answer.token_ids) == ("abc", (10, 11, 12))
    assert server.calls[0].inputs["stream"] == [False]


def test_in_band_error_arrives_as_final(connect: Connect) -> None:
    client, _ = connect(lambda call: iter([reply("a", (1,)), reply(reason="error", error="a rank was lost")]))
    final = list(client.generate("hello"))[-1]
    assert isinstance(final, Final) and (final.finish_reason, final.error) == (FinishReason.ERROR, "a rank was lost")


def test_logprobs_are_read(connect: Connect) -> None:
    text = '{"tokens": [{"token_id": 1, "logprob": -0.5, "top": [[1, -0.5], [2, -1.5]]}], "prompt": []}'
    client, _ = connect(lambda call: iter([reply("a", (1,), logprobs=text, reason="stop")]))
    delta = next(client.generate("hello", logprobs=1))
    assert isinstance(delta, Delta)
    assert delta.logprobs == (TokenLogprob(token_id=1, logprob=-0.5, top=((1, -0.5), (2, -1.5))),)


def test_breaking_out_of_the_loop_stops_the_request(connect: Connect) -> None:
    client, server = connect(until_stopped)
    for _ in client.generate("hello"):
        break
    gc.collect()
    assert server.calls[0].stopped.wait(WAIT_S)


def test_interrupt_while_waiting_stops_the_request(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    client, server = connect(until_stopped)
    generation = client.generate("hello")
    next(generation)

    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(generation, "_receive", interrupt)
    with pytest.raises(KeyboardInterrupt):
        next(generation)
    assert server.calls[0].stopped.wait(WAIT_S)


def test_closing_before_the_first_event_stops_the_request(connect: Connect) -> None:
    client, server = connect(until_stopped)
    client.generate("hello").close()
    assert all(call.stopped.wait(WAIT_S) for call in server.calls)


def test_closing_the_client_stops_what_still_runs(connect: Connect) -> None:
    client, server = connect(until_stopped)
    generation = client.generate("hello")
    next(generation)
    client.close()
    assert server.calls[0].stopped.wait(WAIT_S)


def test_cancelled_stream_goes_on_until_its_final(connect: Connect) -> None:
    client, _ = connect(until_stopped)
    generation = client.generate("hello")
    next(generation)
    generation.cancel()
    final = list(generation)[-1]
    assert isinstance(final, Final) and final.finish_reason is FinishReason.CANCELLED


def test_directly_addressed_runtime_is_stopped_there(connect: Connect) -> None:
    client, server = connect(until_stopped)
    generation = client.generate([1, 2, 3])
    next(generation)
    generation.cancel()
    final = list(generation)[-1]
    assert isinstance(final, Final) and final.finish_reason is FinishReason.CANCELLED
    assert server.calls[0].model == "dsv4_runtime" and server.calls[0].stopped.is_set()


def test_request_that_ignores_its_stop_is_cancelled(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsv4_client.stream.STOP_S", 0.2)

    def script(call: Call) -> Replies:
        yield reply("a", (10,), counts=(3, 1))
        call.cancelled.wait(WAIT_S)

    client, server = connect(script)
    generation = client.generate("hello")
    next(generation)
    generation.close()
    assert server.calls[0].cancelled.wait(WAIT_S)


def test_stopping_an_unknown_request_says_so(connect: Connect) -> None:
    client, _ = connect(count_to_three)
    with pytest.raises(NotFoundError, match=r"^no request with id 'r7' is running"):
        client.cancel("r7")


def test_deadline_stops_the_request_and_says_how_far_it_came(connect: Connect) -> None:
    client, server = connect(until_stopped)
    with pytest.raises(DeadlineError, match=r"0\.3 s \(1 tokens"):
        list(client.generate("hello", timeout_s=0.3))
    assert server.calls[0].stopped.is_set() and server.calls[0].is_complete


def test_timeout_that_does_not_pass_changes_nothing(connect: Connect) -> None:
    client, _ = connect(count_to_three)
    assert client.complete("hello", timeout_s=30.0).text == "abc"


def test_stopped_stream_is_read_to_its_end(connect: Connect) -> None:
    """Triton loses count of requests whose stream is cancelled while they complete."""
    client, server = connect(until_stopped)
    generation = client.generate("hello")
    next(generation)
    generation.close()
    assert server.calls[0].is_complete and not generation._call.cancelled()


def test_unreachable_server_is_named_with_the_command_to_start_one() -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(ServerUnreachableError, match=r"127\.0\.0\.1:1 .*`dsv4 serve`"):
        list(client.generate("hello"))


def test_model_that_is_not_loaded_is_no_unreachable_server(connect: Connect) -> None:
    client, server = connect(lambda call: _abort(call, grpc.StatusCode.UNAVAILABLE, "still loading"))
    server.is_ready = False
    with pytest.raises(ModelNotReadyError, match="still loading"):
        list(client.generate("hello"))


def test_check_ready_refuses_a_model_that_is_not_loaded(connect: Connect) -> None:
    client, server = connect(count_to_three)
    server.is_ready = False
    with pytest.raises(ModelNotReadyError, match="dsv4"):
        client.check_ready()


def test_full_queue_is_an_overload_with_its_retry_hint(connect: Connect) -> None:
    message = "the queue holds 4 requests, the limit is 4. Retry after 2.5 s."
    client, _ = connect(lambda call: iter([refuse(f"in ensemble 'dsv4', {message}")]))
    with pytest.raises(OverloadedError, match=f"^{message}$") as caught:
        list(client.generate("hello"))
    assert caught.value.retry_after_s == 2.5


def test_refusal_passes_the_servers_text_on(connect: Connect) -> None:
    message = "top_p is 3 but must be above 0 to 1."
    client, _ = connect(lambda call: iter([refuse(f"in ensemble 'dsv4', {message}")]))
    with pytest.raises(RequestError, match=f"^{message}$"):
        list(client.generate("hello", top_p=3.0))


def test_dead_stub_is_a_model_that_is_not_ready(connect: Connect) -> None:
    client, _ = connect(lambda call: iter([refuse("Stub process 'dsv4_runtime_0' is not healthy.")]))
    with pytest.raises(ModelNotReadyError, match="not healthy"):
        list(client.generate("hello"))


def test_status_of_tritons_own_is_passed_on(connect: Connect) -> None:
    client, _ = connect(lambda call: _abort(call, grpc.StatusCode.RESOURCE_EXHAUSTED, "message too large"))
    with pytest.raises(Dsv4Error, match="RESOURCE_EXHAUSTED: message too large"):
        list(client.generate("hello"))


def test_connection_lost_before_the_first_token_is_a_broken_stream(connect: Connect) -> None:
    client, _ = connect(lambda call: _abort(call, grpc.StatusCode.UNAVAILABLE, "Socket closed"))
    with pytest.raises(BrokenStreamError, match="after 0 tokens: Socket closed"):
        list(client.generate("hello"))


def test_connection_lost_in_mid_stream_is_a_broken_stream(connect: Connect) -> None:
    def script(call: Call) -> Replies:
        yield reply("a", (1,), counts=(3, 1))
        yield from _abort(call, grpc.StatusCode.UNAVAILABLE, "Socket closed")

    client, _ = connect(script)
    with pytest.raises(BrokenStreamError, match="after 1 tokens: Socket closed"):
        list(client.generate("hello"))


def test_stream_without_a_final_response_is_a_broken_stream(connect: Connect) -> None:
    client, _ = connect(lambda call: iter([reply("a", (1,))]))
    with pytest.raises(BrokenStreamError, match="without a final response"):
        list(client.generate("hello"))


def test_sixty_four_streams_share_one_connection(connect: Connect) -> None:
    meeting = threading.Barrier(64, timeout=WAIT_S)

    def script(call: Call) -> Replies:
        meeting.wait()  # passes only when all 64 run at once
        yield reply(str(call.inputs["max_tokens"][0]), (1,), reason="stop")

    client, _ = connect(script)
    with ThreadPoolExecutor(64) as pool:
        texts = list(pool.map(lambda number: client.complete("x", max_tokens=number).text, range(1, 65)))
    assert texts == [str(number) for number in range(1, 65)]


def test_requests_get_ids_of_their_own(connect: Connect) -> None:
    client, server = connect(count_to_three)
    for _ in range(3):
        client.complete("x")
    assert len({call.request_id for call in server.calls} - {""}) == 3


def test_background_reader_hands_events_and_errors_on(connect: Connect) -> None:
    client, _ = connect(lambda call: iter([reply("a", (1,))]))
    events = Background(client.generate("hello"))
    assert isinstance(next(events), Delta)
    with pytest.raises(BrokenStreamError):
        next(events)


def test_background_reader_ends_after_final(connect: Connect) -> None:
    client, _ = connect(count_to_three)
    assert len(list(Background(client.generate("hello")))) == 4


def _abort(call: Call, code: grpc.StatusCode, message: str) -> Replies:
    call.context.abort(code, message)
    yield reply()


def test_every_error_of_the_client_is_a_project_error() -> None:
    kinds = (BrokenStreamError, DeadlineError, ModelNotReadyError, ServerUnreachableError)
    assert all(issubclass(kind, Dsv4Error) for kind in kinds)
