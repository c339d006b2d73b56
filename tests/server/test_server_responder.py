"""The sender thread: order, coalescing, and exactly one final response whatever fails."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
from server_rig import WAIT_S, FakeChannel, FakeEngine, make_chunk, wait_until

from dsv4_backend.errors import AlreadyRunningError, NotFoundError
from dsv4_backend.records import FinishReason, Prompt, Request
from dsv4_backend.server.responder import MAX_PENDING, EngineFailedError, OutStream, Responder


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def responder(engine: FakeEngine) -> Iterator[Responder]:
    responder = Responder(engine.cancel)
    yield responder
    responder.close()
    responder.check()


def begin(engine: FakeEngine, responder: Responder, channel: FakeChannel, client_id: str = "") -> OutStream:
    stream = responder.open(client_id, channel)
    engine.submit(Request(id=stream.engine_id, prompt=Prompt(token_ids=(1,))), stream)
    return stream


def test_what_is_pending_leaves_in_one_response(engine: FakeEngine, responder: Responder) -> None:
    channel = FakeChannel()
    stream = begin(engine, responder, channel)
    for token in range(5):
        stream.put(make_chunk(token))
    stream.put(make_chunk(5, reason=FinishReason.STOP))
    responder.start()
    assert channel.ended.wait(WAIT_S)
    assert [arrays["token_ids"].tolist() for arrays, _ in channel.sent] == [[0, 1, 2, 3, 4, 5]]


def test_chunks_arrive_in_order_with_counted_indices(engine: FakeEngine, responder: Responder) -> None:
    responder.start()
    channels = [FakeChannel() for _ in range(8)]
    streams = [begin(engine, responder, channel) for channel in channels]
    for token in range(200):
        for stream in streams:
            stream.put(make_chunk(token))
    for stream in streams:
        stream.put(make_chunk(reason=FinishReason.STOP))
    for channel in channels:
        assert channel.ended.wait(WAIT_S)
        assert channel.token_ids == list(range(200))
        assert [int(arrays["index"][0]) for arrays, _ in channel.sent] == list(range(len(channel.sent)))
        assert channel.num_finals == 1


def test_an_unstreamed_request_gets_exactly_one_response(engine: FakeEngine, responder: Responder) -> None:
    responder.start()
    channel = FakeChannel()
    stream = begin(engine, responder, channel)
    stream.is_streamed = False
    for token in range(20):
        stream.put(make_chunk(token))
    other = FakeChannel()
    begin(engine, responder, other).put(make_chunk(reason=FinishReason.STOP))
    assert other.ended.wait(WAIT_S)  # the sender has passed by
    assert not channel.sent
    stream.put(make_chunk(20, reason=FinishReason.LENGTH))
    assert channel.ended.wait(WAIT_S)
    assert len(channel.sent) == 1 and channel.token_ids == list(range(21))


def test_a_long_unstreamed_answer_is_kept_joined(engine: FakeEngine, responder: Responder) -> None:
    channel = FakeChannel()
    stream = begin(engine, responder, channel)
    stream.is_streamed = False
    for token in range(2 * MAX_PENDING):
        stream.put(make_chunk(token))
    responder.start()
    wait_until(lambda: len(stream.pending) == 1, "pending chunks are joined")
    assert not channel.sent
    stream.put(make_chunk(7, reason=FinishReason.STOP))
    assert channel.ended.wait(WAIT_S)
    assert channel.token_ids == [*range(2 * MAX_PENDING), 7] and len(channel.sent) == 1


def test_an_engine_failure_before_the_first_response_is_an_error(engine: FakeEngine, responder: Responder) -> None:
    responder.start()
    channel = FakeChannel()
    begin(engine, responder, channel).put(make_chunk(reason=FinishReason.ERROR, error="rank lost"))
    assert channel.ended.wait(WAIT_S)
    assert not channel.sent and isinstance(channel.errors[0], EngineFailedError)


def test_an_engine_failure_in_mid_stream_travels_in_band(engine: FakeEngine, responder: Responder) -> None:
    responder.start()
    channel = FakeChannel()
    stream = begin(engine, responder, channel)
    stream.put(make_chunk(1))
    assert channel.first.wait(WAIT_S)
    stream.put(make_chunk(reason=FinishReason.ERROR, error="rank lost"))
    assert channel.ended.wait(WAIT_S)
    assert not channel.errors
    assert channel.texts("finish_reason") == ["", "error"] and channel.texts("error") == ["", "rank lost"]


def test_a_failed_send_ends_that_stream_alone(engine: FakeEngine, responder: Responder) -> None:
    responder.start()
    broken, whole = FakeChannel(), FakeChannel()
    broken.num_failures = 1
    stream = begin(engine, responder, broken)
    stream.put(make_chunk(1))
    assert broken.ended.wait(WAIT_S)
    begin(engine, responder, whole).put(make_chunk(2, reason=FinishReason.STOP))
    assert whole.ended.wait(WAIT_S)
    assert broken.num_finals == whole.num_finals == 1
    assert broken.texts("finish_reason") == ["error"]
    assert engine.cancelled == [stream.engine_id]


def test_a_watched_client_that_goes_away_is_cancelled(engine: FakeEngine, responder: Responder) -> None:
    responder.start()
    gone, unwatched = FakeChannel(), FakeChannel()
    gone.is_gone = unwatched.is_gone = True
    begin(engine, responder, unwatched)
    stream = begin(engine, responder, gone)
    stream.is_watched = True
    assert gone.ended.wait(WAIT_S)
    assert engine.cancelled == [stream.engine_id]
    assert gone.texts("finish_reason") == ["cancelled"]


def test_an_id_is_free_again_when_the_final_response_is_there(engine: FakeEngine, responder: Responder) -> None:
    responder.start()
    for _ in range(50):
        channel = FakeChannel()
        stream = begin(engine, responder, channel, "same")
        with pytest.raises(AlreadyRunningError, match="'same' is already running"):
            responder.open("same", FakeChannel())
        stream.put(make_chunk(reason=FinishReason.STOP))
        assert channel.ended.wait(WAIT_S)


def test_requests_without_an_id_run_side_by_side(engine: FakeEngine, responder: Responder) -> None:
    responder.start()
    begin(engine, responder, FakeChannel())
    begin(engine, responder, FakeChannel())
    assert responder.num_open == 2
    with pytest.raises(NotFoundError):
        responder.find("")


def test_closing_ends_what_the_engine_left_open(engine: FakeEngine, responder: Responder) -> None:
    responder.start()
    channel = FakeChannel()
    begin(engine, responder, channel)
    responder.close()
    assert channel.num_finals == 1
    assert channel.texts("finish_reason") == ["error"]


def test_closing_sends_what_is_pending(engine: FakeEngine, responder: Responder) -> None:
    channel = FakeChannel()
    stream = begin(engine, responder, channel)
    stream.put(make_chunk(7, reason=FinishReason.STOP))
    responder.start()
    responder.close()
    assert channel.token_ids == [7] and channel.num_finals == 1


def test_polls_go_on_when_one_of_them_fails(engine: FakeEngine) -> None:
    enough = threading.Event()
    calls: list[int] = []

    def poll() -> None:
        calls.append(1)
        if len(calls) >= 3:
            enough.set()
        raise RuntimeError("metrics broke")

    responder = Responder(engine.cancel, poll)
    responder.start()
    assert enough.wait(WAIT_S)
    responder.close()


def test_a_broken_stream_stays_one_stream_when_more_chunks_come(engine: FakeEngine, responder: Responder) -> None:
    responder.start()
    channel = FakeChannel()
    channel.num_failures = 1
    stream = begin(engine, responder, channel)
    stream.put(make_chunk(1))
    assert channel.ended.wait(WAIT_S)
    stream.put(make_chunk(2))
    stream.put(make_chunk(reason=FinishReason.STOP))
    other = FakeChannel()
    begin(engine, responder, other).put(make_chunk(reason=FinishReason.STOP))
    assert other.ended.wait(WAIT_S)
    assert channel.num_finals == 1


def test_arrays_of_last_words_have_every_output(engine: FakeEngine, responder: Responder) -> None:
    responder.start()
    channel = FakeChannel()
    begin(engine, responder, channel)
    responder.close()
    arrays, _ = channel.sent[0]
    assert all(isinstance(array, np.ndarray) for array in arrays.values())
    assert {"text_ids", "skip_bytes", "keep_bytes", "token_ids", "error", "index"} <= set(arrays)
