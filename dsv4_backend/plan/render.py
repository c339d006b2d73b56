"""A plan as a table or as JSON: both show the same figures, the table rounded."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from dsv4_backend.plan.estimate import Plan


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. key: field of Figures."""

    label: str
    key: str
    show: Callable[[float], str]


def show_bytes(value: float) -> str:
    """Decimal units, as memory is sold."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:,.2f} {unit}"
    return f"{value:,.0f} B"


def show_seconds(value: float) -> str:
    """Seconds, or milliseconds below one."""
    return f"{value:,.2f} s" if value >= 1 else f"{value * 1e3:,.3g} ms"


def _giga(value: float) -> str:
    return f"{value / 1e9:,.1f} G"


def _billions(value: float) -> str:
    return f"{value / 1e9:,.2f} B"


def _percent(value: float) -> str:
    return f"{100 * value:,.2f} %"


def _plain(value: float) -> str:
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}"


ROWS = (
    Row("active parameters", "active_parameters", _billions),
    Row("weights per rank", "weight_bytes_per_rank", show_bytes),
    Row("cache per rank", "cache_bytes_per_rank", show_bytes),
    Row("cache of one sequence", "sequence_bytes", show_bytes),
    Row("  a further token", "marginal_bytes_per_token", _plain),
    Row("  fixed", "fixed_bytes_per_sequence", show_bytes),
    Row("  a snapshot of a prefix", "snapshot_bytes", show_bytes),
    Row("  snapshots at the interval", "snapshots_bytes", show_bytes),
    Row("  read for a token", "cache_read_per_token", show_bytes),
    Row("  of V3.2", "cache_share", _percent),
    Row("sequences that fit", "max_sequences", _plain),
    Row("FLOPs per token, linear", "linear_flops", _giga),
    Row("  index", "index_flops", _giga),
    Row("  core attention", "core_flops", _giga),
    Row("  weighted", "weighted_flops", _giga),
    Row("  weighted, of V3.2", "flops_share", _percent),
    Row("bytes per step and rank", "step_bytes_per_rank", show_bytes),
    Row("roofline step", "step_s", show_seconds),
    Row("  bound by", "step_limit", str),
    Row("roofline TTFT", "ttft_s", show_seconds),
    Row("  bound by", "ttft_limit", str),
    Row("roofline tok/s/user", "tokens_per_s_per_user", _plain),
    Row("roofline tok/s/device", "tokens_per_s_per_device", _plain),
)


def render_json(plan: Plan) -> str:
    """Return one JSON object: the plan's fields, and whether the concurrency fits."""
    return json.dumps(asdict(plan) | {"does_fit": plan.does_fit}, indent=2)


def render_text(plan: Plan) -> str:
    """Return the table."""
    mesh, device = plan.mesh, plan.device
    head = [
        f"devices    {mesh.num_ranks} x {device.name} (tp {mesh.tp}, ep {mesh.ep}),"
        f" {show_bytes(plan.memory_bytes_per_rank)} of {show_bytes(device.memory_bytes)} each for weights and cache",
        f"load       {plan.concurrency:,} at once, {plan.context_tokens:,} tokens each: {_verdict(plan)}",
        f"snapshots  one each {plan.snapshot_interval:,} tokens of a text that is kept",
        f"weighting  {plan.weighting}",
        "roofline   no communication, launches, padding or drafts: nothing can be faster, real systems are slower",
        "",
    ]
    values = [asdict(model) for model in plan.models]
    body = [["", *(model.name for model in plan.models)]]
    body += [[row.label, *(row.show(each[row.key]) for each in values)] for row in ROWS]
    return "\n".join([*head, *align(body)])


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Pad columns to equal width, the first to the left, the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.rjust(width) if index else cell.ljust(width) for index, (cell, width) in cells).rstrip()
        for cells in (list(enumerate(zip(row, widths, strict=True))) for row in rows)
    ]


def _verdict(plan: Plan) -> str:
    model = plan.models[0]
    if plan.does_fit:
        return "fits"
    if model.weight_bytes_per_rank >= plan.memory_bytes_per_rank:
        return "not even the weights fit. Use more devices (--gpus) or larger ones (--gpu)."
    return f"only {model.max_sequences:,} fit. Lower --concurrency or --context, or use more devices (--gpus)."
