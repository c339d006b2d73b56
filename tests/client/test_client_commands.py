"""`dsv4 generate` and `dsv4 chat` against a scripted server."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from client_rig import Call, FakeServer, Replies, Script, count_to_three, reply

from dsv4_backend import cli

Serve = Callable[[Script], FakeServer]
Capture = pytest.CaptureFixture[str]


def think_then_count(call: Call) -> Replies:
    """An answer with thinking; how many messages it got is part of it."""
    body = json.loads(call.inputs["request"][0])  # type: ignore[arg-type]
    if body["thinking"]["type"] == "enabled":
        yield reply("hm</thi", (1,))
        yield reply("nk>", (2,), index=1)
    yield reply(f"{len(body['messages'])} messages", (3,), index=2, reason="stop", counts=(9, 3))


def bodies(server: FakeServer) -> list[dict[str, Any]]:
    """Return the chat bodies that a server got."""
    return [json.loads(call.inputs["request"][0]) for call in server.calls]  # type: ignore[arg-type]


def chat(server: FakeServer, lines: str, monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    """Run `dsv4 chat` over piped lines."""
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    return cli.main(["chat", "--url", server.url, *options])


def test_generate_streams_text_and_ends_with_usage(serve: Serve, capsys: Capture) -> None:
    assert cli.main(["generate", "--url", serve(count_to_three).url, "hello"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "abc\n"
    assert shown.err.startswith("[3 prompt tokens (0 cached), 3 tokens, first after")


def test_generate_json_prints_one_object_per_event(serve: Serve, capsys: Capture) -> None:
    cli.main(["generate", "--json", "--url", serve(count_to_three).url, "hello"])
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["type"] for event in events] == ["delta", "delta", "delta", "final"]
    assert events[-1]["finish_reason"] == "stop" and events[-1]["usage"]["num_output_tokens"] == 3


def test_generate_passes_its_options_on(serve: Serve) -> None:
    server = serve(count_to_three)
    cli.main(["generate", "--url", server.url, "--max-tokens", "5", "--stop", "x", "--stop", "y", "--no-stream",
              "--echo", "--ignore-eos", "--temperature", "0", "hello"])  # fmt: skip
    inputs = server.calls[0].inputs
    assert inputs["max_tokens"] == [5] and inputs["stop_words"] == [b"x", b"y"] and inputs["stream"] == [False]
    assert inputs["exclude_input_in_output"] == [False] and inputs["ignore_eos"] == [True]
    assert inputs["temperature"] == [0.0]


def test_generate_reads_its_prompt_from_stdin(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(count_to_three)
    monkeypatch.setattr("sys.stdin", io.StringIO("from a pipe"))
    cli.main(["generate", "--url", server.url])
    assert server.calls[0].inputs["text_input"] == [b"from a pipe"]


@pytest.mark.parametrize("option", [(), ("--json",)])
def test_generate_fails_when_the_stream_ends_in_an_error(serve: Serve, option: tuple[str, ...]) -> None:
    server = serve(lambda call: iter([reply("a", (1,)), reply(reason="error", error="a rank was lost")]))
    assert cli.main(["generate", *option, "--url", server.url, "hello"]) == 1


def test_unreachable_server_is_one_line(capsys: Capture) -> None:
    assert cli.main(["generate", "--url", "127.0.0.1:1", "hello"]) == cli.EXIT_REFUSED
    assert capsys.readouterr().err.count("\n") == 1


def test_chat_tells_thinking_from_the_answer(serve: Serve, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    assert chat(serve(think_then_count), "hi\n", monkeypatch) == 0
    assert capsys.readouterr().out == "<think>hm</think>\n1 messages\n"


def test_chat_sends_the_conversation_without_its_thinking(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(think_then_count)
    chat(server, "one\ntwo\n", monkeypatch, "--system", "be brief")
    assert bodies(server)[1]["messages"] == [
        {"role": "system", "content": "be brief"}, {"role": "user", "content": "one"},
        {"role": "assistant", "content": "2 messages"}, {"role": "user", "content": "two"}]  # fmt: skip


def test_reset_forgets_the_conversation(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(think_then_count)
    chat(server, "one\n/reset\ntwo\n", monkeypatch)
    assert bodies(server)[1]["messages"] == [{"role": "user", "content": "two"}]


def test_think_sets_how_much_the_model_thinks(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(think_then_count)
    chat(server, "a\n/think off\nb\n/think max\nc\n", monkeypatch)
    found = [(body["thinking"]["type"], body.get("reasoning_effort")) for body in bodies(server)]
    assert found == [("enabled", "high"), ("disabled", None), ("enabled", "max")]


def test_exit_leaves(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(think_then_count)
    assert chat(server, "/exit\nnever sent\n", monkeypatch) == 0
    assert server.calls == []


@pytest.mark.parametrize(("line", "told"), [
    ("/rest", "Did you mean /reset?"), ("/think hard", "/think takes one of on, off, max"), ("/help", "/exit  leave"),
])  # fmt: skip
def test_mistaken_command_is_explained(
    line: str, told: str, serve: Serve, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    chat(serve(think_then_count), f"{line}\n", monkeypatch)
    assert told in capsys.readouterr().out


def test_chat_json_prints_one_object_per_event(serve: Serve, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    chat(serve(think_then_count), "hi\n", monkeypatch, "--json")
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(event["type"], event.get("text")) for event in events] == [
        ("thinking", "hm"), ("text", "1 messages"), ("final", None)]  # fmt: skip


def test_failed_answer_fails_a_piped_chat(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(lambda call: iter([reply(reason="error", error="a rank was lost")]))
    assert chat(server, "hi\n", monkeypatch) == 1
