"""Set published figures against the roofline of the same devices, model and load."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cache

from dsv4_backend.config import CacheFormat, ExpertFormat
from dsv4_backend.errors import ConfigError
from dsv4_backend.parallel import Mesh
from dsv4_backend.plan.bundled import bundled_config
from dsv4_backend.plan.cost import ModelCost
from dsv4_backend.plan.deepseek_v4 import model_cost
from dsv4_backend.plan.formats import HcaState
from dsv4_backend.plan.hardware import Device, find_device
from dsv4_backend.plan.published import INPUT_TOKENS, OUTPUT_TOKENS, PUBLISHED, Published
from dsv4_backend.plan.render import align
from dsv4_backend.plan.roofline import decode_bound, prefill_bound

ASSUMED = (
    "Assumed: packed cache with FP8 index keys; low-latency profiles divide every weight over all devices (tp),",
    "the others divide experts and sequences (ep). Published TTFT under load includes waiting, so it is compared for a",
    "single prompt only. ratio = published / roofline: a rate is at best 1 without drafts, a TTFT at least 1.",
    "Whether that many sequences fit into memory at once is not asked here.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A published measurement and the roofline; a ratio is published / roofline, 0 where there is no figure."""

    published: Published
    ttft_s: float
    tokens_per_s_per_user: float
    tokens_per_s_per_device: float
    ttft_ratio: float
    user_ratio: float
    device_ratio: float


def compare_published() -> tuple[Comparison, ...]:
    """Compare every published figure."""
    return tuple(_compare(figure) for figure in PUBLISHED)


def render_comparison(rows: Iterable[Comparison]) -> str:
    """Return the table, with what was assumed and where the figures come from."""
    rows = list(rows)
    sources = list(dict.fromkeys(row.published.source for row in rows))
    body = [["devices", "model", "experts", "mesh", "conc", "context", "TTFT ms", "roofline", "ratio",
             "tok/s/user", "roofline", "ratio", "tok/s/device", "roofline", "ratio", "source"]]  # fmt: skip
    body += [_cells(row, sources) for row in rows]
    notes = [f"[{number}] {source}" for number, source in enumerate(sources, start=1)]
    return "\n".join([*align(body), "", *notes, *ASSUMED])


def comparison_json(rows: Iterable[Comparison]) -> str:
    """Return the rows as a JSON list."""
    return json.dumps([asdict(row) for row in rows], indent=2)


def _cells(row: Comparison, sources: list[str]) -> list[str]:
    told = row.published
    return [
        f"{told.num_devices} x {told.device}",
        told.model,
        told.experts.value,
        "tp" if told.is_low_latency else "ep",
        f"{told.concurrency:,}",
        f"{told.context_tokens:,}",
        *_triple(told.ttft_s * 1e3, row.ttft_s * 1e3, row.ttft_ratio),
        *_triple(told.tokens_per_s_per_user, row.tokens_per_s_per_user, row.user_ratio),
        *_triple(told.tokens_per_s_per_device, row.tokens_per_s_per_device, row.device_ratio),
        f"[{sources.index(told.source) + 1}]",
    ]


def _triple(told: float, bound: float, ratio: float) -> list[str]:
    """Published, roofline and ratio; a dash where there is no figure."""
    return [f"{told:,.0f}" if told else "-", f"{bound:,.0f}" if bound else "-", f"{ratio:.3g}" if ratio else "-"]


def _compare(told: Published) -> Comparison:
    cost, device = _cost(told.model, told.experts), find_device(told.device)
    mesh = Mesh(tp=told.num_devices) if told.is_low_latency else Mesh(ep=told.num_devices)
    step = decode_bound(cost, device, mesh, told.context_tokens, told.concurrency).seconds
    is_single = told.ttft_s > 0 and told.concurrency == 1
    ttft = prefill_bound(cost, device, mesh, INPUT_TOKENS).seconds if is_single else 0.0
    rate = _rate_with_prompts(cost, device, mesh, told, step) if told.tokens_per_s_per_device else 0.0
    return Comparison(
        published=told,
        ttft_s=ttft,
        tokens_per_s_per_user=1 / step,
        tokens_per_s_per_device=rate,
        ttft_ratio=told.ttft_s / ttft if ttft else 0.0,
        user_ratio=told.tokens_per_s_per_user * step,
        device_ratio=told.tokens_per_s_per_device / rate if rate else 0.0,
    )


def _rate_with_prompts(cost: ModelCost, device: Device, mesh: Mesh, told: Published, step_s: float) -> float:
    """Input and output tokens per second and device: every prompt is read, then all answer together."""
    prompts_s = prefill_bound(cost, device, mesh, INPUT_TOKENS, told.concurrency).seconds
    tokens = told.concurrency * (INPUT_TOKENS + OUTPUT_TOKENS)
    return tokens / (prompts_s + OUTPUT_TOKENS * step_s) / mesh.num_ranks


@cache
def _cost(model: str, experts: ExpertFormat) -> ModelCost:
    config = bundled_config(model)
    if config is None:
        raise ConfigError(f"published figures name the model {model!r}, which has no bundled config.")
    config = replace(config, quant=replace(config.quant, experts=experts))
    return model_cost(f"V4-{model}", config, CacheFormat.PACKED_FP8INDEX, HcaState.ONLINE)
