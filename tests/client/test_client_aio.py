"""The asyncio twin, and the load generator that stands on it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from client_rig import WAIT_S, Call, FakeServer, Replies, Script, count_to_three, refuse, reply, until_stopped
from dsv4_client import DeadlineError, Event, Final, ServerUnreachableError
from dsv4_client.aio import AsyncClient
from dsv4_client.load import LoadPlan, LoadResult, run_load, spread

from dsv4_backend.errors import NotFoundError, OverloadedError
from dsv4_backend.records import FinishReason

Serve = Callable[[Script], FakeServer]


async def collect(client: AsyncClient, *, timeout_s: float | None = None) -> list[Event]:
    """Run one request to its end."""
    return [event async for event in client.generate("hello", timeout_s=timeout_s)]


def test_async_stream_yields_deltas_then_final(serve: Serve) -> None:
    async def run() -> list[Event]:
        async with AsyncClient(serve(count_to_three).url) as client:
            return await collect(client)

    events = asyncio.run(run())
    assert len(events) == 4 and isinstance(events[-1], Final) and events[-1].finish_reason is FinishReason.STOP


def test_closing_the_async_generator_stops_the_request(serve: Serve) -> None:
    server = serve(until_stopped)

    async def run() -> None:
        async with AsyncClient(server.url) as client:
            events = client.generate("hello")
            await anext(events)
            await events.aclose()

    asyncio.run(run())
    assert server.calls[0].stopped.wait(WAIT_S)


def test_cancelling_the_task_stops_the_request(serve: Serve) -> None:
    server = serve(until_stopped)

    async def run() -> None:
        async with AsyncClient(server.url) as client:
            events = client.generate("hello")
            await anext(events)
            task = asyncio.ensure_future(anext(events))
            await asyncio.sleep(0)  # let it begin to wait
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(run())
    assert server.calls[0].stopped.is_set() and server.calls[0].is_complete


def test_async_deadline_stops_the_request(serve: Serve) -> None:
    server = serve(until_stopped)

    async def run() -> None:
        async with AsyncClient(server.url) as client:
            await collect(client, timeout_s=0.3)

    with pytest.raises(DeadlineError):
        asyncio.run(run())
    assert server.calls[0].stopped.is_set() and server.calls[0].is_complete


def test_async_errors_are_those_of_the_client(serve: Serve) -> None:
    def script(call: Call) -> Replies:
        yield refuse("the queue is full. Retry after 3 s.")

    async def run(url: str) -> None:
        async with AsyncClient(url) as client:
            await collect(client)

    with pytest.raises(OverloadedError):
        asyncio.run(run(serve(script).url))
    with pytest.raises(ServerUnreachableError):
        asyncio.run(run("127.0.0.1:1"))


def test_async_stop_of_an_unknown_request_says_so(serve: Serve) -> None:
    async def run() -> None:
        async with AsyncClient(serve(count_to_three).url) as client:
            await client.cancel("r7")

    with pytest.raises(NotFoundError):
        asyncio.run(run())


def load(url: str, *, num_streams: int, num_requests: int) -> LoadResult:
    """Run the load generator once."""

    async def run() -> LoadResult:
        async with AsyncClient(url) as client:
            plan = LoadPlan(prompt="x", num_streams=num_streams, num_requests=num_requests, max_tokens=3)
            return await run_load(client, plan)

    return asyncio.run(run())


def test_load_counts_what_came_back(serve: Serve) -> None:
    server = serve(count_to_three)
    result = load(server.url, num_streams=4, num_requests=10)
    assert (result.num_requests, result.num_responses, result.num_tokens) == (10, 30, 30)
    assert (result.num_out_of_order, result.num_errors, len(server.calls)) == (0, 0, 10)


def test_load_notices_responses_out_of_order(serve: Serve) -> None:
    def script(call: Call) -> Replies:
        yield reply("b", (2,), index=1)
        yield reply("a", (1,), index=0, reason="stop")

    assert load(serve(script).url, num_streams=1, num_requests=1).num_out_of_order == 2


def test_load_goes_on_after_errors_and_lists_them() -> None:
    result = load("127.0.0.1:1", num_streams=2, num_requests=4)
    assert (result.num_requests, result.num_errors, len(result.errors)) == (0, 4, 1)


def test_spread_takes_the_nearest_rank() -> None:
    found = spread([number / 1000 for number in range(1, 101)])
    assert (found.p50_ms, found.p99_ms, found.max_ms) == (51.0, 100.0, 100.0)


def test_spread_of_nothing_is_zero() -> None:
    assert spread([]).max_ms == 0.0
