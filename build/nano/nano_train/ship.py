"""What the repository keeps of a run: a checkpoint of each layout, the curves, and how it was trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from dsv4_backend.checkpoint.write import LayoutName
from nano_train.curves import draw
from nano_train.export import LAYOUTS, Trained, export, num_bytes

Figures = Mapping[str, Any]


def ship(state: Mapping[str, Any], log: Sequence[Figures], out: Path, before: Figures | None = None) -> dict[str, int]:
    """Write `checkpoints/<layout>`, `results/curves.svg` and `results/training.json`; return bytes by layout.

    Rule: BF16 is there to compare with, so it has no draft block. `before` is the training.json of the weights that
          the run began with; its sums are added.
    """
    model, sizes = Trained.from_state(state), {}
    for layout in LAYOUTS:
        folder = out / "checkpoints" / layout.value
        shutil.rmtree(folder, ignore_errors=True)
        export(without_draft(model) if layout is LayoutName.BF16 else model, folder, layout)
        sizes[layout.value] = num_bytes(folder)
    results = out / "results"
    results.mkdir(parents=True, exist_ok=True)
    (results / "curves.svg").write_text(draw([dict(line) for line in log]), "utf-8")
    text = json.dumps(figures(state, log, before or {}), indent=1) + "\n"
    (results / "training.json").write_text(text, "utf-8")
    return sizes


def without_draft(model: Trained) -> Trained:
    """Return the backbone alone."""
    ratios = list(cast(list[int], model.values["compress_ratios"]))[: cast(int, model.values["num_hidden_layers"])]
    weights = {name: item for name, item in model.weights.items() if not name.startswith("mtp.")}
    return Trained(model.values | {"num_nextn_predict_layers": 0, "compress_ratios": ratios}, weights)


def figures(state: Mapping[str, Any], log: Sequence[Figures], before: Figures) -> dict[str, Any]:
    """How the model was trained. Units: seconds; these, steps and tokens are sums over all runs."""
    steps = [line for line in log if "next_token" in line]
    graded = [line for line in log if "exact" in line]
    tail = steps[-50:]
    return {
        "steps": before.get("steps", 0) + len(steps),
        "plan": dict(state["plan"]),
        "parameters": sum(state["values"].shape),
        "seconds": round(before.get("seconds", 0) + (log[-1]["seconds"] if log else 0), 1),
        "tokens": before.get("tokens", 0) + sum(line.get("tokens", 0) for line in steps),
        "last_losses": {
            name: round(sum(line[name] for line in tail) / max(len(tail), 1), 4)
            for name in ("next_token", "draft", "index", "hit")
        },
        "last_held_out": graded[-1]["exact"] if graded else {},
    }
