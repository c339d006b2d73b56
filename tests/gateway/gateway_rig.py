"""The gateway over real HTTP, in front of a scripted server: its tokens are what the test says."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import uvicorn
from dsv4_client.events import Delta, Event, Final
from dsv4_client.gateway.app import make_app
from dsv4_client.gateway.service import Service, make_service
from dsv4_client.gateway.settings import GatewaySettings
from tokenizers import Tokenizer

from dsv4_backend.launcher import free_ports
from dsv4_backend.records import FinishReason, TokenLogprob, Usage

WAIT_S = 20.0
HELLO = [{"role": "user", "content": "Hello"}]
OFF = {"thinking": {"type": "disabled"}}
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": CITY}}]
CALL = (
    '<｜DSML｜tool_calls>\n<｜DSML｜invoke name="weather">\n<｜DSML｜parameter name="city" string="true">Oslo'
    "</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>"
)


@dataclass
class Call:
    """One request as the server sees it."""

    prompt: Any
    protocol: str
    request_id: str
    options: dict[str, Any]
    headers: dict[str, str]
    is_over: bool = False
    stopped: threading.Event = field(default_factory=threading.Event)
    stopped_s: float = 0.0


Script = Callable[[Call], AsyncIterator[Event]]


class ScriptedClient:
    """Stands in for AsyncClient: `script` says what each request is answered with."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.script: Script = answering([])
        self.is_up = True

    async def generate(
        self,
        prompt: Any,
        *,
        protocol: str = "chat",
        request_id: str = "",
        timeout_s: float | None = None,
        headers: Any = None,
        **options: Any,
    ) -> AsyncIterator[Event]:
        call = Call(prompt, protocol, request_id, options, headers)
        self.calls.append(call)
        try:
            async for event in self.script(call):
                call.is_over = isinstance(event, Final)
                yield event
            call.is_over = True
        finally:
            if not call.is_over:
                call.stopped_s = time.monotonic()
                call.stopped.set()

    async def is_ready(self) -> bool:
        return self.is_up

    async def settings(self) -> dict[str, str]:
        return {"cache_tokens": "4096"}

    async def close(self) -> None:
        pass


def delta(ids: Sequence[int], text: str = "", *, counts: tuple[int, int] = (5, 0), index: int = 0) -> Delta:
    """Tokens with a logprob of −0.5 each."""
    usage = Usage(num_input_tokens=counts[0], num_output_tokens=counts[1], num_cached_tokens=2)
    logprobs = tuple(TokenLogprob(token_id=each, logprob=-0.5, top=((each, -0.5),)) for each in ids)
    return Delta(text=text, token_ids=tuple(ids), index=index, logprobs=logprobs, usage=usage)


def final(reason: FinishReason = FinishReason.STOP, *, num_output: int = 0, error: str = "") -> Final:
    usage = Usage(num_input_tokens=5, num_output_tokens=num_output, num_cached_tokens=2)
    return Final(finish_reason=reason, usage=usage, error=error)


def answering(ids: Sequence[int], *, cut: int = 3, reason: FinishReason = FinishReason.STOP) -> Script:
    """The same tokens for everybody, in deltas of `cut`."""

    async def script(call: Call) -> AsyncIterator[Event]:
        wants = call.options.get("logprobs", -1) >= 0 or (isinstance(call.prompt, dict) and call.prompt.get("logprobs"))
        for start in range(0, len(ids), cut):
            piece = delta(ids[start : start + cut], counts=(5, min(start + cut, len(ids))))
            yield piece if wants else Delta(text="", token_ids=piece.token_ids, index=start, usage=piece.usage)
        yield final(reason, num_output=len(ids))

    return script


def endless(ids: Sequence[int]) -> Script:
    """The same tokens again and again until the request is stopped."""

    async def script(call: Call) -> AsyncIterator[Event]:
        for number in range(1_000_000):
            yield delta(ids, counts=(5, number + 1))
            await asyncio.sleep(0)

    return script


def failing(error: Exception | str, *, after: Sequence[int] = ()) -> Script:
    """Some tokens, then an exception, or a final event with that error."""

    async def script(call: Call) -> AsyncIterator[Event]:
        if after:
            yield delta(after)
        if isinstance(error, Exception):
            raise error
        yield final(FinishReason.ERROR, error=error)

    return script


@dataclass
class Gateway:
    """A running gateway, the server behind it, and a way to talk to it."""

    url: str
    server: ScriptedClient
    service: Service
    tokenizer: Tokenizer
    http: httpx2.Client

    def ids(self, text: str) -> list[int]:
        """The tokens of a text; special spellings are special tokens."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def says(self, text: str, **more: Any) -> None:
        """Answer every request with this text from now on."""
        self.server.script = answering(self.ids(text), **more)

    def post(self, path: str, body: Any, **more: Any) -> httpx2.Response:
        return self.http.post(path, json=body, **more)

    def chat(self, **body: Any) -> httpx2.Response:
        return self.post("/v1/chat/completions", {"messages": HELLO, **body})

    def events(self, path: str, body: Any) -> list[tuple[str, Any]]:
        """Name and data of every event of a stream."""
        response = self.post(path, {**body, "stream": True})
        assert response.status_code == 200, response.text
        return parse_events(response.text)


def parse_events(text: str) -> list[tuple[str, Any]]:
    found = []
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if not line.startswith(":")]
        fields = dict(line.split(": ", 1) for line in lines)
        if "data" in fields:
            data = fields["data"]
            found.append((fields.get("event", ""), data if data == "[DONE]" else json.loads(data)))
    return found


@contextmanager
def run_gateway(checkpoint: Path, **settings: Any) -> Iterator[Gateway]:
    """A gateway on a thread of its own, gone at the end."""
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    started: dict[str, Any] = {}

    async def serve() -> None:
        service = make_service(GatewaySettings(checkpoint=checkpoint, **settings))
        await service.client.close()
        service.client = ScriptedClient()  # type: ignore[assignment]
        config = uvicorn.Config(make_app(service), host="127.0.0.1", port=port, log_level="critical", access_log=False)
        started["server"], started["service"] = uvicorn.Server(config), service
        await started["server"].serve()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    with httpx2.Client(base_url=url, timeout=WAIT_S) as http:
        wait_until(lambda: bool(started.get("server")) and started["server"].started, "the gateway listens")
        service = started["service"]
        yield Gateway(url, service.client, service, tokenizer, http)
        started["server"].should_exit = True
        started["server"].force_exit = True
        thread.join(WAIT_S)


def wait_until(claim: Callable[[], bool], what: str) -> None:
    """Return as soon as the claim holds."""
    deadline = time.monotonic() + WAIT_S
    while not claim():
        assert time.monotonic() < deadline, f"still not so after {WAIT_S:g} s: {what}"
        time.sleep(0.005)
