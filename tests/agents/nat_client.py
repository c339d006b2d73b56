"""NeMo Agent Toolkit: `nat run` with both LLM types, in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from report import Check, Client, timed

PACKAGES = ("nvidia-nat==1.9.0", "nvidia-nat-langchain[nvidia,openai]==1.9.0")
TOOLS = Path(__file__).resolve().parent / "nat_tools"
QUESTION = "Please check the humidity in Oslo for 3 days."
NOT_OFFERED = (
    "stream: `nat run` prints the whole answer",
    "tools forced: its agents let the model decide; there is no tool_choice",
    "structured output: no workflow of `nat run` takes a schema",
)


def install(folder: Path) -> Path:
    """Make the environment in `folder` once; return its `bin`."""
    place = folder / "nat" / "bin"
    if not (place / "nat").is_file():
        subprocess.run([sys.executable, "-m", "venv", str(folder / "nat")], check=True)
        subprocess.run([place / "pip", "install", "-q", "--prefer-binary", *PACKAGES], check=True)
    subprocess.run([place / "pip", "install", "-q", "--no-deps", "--force-reinstall", TOOLS], check=True)
    return place


def try_nat(place: Path, url: str, key: str, model: str, folder: Path) -> Client:
    """Run a chat and an agent with a tool, with `openai` and with `nim`."""
    checks: list[Check] = []
    for kind in ("openai", "nim"):
        llm: dict[str, Any] = {"_type": kind, "base_url": f"{url}/v1", "api_key": key, "model_name": model}
        llm |= {"temperature": 0.0, "max_tokens": 200}
        chat = {"_type": "chat_completion", "llm_name": "llm", "system_prompt": ""}
        agent = {"_type": "tool_calling_agent", "llm_name": "llm", "tool_names": ["check_humidity"]}
        agent |= {"max_iterations": 2, "handle_tool_errors": True}
        for name, workflow, asked, wanted in (
            ("chat", chat, "Hello", "help"),
            ("tools_auto", agent, QUESTION, "DSV4 TOOL RAN"),
        ):
            config = {"llms": {"llm": llm}, "functions": {"check_humidity": {"_type": "dsv4_humidity"}}}
            path = folder / f"{kind}-{name}.json"
            path.write_text(json.dumps({**config, "workflow": workflow}), encoding="utf-8")

            def run(path: Path = path, asked: str = asked, wanted: str = wanted) -> str:
                return _run(place, path, asked, wanted)

            checks.append(timed(f"{kind} {name}", run))
    version = subprocess.run([place / "nat", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    return Client("nvidia-nat", version, tuple(checks), NOT_OFFERED)


def _run(place: Path, config: Path, asked: str, wanted: str) -> str:
    command = [str(place / "nat"), "run", "--config_file", str(config), "--input", asked]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=500, check=False, env={**os.environ, "NO_COLOR": "1"}
    )
    text = done.stdout + done.stderr
    if done.returncode or wanted.lower() not in text.lower():
        return f"exit {done.returncode}, no {wanted!r} in: …{text[-900:]}"
    return ""
