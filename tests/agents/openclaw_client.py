"""OpenClaw: an embedded agent's turns, with its own prompt and its own `read` tool."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

from report import Client, timed

NOTE = "The code of the blue door is 7351."
NOT_OFFERED = (
    "stream: it always streams from the server; the command prints the whole answer",
    "structured output: a turn takes no schema",
)
PROVIDER = "dsv4"
# Greedy, the bundled model would not end an argument under so long a prompt.
FORCED = {"tool_choice": "required", "parallel_tool_calls": False, "temperature": 1.0, "seed": 1}


def try_openclaw(bin_folder: Path, url: str, key: str, model: str, folder: Path) -> Client:
    """Run a chat without tools, a turn whose tool call is forced, and one where the model decides."""
    workspace = folder / "workspace"
    workspace.mkdir(parents=True)
    (workspace / "note.txt").write_text(f"{NOTE}\n", encoding="utf-8")

    def openclaw(name: str, extra: dict[str, Any], *arguments: str) -> tuple[str, Path]:
        home = folder / name
        home.mkdir()
        config = _config(url, key, model, workspace, extra)
        (home / "openclaw.json").write_text(json.dumps(config), encoding="utf-8")
        environment = {
            **os.environ,
            "PATH": f"{bin_folder}:{os.environ['PATH']}",
            "HOME": str(home),
            "OPENCLAW_STATE_DIR": str(home),
            "OPENCLAW_CONFIG_PATH": str(home / "openclaw.json"),
            "NO_COLOR": "1",
        }
        command = [str(bin_folder / "openclaw"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=540, check=False, env=environment)
        return done.stdout + done.stderr, home

    def chat() -> str:
        arguments = ("--local", "--model", f"{PROVIDER}/{model}", "--prompt", "Hello", "--json")
        text, _ = openclaw("chat", {}, "infer", "model", "run", *arguments)
        return "" if "help" in text.lower() else f"no greeting in: …{text[-900:]}"

    def turn(name: str, extra: dict[str, Any], limit_s: int) -> str:
        asked = ("--message", "Please read the file note.txt.", "--timeout", str(limit_s), "--json")
        text, home = openclaw(name, extra, "agent", "--local", "--agent", "main", *asked)
        calls, results = _transcript(home)
        if "read" not in calls or not results:
            return f"calls {calls}, {len(results)} results; …{text[-900:]}"
        return ""

    checks = (
        timed("chat", chat),
        # OpenClaw's own prompt is 7,400 tokens of the bundled model, which was trained on some hundred.
        timed("tools_auto", lambda: turn("auto", {}, 400), is_required=False),
        # A choice that forces a call forces one in every turn, so this run ends by its limit; its calls count.
        timed("tools_forced", lambda: turn("forced", FORCED, 120)),
    )
    version = json.loads((bin_folder.parent / "openclaw" / "package.json").read_text(encoding="utf-8"))["version"]
    return Client("openclaw", version, checks, NOT_OFFERED)


def _config(url: str, key: str, model: str, workspace: Path, extra: dict[str, Any]) -> dict[str, Any]:
    entry = {"id": model, "name": model, "input": ["text"], "contextWindow": 65536, "maxTokens": 800}
    entry |= {"reasoning": False, "cost": {"input": 0, "output": 0, "cacheRead": 0, "cacheWrite": 0}}
    provider = {"baseUrl": f"{url}/v1", "apiKey": key, "api": "openai-completions", "models": [entry]}
    params = {"temperature": 0, "extra_body": {"thinking": {"type": "disabled"}, **extra}}
    defaults = {
        "model": {"primary": f"{PROVIDER}/{model}"},
        "models": {f"{PROVIDER}/{model}": {"params": params}},
        "workspace": str(workspace),
        "skipBootstrap": True,
    }
    tools = {"allow": ["read"], "toolSearch": False}
    return {"models": {"providers": {PROVIDER: provider}}, "agents": {"defaults": defaults}, "tools": tools}


def _transcript(home: Path) -> tuple[list[str], list[str]]:
    """Return the names of the tool calls in the session's record, and the results that came back."""
    calls, results = [], []
    for path in home.rglob("openclaw-agent.sqlite"):
        with closing(sqlite3.connect(path)) as store:
            rows = store.execute("select event_json from transcript_events order by seq").fetchall()
        for message in (json.loads(row[0]).get("message") or {} for row in rows if row[0]):
            content = message.get("content")
            parts = content if isinstance(content, list) else []
            calls += [part.get("name", "") for part in parts if part.get("type") == "toolCall"]
            if message.get("role") == "toolResult":
                results.append(json.dumps(content))
    return calls, results
