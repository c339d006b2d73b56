"""Many streams at once through one gateway, and the same straight over gRPC: `python build/bench/gateway.py`.

The server runs executor=zero, which repeats its prompt: every stream says its own number, so one that is lost, or mixed
with another, shows. Three rounds: gRPC, the gateway, and the gateway with some of its clients killed, after which no
page may be in use. Figures go to build/bench/results/gateway/load.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import resource
import statistics
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "build" / "loadtools"))

import record  # noqa: E402  (found beside the load tools)
from dsv4_client.aio import AsyncClient  # noqa: E402
from dsv4_client.events import Delta, Final  # noqa: E402

from dsv4_backend.launcher import Server, ServerOptions, free_ports  # noqa: E402

CHECKPOINT = ROOT / "build" / "nano" / "checkpoints" / "official"
SAYS = re.compile(r"stream (\d+) says")
WAIT_S = 240.0


@dataclass
class Heard:
    """What one stream brought."""

    number: int
    num_tokens: int = 0
    text: str = ""
    started_s: float = field(default_factory=time.monotonic)
    last_s: float = 0.0
    is_whole: bool = False
    is_killed: bool = False

    @property
    def is_own(self) -> bool:
        """Whether it says its own number and no other."""
        return set(SAYS.findall(self.text)) == {str(self.number)}

    @property
    def token_ms(self) -> float:
        """Time per token, from the request on: many tokens leave in one response, so gaps between them say nothing."""
        return (self.last_s - self.started_s) / max(self.num_tokens, 1) * 1000


@dataclass
class Round:
    """All streams of a round."""

    heard: list[Heard] = field(default_factory=list)
    seconds: float = 0.0

    def figures(self, expected_tokens: int) -> dict[str, Any]:
        alive = [each for each in self.heard if not each.is_killed]
        return {
            "num_streams": len(self.heard),
            "num_killed": len(self.heard) - len(alive),
            "num_lost": sum(not each.is_whole or each.num_tokens != expected_tokens for each in alive),
            "num_mixed": sum(not each.is_own for each in alive),
            "seconds": round(self.seconds, 2),
            "tokens_per_s": round(sum(each.num_tokens for each in self.heard) / self.seconds, 1),
            "ms_per_token_p50": round(statistics.median(each.token_ms for each in alive), 3),
        }


def body_of(number: int, num_tokens: int) -> dict[str, Any]:
    text = f"stream {number} says that it is stream {number} and stream {number} says so again"
    return {
        "messages": [{"role": "user", "content": text}],
        "thinking": {"type": "disabled"},
        "max_tokens": num_tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def over_grpc(client: AsyncClient, number: int, num_tokens: int) -> Heard:
    heard = Heard(number)
    async for event in client.generate(body_of(number, num_tokens)):
        if isinstance(event, Delta):
            heard.text += event.text
            heard.num_tokens += len(event.token_ids)
            heard.last_s = time.monotonic()
        elif isinstance(event, Final):
            heard.is_whole = event.finish_reason.value == "length"
    return heard


async def over_http(port: int, number: int, num_tokens: int, killed: set[int]) -> Heard:
    heard = Heard(number)
    body = json.dumps(body_of(number, num_tokens)).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head.encode() + body)
    async for line in reader:
        if not line.startswith(b"data: "):
            continue
        if line.startswith(b"data: [DONE]"):
            heard.is_whole = True
            break
        data = json.loads(line[6:])
        for choice in data["choices"]:
            text = choice["delta"].get("content") or ""
            heard.text += text
            heard.last_s = time.monotonic()
        heard.num_tokens = (data.get("usage") or {}).get("completion_tokens", heard.num_tokens)
        if number in killed and heard.text:
            heard.is_killed = True
            writer.transport.abort()
            break
    writer.close()
    return heard


async def play(tasks: list[Any]) -> Round:
    started_s = time.monotonic()
    heard = await asyncio.gather(*tasks)
    return Round(list(heard), time.monotonic() - started_s)


def used_pages(server: Server) -> float:
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=30) as reply:
        text = reply.read().decode()
    names = "dsv4_pages_used|dsv4_running_requests|dsv4_waiting_requests"
    return sum(float(value) for value in re.findall(rf"^(?:{names})(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE))


async def measure(server: Server, port: int, args: argparse.Namespace) -> dict[str, Any]:
    numbers, num_tokens = range(args.streams), args.tokens
    async with AsyncClient(server.grpc_address) as client:
        direct = await play([over_grpc(client, number, num_tokens) for number in numbers])
    sys.stderr.write(f"direct {direct.figures(num_tokens)}\n")
    through = await play([over_http(port, number, num_tokens, set()) for number in numbers])
    sys.stderr.write(f"gateway {through.figures(num_tokens)}\n")
    killed = set(random.Random(7).sample(list(numbers), args.kill))
    some = await play([over_http(port, number, num_tokens, killed) for number in numbers])
    ended_s = time.monotonic()
    while used_pages(server) and time.monotonic() - ended_s < WAIT_S:
        await asyncio.sleep(0.05)
    rounds = {"direct": direct, "gateway": through, "gateway_killed": some}
    found: dict[str, Any] = {name: each.figures(num_tokens) for name, each in rounds.items()}
    found["pages_and_requests_left"] = used_pages(server)
    found["seconds_until_all_were_free"] = round(time.monotonic() - ended_s, 2)
    found["added_ms_per_token_p50"] = round(
        found["gateway"]["ms_per_token_p50"] - found["direct"]["ms_per_token_p50"], 3
    )
    found["load_average_before"] = args.load_before
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--kill", type=int, default=300)
    parser.add_argument("--tokens", type=int, default=256)
    args = parser.parse_args()
    args.load_before = round(os.getloadavg()[0], 1)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 8192), most))
    settings = {"checkpoint": str(CHECKPOINT), "executor": "zero", "max_sequences": str(args.streams)}
    settings |= {"max_waiting": str(args.streams), "cache_tokens": "1048576", "max_step_tokens": "2048"}
    (port,) = free_ports(1)
    with Server(ServerOptions(repository=ROOT / "model_repository", settings=settings)) as server:
        command = [sys.executable, "-m", "dsv4_backend.cli", "gateway", "--url", server.grpc_address]
        with subprocess.Popen([*command, "--port", str(port)], stderr=subprocess.DEVNULL) as gateway:
            try:
                asyncio.run(ready(port))
                found = asyncio.run(asyncio.wait_for(measure(server, port, args), 3 * WAIT_S))
            finally:
                gateway.terminate()
    record.RESULTS = ROOT / "build" / "bench" / "results" / "gateway"
    shown = ["python", "build/bench/gateway.py", *sys.argv[1:]]
    record.write("load", shown, {"settings": {**settings, "checkpoint": "the bundled one"}}, found)
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
    is_clean = not any(
        found[name][what] for name in ("gateway", "gateway_killed") for what in ("num_lost", "num_mixed")
    )
    return int(not is_clean or found["pages_and_requests_left"] != 0)


async def ready(port: int) -> None:
    """Return when the gateway listens."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.1)
            continue
        writer.close()
        return
    raise TimeoutError("the gateway does not listen")


if __name__ == "__main__":
    sys.exit(main())
