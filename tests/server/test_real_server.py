"""The ensemble on the real tritonserver, without a model behind it: the executor repeats the prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from server_rig import GrpcStream, is_idle, open_stream, post, wait_until

from dsv4_backend.launcher import Server
from dsv4_backend.text import TextEncoder, Vocabulary, join_bytes

pytestmark = pytest.mark.server
ENDLESS = {"max_tokens": 60_000, "ignore_eos": True}


def text_of(vocabulary: Vocabulary, token_ids: list[int]) -> str:
    return join_bytes(vocabulary, token_ids).decode("utf-8", "replace")


def test_text_goes_in_and_text_comes_out(stream: GrpcStream, vocabulary: Vocabulary) -> None:
    reply = stream.ask("dsv4", {"text_input": "Once upon a time", "max_tokens": 30})
    assert not reply.error
    assert len(reply.token_ids) == 30
    assert reply.joined("text_output") == text_of(vocabulary, reply.token_ids)
    assert "Once upon a time" in reply.joined("text_output")


def test_responses_are_counted_and_the_last_one_says_why(stream: GrpcStream) -> None:
    reply = stream.ask("dsv4", {"text_input": "Once upon a time", "max_tokens": 300})
    assert reply.column("index") == list(range(len(reply.responses)))
    assert [value.decode() for value in reply.column("finish_reason")][:-1] == [""] * (len(reply.responses) - 1)
    assert reply.finish_reason == "length"
    assert reply.column("num_output_tokens")[-1] == 300
    assert reply.column("num_input_tokens")[-1] > 0


def test_text_input_may_be_in_any_script(stream: GrpcStream, vocabulary: Vocabulary) -> None:
    reply = stream.ask("dsv4", {"text_input": "Grüße, 停止 🦜🦜 مرحبا", "max_tokens": 100})
    assert reply.joined("text_output") == text_of(vocabulary, reply.token_ids)
    assert "\ufffd" not in reply.joined("text_output")[:20]


def test_an_unstreamed_request_gets_one_response(stream: GrpcStream) -> None:
    reply = stream.ask("dsv4", {"text_input": "Once upon", "max_tokens": 500, "stream": False})
    assert len(reply.responses) == 1
    assert len(reply.token_ids) == 500


def test_streamed_and_unstreamed_say_the_same(stream: GrpcStream) -> None:
    values = {"text_input": "Zwölf Boxkämpfer 🥊", "max_tokens": 200}
    streamed, whole = (stream.ask("dsv4", values | {"stream": flag}) for flag in (True, False))
    assert streamed.token_ids == whole.token_ids
    assert streamed.joined("text_output") == whole.joined("text_output")


def test_a_stop_string_is_cut_from_the_text(stream: GrpcStream) -> None:
    reply = stream.ask("dsv4", {"text_input": "red green blue", "max_tokens": 50, "stop_words": ["een b", "zzz"]})
    assert reply.finish_reason == "stop"
    assert reply.joined("text_output").endswith("red gr")


def test_the_prompt_is_echoed_when_asked_for(stream: GrpcStream) -> None:
    values = {"text_input": "red green", "max_tokens": 4}
    plain, echo = (stream.ask("dsv4", values | {"echo": flag}) for flag in (False, True))
    assert echo.joined("text_output") == "red green" + plain.joined("text_output")
    assert echo.token_ids == plain.token_ids


def test_logprobs_come_for_every_token_when_asked_for(stream: GrpcStream) -> None:
    reply = stream.ask("dsv4", {"text_input": "red green", "max_tokens": 9, "logprobs": 0})
    entries = [item for text in reply.column("output_logprobs") for item in json.loads(text or b"{}").get("tokens", [])]
    assert [item["token_id"] for item in entries] == reply.token_ids


def test_the_runtime_takes_ids_directly(stream: GrpcStream) -> None:
    reply = stream.ask("dsv4_runtime", {"input_ids": [70, 71, 72], "max_tokens": 7})
    assert reply.token_ids == [70, 71, 72, 70, 71, 72, 70]
    assert [int(token) for item in reply.responses for token in item["text_ids"]] == reply.token_ids


def test_ensemble_and_runtime_give_the_same_tokens(stream: GrpcStream, tokenizer_path: Path) -> None:
    text = "red green, blue"
    ids = list(TextEncoder(tokenizer_path).encode(text))
    through = stream.ask("dsv4", {"text_input": text, "max_tokens": 40})
    direct = stream.ask("dsv4_runtime", {"input_ids": ids, "max_tokens": 40})
    assert direct.token_ids == through.token_ids


def test_stop_ends_the_running_request_of_that_id(server: Server, stream: GrpcStream) -> None:
    stream.send("dsv4", {"text_input": "on and on", **ENDLESS}, request_id="endless")
    stream.read_one()
    with open_stream(server.grpc_address) as other:
        answer = other.ask("dsv4", {"stop": True}, request_id="endless")
    assert answer.finish_reason == "cancelled" and len(answer.responses) == 1
    assert stream.read_all()["endless"].finish_reason == "cancelled"
    wait_until(lambda: is_idle(server), "every page is back")


def test_stop_of_an_unknown_id_says_so(stream: GrpcStream) -> None:
    assert "no request with id 'nobody' is running" in stream.ask("dsv4", {"stop": True}, request_id="nobody").error


def test_an_id_that_is_running_is_refused(server: Server, stream: GrpcStream) -> None:
    stream.send("dsv4", {"text_input": "on and on", **ENDLESS}, request_id="twice")
    stream.read_one()
    with open_stream(server.grpc_address) as other:
        assert "'twice' is already running" in other.ask("dsv4", {"text_input": "a"}, request_id="twice").error
        other.ask("dsv4", {"stop": True}, request_id="twice")
    assert stream.read_all()["twice"].finish_reason == "cancelled"


def test_the_time_limit_of_a_request_ends_it_with_a_reason(server: Server, stream: GrpcStream) -> None:
    reply = stream.ask("dsv4", {"text_input": "on and on", **ENDLESS}, request_id="late", timeout_us=200_000)
    assert reply.finish_reason == "time_limit"


def test_http_generate_answers_once(server: Server) -> None:
    body = {"text_input": "red green", "max_tokens": 5, "stream": False, "stop_words": ["no", "none"]}
    status, text = post(server.http_address, "/v2/models/dsv4/generate", body)
    assert status == 200
    assert json.loads(text)["finish_reason"] == "length"


def test_http_generate_stream_sends_events(server: Server, vocabulary: Vocabulary) -> None:
    body = {"text_input": "red green", "max_tokens": 50}
    status, text = post(server.http_address, "/v2/models/dsv4/generate_stream", body)
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    ids = [token for item in events for token in _list(item["token_ids"])]
    assert status == 200
    assert "".join(item["text_output"] for item in events) == text_of(vocabulary, ids)


def _list(value: Any) -> list[int]:
    return value if isinstance(value, list) else [value]  # Triton's JSON writes one value without brackets


def test_http_refuses_with_the_reason(server: Server) -> None:
    status, text = post(server.http_address, "/v2/models/dsv4/generate", {"text_input": "a", "top_p": 7})
    assert status == 400
    assert "top_p is 7" in json.loads(text)["error"]


def test_64_streams_at_once_each_arrive_in_order(server: Server, vocabulary: Vocabulary) -> None:
    prompts = {f"r{index}": f"stream {index} counts {'abc' * (index % 7)}" for index in range(64)}
    with open_stream(server.grpc_address) as one:
        for request_id, text in prompts.items():
            one.send("dsv4", {"text_input": text, "max_tokens": 60 + len(text)}, request_id=request_id)
        replies = one.read_all(len(prompts))
    for request_id, text in prompts.items():
        reply = replies[request_id]
        assert not reply.error and len(reply.token_ids) == 60 + len(text)
        assert reply.column("index") == list(range(len(reply.responses)))
        assert text in reply.joined("text_output")
        for item in reply.responses:  # every response carries the text of its own tokens
            assert item["text_output"][0].decode() == text_of(vocabulary, item["token_ids"].tolist())
