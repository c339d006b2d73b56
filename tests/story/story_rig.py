"""A real server with the real model behind it, and what the tests look at."""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from dsv4_client import Answer, Client
from dsv4_client.events import join_events

from dsv4_backend.launcher import Server

GREEDY = {"temperature": 0.0, "ignore_eos": True}
WAIT_S = 60.0


@dataclass(frozen=True)
class Story:
    """One server and the checkpoint that it serves."""

    server: Server
    checkpoint: Path

    def client(self) -> Client:
        return Client(self.server.grpc_address)

    def metric(self, name: str) -> float:
        """Sum of a metric over its labels."""
        with urllib.request.urlopen(f"http://{self.server.metrics_address}/metrics", timeout=WAIT_S) as reply:
            text = reply.read().decode()
        found = re.findall(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)
        assert found, f"{name} is not on /metrics"
        return sum(map(float, found))

    def await_metric(self, name: str, value: float) -> None:
        """Wait until a metric has a value; it is written off the step loop's thread."""
        deadline = time.monotonic() + WAIT_S
        while (now := self.metric(name)) != value:
            assert time.monotonic() < deadline, f"{name} stays at {now}, not {value}"


def rank_pids(server_pid: int) -> list[int]:
    """Processes of ranks below this server."""
    parents, ranks = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat, command = (folder / "stat").read_text(), (folder / "cmdline").read_bytes()
        except OSError:
            continue  # ended meanwhile
        parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
        if b"dsv4_backend.runner.worker" in command:
            ranks.append(int(folder.name))
    return [pid for pid in ranks if server_pid in _ancestors(pid, parents)]


def _ancestors(pid: int, parents: dict[int, int]) -> set[int]:
    found = set()
    while pid in parents:
        pid = parents[pid]
        found.add(pid)
    return found


def ask_together(client: Client, prompts: Sequence[str], **options: object) -> list[Answer]:
    """Stream all prompts at once; answers in the order of the prompts."""

    def one(text: str) -> Answer:
        with client.generate(text, **(GREEDY | options)) as events:  # type: ignore[arg-type]
            return join_events(events)

    with ThreadPoolExecutor(max_workers=len(prompts)) as pool:
        return list(pool.map(one, prompts))


def prompts(count: int) -> list[str]:
    """Different prompts of different lengths."""
    return [f"Prompt number {number}. " + "More words to read here. " * (number % 13) for number in range(count)]
