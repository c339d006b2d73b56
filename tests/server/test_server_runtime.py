"""dsv4_runtime without Triton: admission, refusals, stop, and the ids of clients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from server_rig import DTYPES, WAIT_S, FakeChannel, FakeEngine, make_chunk

from dsv4_backend.errors import AlreadyRunningError, NotFoundError, OverloadedError, RequestError
from dsv4_backend.records import FinishReason, Limits, Prompt
from dsv4_backend.server.prepared import STOP, dump_prompt
from dsv4_backend.server.responder import Responder
from dsv4_backend.server.runtime import Incoming, Runtime

VOCAB = 100


class Bench:
    """A runtime on a scripted engine."""

    def __init__(self) -> None:
        self.engine = FakeEngine()
        self.responder = Responder(self.engine.cancel)
        self.runtime = Runtime(self.engine, self.responder, vocab_size=VOCAB)
        self.responder.start()

    def send(self, client_id: str = "", timeout_s: float | None = None, **values: Any) -> FakeChannel:
        tensors = {}
        for name, value in values.items():
            items = [v.encode() if isinstance(v, str) else v for v in (value if isinstance(value, list) else [value])]
            tensors[name] = np.array(items, DTYPES[name].numpy)
        channel = FakeChannel()
        incoming = Incoming(client_id=client_id, tensors=tensors, channel=channel, timeout_s=timeout_s)
        self.runtime.handle(channel, lambda: incoming)
        return channel

    def refusal(self, client_id: str = "", **values: Any) -> Exception:
        channel = self.send(client_id, **values)
        assert channel.num_finals == 1
        return channel.errors[0]


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.runtime.close(0.0)
    assert bench.responder.num_open == 0


def test_ids_and_options_reach_the_engine(bench: Bench) -> None:
    bench.send(input_ids=[1, 2], max_tokens=4, temperature=0.5, stop_words=["x"])
    (request,) = bench.engine.requests
    assert request.prompt.token_ids == (1, 2)
    assert request.prompt.sampling.temperature == 0.5
    assert request.prompt.limits == Limits(max_tokens=4, stop=(b"x",))


def test_what_the_tokenizer_prepared_reaches_the_engine(bench: Bench) -> None:
    prompt = Prompt(token_ids=(3, 4), limits=Limits(max_tokens=2), cache_salt="s")
    bench.send(input_ids=[3, 4], prepared=dump_prompt(prompt))
    assert bench.engine.requests[0].prompt == prompt


def test_prepared_values_are_checked_like_any_other(bench: Bench) -> None:
    prompt = Prompt(token_ids=(3,), limits=Limits(max_tokens=-2))
    assert "max_tokens is -2" in str(bench.refusal(input_ids=[3], prepared=dump_prompt(prompt)))


def test_a_request_without_ids_is_refused(bench: Bench) -> None:
    error = bench.refusal(max_tokens=3)
    assert isinstance(error, RequestError) and "input_ids is missing" in str(error)


def test_a_refusal_of_the_engine_is_the_only_response(bench: Bench) -> None:
    bench.engine.refusal = OverloadedError("the queue is full.", retry_after_s=1.0)
    assert bench.refusal("a", input_ids=[1]) is bench.engine.refusal
    assert bench.responder.num_open == 0


def test_an_id_is_refused_while_it_is_running_and_free_afterwards(bench: Bench) -> None:
    first = bench.send("a", input_ids=[1])
    assert isinstance(bench.refusal("a", input_ids=[1]), AlreadyRunningError)
    bench.engine.sinks[bench.engine.requests[0].id].put(make_chunk(reason=FinishReason.STOP))
    assert first.ended.wait(WAIT_S)
    assert not bench.send("a", input_ids=[1]).errors


def test_stop_ends_the_running_request_and_is_answered(bench: Bench) -> None:
    running = bench.send("a", input_ids=[1])
    stopper = bench.send("a", stop=True)
    assert running.ended.wait(WAIT_S)
    assert running.texts("finish_reason") == ["cancelled"]
    assert stopper.texts("finish_reason") == ["cancelled"] and stopper.num_finals == 1


def test_stop_comes_through_the_tokenizer_too(bench: Bench) -> None:
    running = bench.send("a", input_ids=[1])
    bench.send("a", input_ids=[], prepared=STOP)
    assert running.ended.wait(WAIT_S)


def test_stop_of_nothing_is_not_found(bench: Bench) -> None:
    assert isinstance(bench.refusal("a", stop=True), NotFoundError)


def test_stop_without_an_id_is_refused(bench: Bench) -> None:
    assert isinstance(bench.refusal(stop=True), RequestError)


def test_an_endless_id_is_refused(bench: Bench) -> None:
    assert "300 characters" in str(bench.refusal("x" * 300, input_ids=[1]))


def test_triton_timeout_bounds_the_request(bench: Bench) -> None:
    bench.send(input_ids=[1], timeout_s=2.5)
    assert bench.engine.requests[0].prompt.limits.timeout_s == 2.5


def test_only_direct_requests_are_watched(bench: Bench) -> None:
    direct = bench.send(input_ids=[1])
    through_ensemble = bench.send(input_ids=[1], prepared=dump_prompt(Prompt(token_ids=())))
    through_ensemble.is_gone = direct.is_gone = True
    assert direct.ended.wait(WAIT_S)
    assert not through_ensemble.ended.is_set()


def test_logprobs_are_sent_when_asked_for(bench: Bench) -> None:
    asked, plain = bench.send(input_ids=[1], logprobs=0), bench.send(input_ids=[1])
    for sink in list(bench.engine.sinks.values()):
        sink.put(make_chunk(1, reason=FinishReason.STOP))
    assert asked.ended.wait(WAIT_S) and plain.ended.wait(WAIT_S)
    assert asked.texts("output_logprobs") == ['{"tokens":[]}'] and plain.texts("output_logprobs") == [""]


def test_a_bug_in_admission_still_answers_the_client(bench: Bench) -> None:
    bench.engine.refusal = ZeroDivisionError("a bug")
    assert bench.refusal(input_ids=[1]) is bench.engine.refusal


def test_a_request_that_cannot_be_read_is_answered(bench: Bench) -> None:
    def read() -> Incoming:
        raise RuntimeError("a broken tensor")

    channel = FakeChannel()
    bench.runtime.handle(channel, read)
    assert channel.num_finals == 1 and channel.errors


def test_closing_drains_the_engine_first(bench: Bench) -> None:
    bench.runtime.close(3.0)
    assert bench.engine.drain_s == 3.0
