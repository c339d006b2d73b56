"""A measurement as a JSON file under build/bench/results/: figures with command, commit, hardware and server."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "build" / "bench" / "results"


def write(name: str, command: Sequence[str], server: Mapping[str, object], figures: object) -> Path:
    """Write the record `name`.json and return its path."""
    record = {
        "name": name,
        "command": " ".join(command),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": commit(),
        "hardware": hardware(),
        "server": server,
        "results": figures,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def command_line() -> list[str]:
    """Return the command that was typed, with paths relative to the checkout."""
    return ["python", "build/loadtools/run.py", *(part.replace(f"{ROOT}/", "") for part in sys.argv[1:])]


def commit() -> str:
    """Return the commit measured; `+` marks a tree with changes in tracked files."""
    found = _output(["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"])
    return found + ("+" if _output(["git", "-C", str(ROOT), "status", "--porcelain", "-uno"]) else "")


def hardware() -> dict[str, object]:
    """Return processor, cores, memory and system."""
    cpu = _field(Path("/proc/cpuinfo"), "model name") or platform.processor()
    memory = _field(Path("/proc/meminfo"), "MemTotal").split()
    cores = _output(["nproc"])
    return {
        "cpu": cpu,
        "cores": int(cores) if cores else 0,
        "memory_gib": round(int(memory[0]) / 2**20, 1) if memory else 0,
        "gpu": _output(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]) or "none",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }


def describe_server(url: str, model: str, runtime: str) -> dict[str, object]:
    """Return the server's version and the settings of the runtime, as the server itself reports them."""
    client = InferenceServerClient(url)
    try:
        version = client.get_server_metadata().version
        settings: dict[str, str] = {}
        try:
            config = client.get_model_config(runtime).config
            settings = {key: value.string_value for key, value in sorted(config.parameters.items())}
        except InferenceServerException:
            settings = {}  # another ensemble than ours: nothing to report
        settings = {key: value.replace(f"{ROOT}/", "") for key, value in settings.items()}
        return {"triton": version, "model": model, "settings": settings}
    finally:
        client.close()


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        return ""


def _field(file: Path, name: str) -> str:
    if not file.is_file():
        return ""
    lines = (line.partition(":") for line in file.read_text().splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() == name), "")
