"""Pictures of the bench's figures. The one file here that knows matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib.figure import Figure


def draw_engine(record: dict[str, Any], file: Path) -> None:
    """Decode tokens per second against the number of sequences, and milliseconds of a step against the context."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    lines = [*record["decode"], *record["long"]]
    for name in ("plain", "recorded"):
        for context in sorted({line["context"] for line in record["decode"]}):
            points = [(line["streams"], line[name]["tokens_per_s"]) for line in record["decode"]
                      if line["context"] == context and name in line]  # fmt: skip
            if points:
                left.plot(*zip(*points, strict=True), marker="o", label=f"{name}, {context:,} tokens before")
        alone = [
            (line["context"], line[name]["ms_per_step"]) for line in lines if line["streams"] == 1 and name in line
        ]
        if alone:
            right.plot(*zip(*alone, strict=True), marker="o", label=name)
    left.set(xlabel="sequences", ylabel="tokens per second", title=f"decode, {record['shape']}, {record['device']}")
    right.set(xlabel="tokens before", ylabel="ms per step", title="one sequence", xscale="log")
    _finish(figure, (left, right), file)


def draw_operators(record: dict[str, Any], file: Path) -> None:
    """The share of the roofline that each operator reaches, by number of tokens."""
    names = list(dict.fromkeys(line["operator"] for line in record["operators"]))
    figure = Figure(figsize=(9, 0.34 * len(names) + 1.5), layout="constrained")
    axes = figure.subplots()
    counts = sorted({line["tokens"] for line in record["operators"]})
    height = 0.8 / len(counts)
    for place, tokens in enumerate(counts):
        shares = {line["operator"]: line["share"] for line in record["operators"] if line["tokens"] == tokens}
        rows = [index + place * height for index in range(len(names))]
        axes.barh(rows, [shares.get(name, 0.0) for name in names], height, label=f"{tokens} tokens")
    axes.set(xlabel="share of the roofline", xlim=(0, 1.2), title=f"operators, {record['model']}, {record['device']}")
    axes.set_yticks([index + 0.4 - height / 2 for index in range(len(names))], names)
    axes.invert_yaxis()
    _finish(figure, (axes,), file)


def _finish(figure: Figure, axes: tuple[Any, ...], file: Path) -> None:
    for each in axes:
        each.grid(alpha=0.3)
        each.legend()
    figure.savefig(file, dpi=90)
