"""The figures as a record for results/eval.json and as the table of the README."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nano_data import MODES

from nano_eval.score import Score, total_share

FITTING_FAMILIES = ("tools", "parallel", "json", "everyday")
MODE_WORDS = {"off": "thinking off", "on": "on", "max": "maximum"}


def as_rows(scores: Sequence[Score], baseline: Sequence[Score]) -> list[dict[str, Any]]:
    """One row per task: share of right answers by mode, with counts, and the random weights' share beside it."""
    rows = []
    for task in dict.fromkeys(score.cell.task for score in scores):
        own = [score for score in scores if score.cell.task == task]
        other = [score for score in baseline if score.cell.task == task]
        row: dict[str, Any] = {"task": task, "prompts_per_mode": own[0].cell.count}
        row["correct"] = {score.cell.mode: round(score.share, 4) for score in own}
        if own[0].cell.family in FITTING_FAMILIES:
            row["fits_schema"] = {score.cell.mode: round(score.fitting / score.cell.count, 4) for score in own}
        row["wrong"] = [reason for score in own for reason in score.wrong][:6]
        if other:
            row["random_weights"] = round(total_share(other), 4)
        rows.append(row)
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: one line per task."""
    head = " | ".join(MODE_WORDS[mode] for mode in MODES)
    lines = [f"| task | {head} | parses and fits | random weights |", "|---|---|---|---|---|---|"]
    for row in rows:
        shares = " | ".join(percent(row["correct"].get(mode)) for mode in MODES)
        fitting = row.get("fits_schema")
        worst = percent(min(fitting.values()) if fitting else None)
        lines.append(f"| {row['task']} | {shares} | {worst} | {percent(row.get('random_weights'))} |")
    return "\n".join(lines)


def percent(share: float | None) -> str:
    """A share as the table shows it."""
    return "–" if share is None else f"{100 * share:.1f} %"


def summary(record: Mapping[str, Any]) -> str:
    """The lines below the table."""
    layouts = ", ".join(f"{name} {percent(share)}" for name, share in record["layouts"].items())
    equality = record["transformers"]
    return (
        f"mean over families (same {record['layout_prompts']} prompts): {layouts}\n"
        f"mean accepted length with two MTP drafts: {record['accepted_length']:.2f}"
        f" (random weights {record['random_accepted_length']:.2f})\n"
        f"largest logit difference to transformers, BF16 weights, {equality['tokens']} tokens:"
        f" {equality['max_abs_difference']:.1e} (tolerance {equality['tolerance']:.1e})\n"
        f"took {record['seconds']:.0f} s"
    )
