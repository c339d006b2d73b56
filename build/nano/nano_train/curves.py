"""The curves of a run as a picture: losses and speed of each step, held-out answers by family. Plain SVG."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT, MARGIN = 520, 240, 46
COLOURS = ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860", "#da8bc3", "#8c8c8c", "#ccb974", "#64b5cd")
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Panel:
    """One diagram: its title and its lines by name."""

    title: str
    lines: dict[str, list[Point]]


def draw(log: Sequence[dict[str, Any]]) -> str:
    """Return an SVG with one panel for losses, one for hits, and one for held-out answers."""
    panels = [
        Panel("loss (next token, draft, indexer)", _series(log, ("next_token", "draft", "index"))),
        Panel("share of targets hit (model, last draft)", _series(log, ("hit", "draft_hit"))),
        Panel("held-out answers without a wrong token", _families(log)),
        Panel("tokens per second", _series(log, ("tokens_per_s",))),
    ]
    body = "".join(_panel(panel, index % 2 * WIDTH, index // 2 * HEIGHT) for index, panel in enumerate(panels))
    size = f'width="{2 * WIDTH}" height="{2 * HEIGHT}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">'
    return f'{head}<rect {size} fill="white"/>{body}</svg>\n'


def smoothed(points: Sequence[Point], most: int = 150) -> list[Point]:
    """Average neighbouring points until at most `most` are left."""
    size = -(-len(points) // most) or 1
    groups = [points[first : first + size] for first in range(0, len(points), size)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def _series(log: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, list[Point]]:
    return {name: smoothed([(line["step"], line[name]) for line in log if name in line]) for name in names}


def _families(log: Sequence[dict[str, Any]]) -> dict[str, list[Point]]:
    lines: dict[str, list[Point]] = {}
    for line in log:
        for family, share in line.get("exact", {}).items():
            lines.setdefault(family, []).append((line["step"], share))
    return lines


def _panel(panel: Panel, left: float, top: float) -> str:
    points = [point for line in panel.lines.values() for point in line]
    last = max((x for x, _ in points), default=1.0) or 1.0
    highest = max((y for _, y in points), default=1.0) or 1.0
    parts = [_text(left + MARGIN, top + 18, panel.title, "bold")]
    bottom, right = top + HEIGHT - 24, left + WIDTH - 96
    for tick in range(5):
        y = bottom - tick / 4 * (HEIGHT - 54)
        parts.append(f'<path d="M{left + MARGIN} {y:.1f}H{right}" stroke="#ddd"/>')
        parts.append(_text(left + 6, y + 4, f"{tick / 4 * highest:.4g}"))
    parts.append(_text(right - 30, bottom + 16, f"step {last:.0f}"))
    for index, (name, line) in enumerate(panel.lines.items()):
        colour = COLOURS[index % len(COLOURS)]
        scaled = (
            f"{left + MARGIN + x / last * (right - left - MARGIN):.1f},{bottom - y / highest * (HEIGHT - 54):.1f}"
            for x, y in line
        )
        parts.append(f'<polyline points="{" ".join(scaled)}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts.append(_text(right + 8, top + 40 + 16 * index, name, colour=colour))
    return "".join(parts)


def _text(x: float, y: float, text: str, weight: str = "normal", colour: str = "black") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" font-weight="{weight}">{html.escape(text)}</text>'
