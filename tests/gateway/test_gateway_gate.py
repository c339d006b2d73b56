"""What stands before every endpoint: keys, limits, ids, the log; and the paths that are no generation."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from dsv4_client.events import Event
from dsv4_client.gateway.settings import digest, read_keys
from gateway_rig import HELLO, OFF, Call, Gateway, delta, endless, final, run_gateway, wait_until

from dsv4_backend.errors import ConfigError

CHAT = "/v1/chat/completions"
OPEN = ("/health", "/v1/health/live", "/v1/health/ready")


@pytest.fixture(scope="module")
def locked(nano_checkpoint: Path) -> Iterator[Gateway]:
    """A gateway with a key, and limits that a test reaches."""
    limits: dict[str, Any] = {
        "key_digests": (digest("first"), digest("secret")),
        "max_body_bytes": 2000,
        "max_requests": 2,
        "stall_timeout_s": 0.2,
        "max_unsent_events": 4,
        "keep_alive_s": 0.05,
        "cors_origins": ("https://page.example",),
    }
    with run_gateway(nano_checkpoint, **limits) as gateway:
        yield gateway


KEY = {"authorization": "Bearer secret"}


def test_no_endpoint_but_health_answers_without_a_key(locked: Gateway) -> None:
    paths = locked.http.get("/openapi.json", headers=KEY).json()["paths"]
    asked = [(method, path) for path, methods in paths.items() for method in methods]
    assert len(asked) > 20
    found = {path: locked.http.request(method, path).status_code for method, path in asked}
    assert {path for path, status in found.items() if status != 401} == set(OPEN)


@pytest.mark.parametrize("headers", [KEY, {"x-api-key": "secret"}, {"authorization": "bearer first"}])
def test_a_key_is_taken_as_either_api_sends_it(locked: Gateway, headers: dict[str, str]) -> None:
    assert locked.http.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize("sent", ["", "Bearer", "Bearer wrong", "Basic secret", "Bearer secret2", "secret"])
def test_another_key_is_refused(locked: Gateway, sent: str) -> None:
    found = locked.http.get("/v1/models", headers={"authorization": sent})
    assert (found.status_code, found.json()["error"]["code"]) == (401, "invalid_api_key")


def test_a_large_body_is_refused_whether_or_not_it_says_so(locked: Gateway) -> None:
    body = json.dumps({"messages": HELLO, "padding": "x" * 3000}).encode()
    assert locked.http.post(CHAT, content=body, headers=KEY).status_code == 413
    assert locked.http.post(CHAT, content=iter([body]), headers=KEY).status_code == 413


def test_one_request_too_many_is_told_to_come_back(locked: Gateway) -> None:
    locked.server.script = endless(locked.ids("word "))
    body = {"messages": HELLO, "stream": True, **OFF}
    with (
        locked.http.stream("POST", CHAT, json=body, headers=KEY) as one,
        locked.http.stream("POST", CHAT, json=body, headers=KEY) as two,
    ):
        assert (one.status_code, two.status_code) == (200, 200)
        refused = locked.post(CHAT, body, headers=KEY)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert locked.http.get("/v1/health/live").status_code == 200
    wait_until(lambda: locked.service.metrics.num_running == 0, "both have left")


def test_a_client_that_does_not_read_is_ended(locked: Gateway) -> None:
    locked.server.calls.clear()
    locked.server.script = endless(locked.ids("word " * 200))
    body = json.dumps({"messages": HELLO, "stream": True, **OFF}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer secret\r\ncontent-length: {len(body)}\r\n\r\n"
    port = int(locked.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as silent:
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        silent.sendall(head.encode() + body)
        wait_until(lambda: bool(locked.server.calls), "the request runs")
        assert locked.server.calls[0].stopped.wait(10)
    assert "dsv4_gateway_stalls_total 1" in locked.http.get("/metrics", headers=KEY).text


def test_a_stream_without_news_is_kept_alive(locked: Gateway) -> None:
    async def slow(call: Call) -> AsyncIterator[Event]:
        await asyncio.sleep(0.3)
        yield delta(locked.ids("late"))
        yield final()

    locked.server.script = slow
    text = locked.post(CHAT, {"messages": HELLO, "stream": True, **OFF}, headers=KEY).text
    assert text.startswith(": keep-alive\n\n") and text.endswith("data: [DONE]\n\n")


def test_pages_of_named_origins_may_call(locked: Gateway) -> None:
    ask = {"origin": "https://page.example", "access-control-request-method": "POST"}
    found = locked.http.options(CHAT, headers=ask)
    assert found.headers["access-control-allow-origin"] == "https://page.example"
    assert (
        "access-control-allow-origin" not in locked.http.options(CHAT, headers={**ask, "origin": "https://x"}).headers
    )


def test_a_request_id_is_kept_or_made(gateway: Gateway) -> None:
    assert gateway.http.get("/health", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert gateway.http.get("/health", headers={"x-request-id": "a b"}).headers["x-request-id"].startswith("req_")


def test_the_log_has_no_text_of_the_request(gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    gateway.says("answer words")
    with caplog.at_level(logging.INFO, logger="dsv4.gateway.access"):
        gateway.chat(messages=[{"role": "user", "content": "prompt words"}], **OFF)
        wait_until(lambda: bool(caplog.records), "the line is written")
    line = json.loads(caplog.records[-1].message)
    assert (line["route"], line["status"]) == (CHAT, 200)
    assert "words" not in caplog.text


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/chat", "/docs", "/v1/chat/completions/x", "/../etc/passwd"])
def test_any_other_path_is_not_there(gateway: Gateway, path: str) -> None:
    found = gateway.http.get(path)
    assert (found.status_code, found.json()["error"]["type"]) == (404, "not_found_error")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b'"x"', b"[" * 1500])
@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/responses", "/v1/messages", "/tokenize", "/detokenize"])
def test_what_is_no_body_is_refused_without_a_trace(gateway: Gateway, path: str, data: bytes) -> None:
    found = gateway.http.post(path, content=data)
    assert found.status_code == 400
    assert "Traceback" not in found.text and ".py" not in found.text


def test_the_model_is_listed_with_its_length(gateway: Gateway) -> None:
    (found,) = gateway.http.get("/v1/models").json()["data"]
    assert (found["id"], found["max_model_len"]) == ("nano", 4096)
    assert gateway.http.get("/v1/models/nano").json() == found
    assert gateway.http.get("/v1/models/other").status_code == 404


def test_ready_is_what_the_server_is(gateway: Gateway) -> None:
    assert gateway.http.get("/v1/health/ready").status_code == 200
    gateway.server.is_up = False
    assert [gateway.http.get(path).status_code for path in OPEN] == [503, 200, 503]


def test_text_goes_to_tokens_and_back(gateway: Gateway) -> None:
    found = gateway.post("/tokenize", {"prompt": "Grüße", "add_special_tokens": False}).json()
    assert found["count"] == len(found["tokens"])
    assert gateway.post("/detokenize", {"tokens": found["tokens"]}).json() == {"prompt": "Grüße"}
    assert gateway.post("/detokenize", {"tokens": [-1]}).status_code == 400


@pytest.mark.parametrize("path", ["/v1/metadata", "/v1/version", "/version", "/v1/license", "/v1/manifest"])
def test_facts_are_told(gateway: Gateway, path: str) -> None:
    found = gateway.http.get(path)
    assert found.status_code == 200 and found.json()


def test_facts_that_were_given_go_before_its_own(nano_checkpoint: Path) -> None:
    told = {"/v1/metadata": {"selectedModelProfileId": "f" * 64}, "/v1/more": ["one"]}
    with run_gateway(nano_checkpoint, facts=told) as gateway:
        assert {path: gateway.http.get(path).json() for path in told} == told


def test_the_license_is_told_in_full(gateway: Gateway) -> None:
    assert "Apache License" in gateway.http.get("/v1/license").json()["content"]


def test_metrics_count_requests_and_tokens(gateway: Gateway) -> None:
    gateway.says("Good day")
    before = gateway.http.get("/metrics").text
    gateway.chat(**OFF)
    after = gateway.http.get("/metrics").text
    num_tokens = len(gateway.ids("Good day"))
    assert (
        _value(after, "dsv4_gateway_output_tokens_total") - _value(before, "dsv4_gateway_output_tokens_total")
        == num_tokens
    )
    assert f'dsv4_gateway_requests_total{{path="{CHAT}",status="200"}}' in after


def _value(text: str, name: str) -> float:
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} "))


def test_keys_are_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# team\nalpha\n\n beta \n", encoding="utf-8")
    assert read_keys(file) == (digest("alpha"), digest("beta"))


@pytest.mark.parametrize("text", ["", "# nothing\n"])
def test_a_file_without_keys_does_not_leave_the_door_open(tmp_path: Path, text: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="0 keys"):
        read_keys(file)
