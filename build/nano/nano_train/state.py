"""What a run keeps on disk: its state, from which it resumes, and its log."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nano_train.shared import Arena

STATE_NAME, LOG_NAME, FORMAT = "state.pt", "log.jsonl", 1


def default_folder() -> Path:
    """Where runs are kept unless the caller names a folder."""
    return Path.home() / ".cache" / "dsv4" / "nano"


def save_state(folder: Path, arena: Arena, step: int, values: Mapping[str, object], plan: Mapping[str, object]) -> None:
    """Write the state under a temporary name and rename it, so that a killed run leaves the last one whole."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        "format": FORMAT,
        "step": step,
        "config": dict(values),
        "plan": dict(plan),
        "names": list(arena.shapes),
        "values": arena.values.cpu(),
        "first": arena.first.cpu(),
        "second": arena.second.cpu(),
        "buffers": {name: tensor.cpu() for name, tensor in arena.buffers.items()},
    }
    partial = folder / f"{STATE_NAME}.part"
    torch.save(state, partial)
    os.replace(partial, folder / STATE_NAME)


def load_state(folder: Path) -> dict[str, Any] | None:
    """Return the state of a run, or None where there is none. Raises: ValueError if it has another format."""
    file = folder / STATE_NAME
    if not file.exists():
        return None
    state: dict[str, Any] = torch.load(file, weights_only=True)
    if state.get("format") != FORMAT:
        raise ValueError(f"{file} has format {state.get('format')} but this trainer reads {FORMAT}. Name a new folder.")
    return state


def restore(arena: Arena, state: Mapping[str, Any]) -> None:
    """Copy a state into the arena. Raises: ValueError if its weights are others."""
    if state["names"] != list(arena.shapes) or state["values"].shape != arena.values.shape:
        raise ValueError("the saved state belongs to another architecture. Name a new folder, or the same config.")
    for name in ("values", "first", "second"):
        getattr(arena, name).copy_(state[name])
    for name, tensor in state["buffers"].items():
        arena.buffers[name].copy_(tensor)


class Log:
    """Appends JSON lines; what lies beyond a resumed step is cut off first."""

    def __init__(self, folder: Path, step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / LOG_NAME
        kept = [line for line in read_log(folder) if int(line["step"]) <= step]
        self.file.write_text("".join(json.dumps(line) + "\n" for line in kept), "utf-8")
        self.started = time.monotonic()
        self.before = float(kept[-1]["seconds"]) if kept else 0.0

    def write(self, values: Mapping[str, object]) -> None:
        """Add one line, with the seconds that the run has taken so far, over all its parts."""
        line = {**values, "seconds": round(self.before + time.monotonic() - self.started, 1)}
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's log; a line that was cut off is left out."""
    file = folder / LOG_NAME
    lines = []
    for text in file.read_text("utf-8").splitlines() if file.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines
