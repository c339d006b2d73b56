"""Our own client, command line and load tools against the real server (executor=zero: it repeats the prompt)."""

from __future__ import annotations

import asyncio
import gc
import json
import runpy
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from dsv4_client import Answer, Client, DeadlineError, Final, ModelNotReadyError
from dsv4_client.aio import AsyncClient
from dsv4_client.events import join_events
from dsv4_client.load import LoadPlan, run_load
from server_rig import Start, is_idle, read_metrics, wait_until

from dsv4_backend.errors import NotFoundError, OverloadedError, RequestError
from dsv4_backend.launcher import Server
from dsv4_backend.records import FinishReason
from tests.conftest import ROOT

pytestmark = pytest.mark.server
BIN = Path(sys.executable).parent


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    """A client of the shared server."""
    with Client(server.grpc_address) as client:
        yield client


def leave_early(client: Client, prompt: str | list[int]) -> None:
    """Begin an answer that would go on for long, and leave after its first event."""
    for _ in client.generate(prompt, max_tokens=60_000, ignore_eos=True):
        break
    gc.collect()


def test_streamed_direct_and_whole_answers_are_the_same(client: Client) -> None:
    streamed = join_events(client.generate("Zwölf Boxkämpfer 🥊", max_tokens=90, ignore_eos=True))
    whole = client.complete("Zwölf Boxkämpfer 🥊", max_tokens=90, ignore_eos=True)
    assert (streamed.text, streamed.token_ids) == (whole.text, whole.token_ids)
    assert whole.final.usage.num_output_tokens == len(whole.token_ids) == 90


def test_direct_ids_come_back_without_text(client: Client) -> None:
    answer = client.complete([40, 41, 42], max_tokens=6, ignore_eos=True)
    assert (answer.token_ids, answer.text) == ((40, 41, 42, 40, 41, 42), "")


def test_sixty_four_streams_over_one_connection_stay_apart(client: Client) -> None:
    def ask(number: int) -> Answer:
        return join_events(client.generate(f"stream {number} says", max_tokens=60, ignore_eos=True))

    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(ask, range(64)))
    assert [f"stream {number} says" in answer.text for number, answer in enumerate(answers)] == [True] * 64


def test_load_generator_sees_every_token_in_order(server: Server) -> None:
    async def run() -> Any:
        async with AsyncClient(server.grpc_address) as client:
            return await run_load(client, LoadPlan(prompt="x y z", num_streams=16, num_requests=48, max_tokens=40))

    result = asyncio.run(run())
    assert (result.num_requests, result.num_tokens) == (48, 48 * 40)
    assert (result.num_out_of_order, result.num_errors) == (0, 0)


@pytest.mark.parametrize("prompt", ["through the ensemble", [5, 6, 7]])
def test_leaving_early_frees_the_request(prompt: str | list[int], client: Client, server: Server) -> None:
    leave_early(client, prompt)
    wait_until(lambda: is_idle(server), "the server is idle")


def test_cancel_by_id_ends_the_stream_in_good_order(client: Client) -> None:
    generation = client.generate("hello", request_id="by-id", max_tokens=60_000, ignore_eos=True)
    next(generation)
    client.cancel("by-id")
    final = list(generation)[-1]
    assert isinstance(final, Final) and final.finish_reason is FinishReason.CANCELLED


def test_deadline_ends_the_request_on_the_server_too(client: Client, server: Server) -> None:
    with pytest.raises(DeadlineError):
        list(client.generate("hello", max_tokens=60_000, ignore_eos=True, timeout_s=0.2))
    wait_until(lambda: is_idle(server), "the server is idle")


def test_refusals_are_typed_and_carry_the_servers_text(client: Client) -> None:
    with pytest.raises(RequestError, match=r"^top_p is 3"):
        client.complete("hello", top_p=3.0)
    with pytest.raises(NotFoundError, match="'nobody'"):
        client.cancel("nobody")
    with pytest.raises(ModelNotReadyError, match="nothing"):
        list(Client(client.url, model="nothing").generate("hello"))


def test_full_queue_is_an_overload(start_server: Start) -> None:
    with start_server({"max_sequences": "1", "max_waiting": "1"}) as server, Client(server.grpc_address) as client:
        running = client.generate("hello", max_tokens=60_000, ignore_eos=True)
        next(running)
        waiting = client.generate("hello", max_tokens=5)
        wait_until(lambda: read_metrics(server.metrics_address)["dsv4_waiting_requests"] == 1, "one request waits")
        with pytest.raises(OverloadedError, match=r"Retry after"):
            client.complete("hello")
        running.close()
        assert isinstance(list(waiting)[-1], Final)


@pytest.mark.ci
def test_server_stops_cleanly_after_many_clients_left_or_were_refused(start_server: Start) -> None:
    with start_server({}) as server, Client(server.grpc_address) as client:
        for number in range(20):
            leave_early(client, "hello")
            leave_early(client, [5, 6])
            with pytest.raises(NotFoundError):
                client.cancel(f"nobody-{number}")
            with pytest.raises(RequestError):
                client.complete("hello", max_tokens=100_000_000)
        client.close()
        assert server.drain_and_stop() == 0


def test_generate_command_streams_from_the_server(server: Server) -> None:
    command = [BIN / "dsv4", "generate", "--url", server.grpc_address, "--json", "--max-tokens", "8", "hello"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    last = json.loads(done.stdout.splitlines()[-1])
    assert (last["finish_reason"], last["usage"]["num_output_tokens"]) == ("length", 8)


def test_chat_command_answers_piped_lines(server: Server) -> None:
    command = [BIN / "dsv4", "chat", "--url", server.grpc_address, "--json", "--think", "off", "--max-tokens", "8"]
    done = subprocess.run(command, input="first\nsecond\n", capture_output=True, text=True, check=True)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["type"] for event in events].count("final") == 2


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["perf-analyzer", "genai-perf"])
def test_nvidias_load_tools_drive_the_ensemble_unchanged(
    tool: str, server: Server, shape_only: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "build" / "loadtools"))
    names = runpy.run_path(str(ROOT / "build" / "loadtools" / "run.py"))
    arguments = [tool, "--url", server.grpc_address, "--streams", "2", "--requests", "16", "--max-tokens", "8"]
    if tool == "genai-perf":
        arguments += ["--tokenizer", str(shape_only)]
    args = names["parse_arguments"](arguments)
    assert args.measure(args)[0]["num_streams"] == 2
