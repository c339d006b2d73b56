"""Figures that others published for DeepSeek-V4 on GPUs.

Source: shared facts `peers.md` section 2: the SGLang cookbook (v0.5.15, random prompts of 8192 tokens and answers of
1024, means; tok/s/GPU counts both), and LMSYS of 25 April, whose number of GPUs is not stated: the cookbook's is taken.
The low-latency profiles may use drafts (MTP), which no roofline here counts.
"""

from __future__ import annotations

from dataclasses import dataclass

from dsv4_backend.config import ExpertFormat

INPUT_TOKENS, OUTPUT_TOKENS = 8192, 1024
COOKBOOK, LMSYS = "SGLang cookbook v0.5.15", "LMSYS 25 April, number of GPUs assumed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One measurement.

    Units: ttft_s and tokens_per_s_per_device 0 where not published. context_tokens: while decoding, on average.
    Rule:  is_low_latency says that all devices share each sequence (tp); otherwise attention is data-parallel (ep).
    """

    device: str
    num_devices: int
    model: str
    experts: ExpertFormat
    is_low_latency: bool
    concurrency: int
    context_tokens: int
    ttft_s: float
    tokens_per_s_per_user: float
    tokens_per_s_per_device: float
    source: str


def _cookbook(where: str, what: str, concurrency: int, ttft_ms: float, tpot_ms: float, rate: float) -> Published:
    device, _, count = where.partition("x")
    model, experts, profile = what.split()
    return Published(
        device=device,
        num_devices=int(count),
        model=model,
        experts={"fp4": ExpertFormat.MXFP4, "nvfp4": ExpertFormat.NVFP4, "fp8": ExpertFormat.FP8}[experts],
        is_low_latency=profile == "LL",
        concurrency=concurrency,
        context_tokens=INPUT_TOKENS + OUTPUT_TOKENS // 2,
        ttft_s=ttft_ms / 1e3,
        tokens_per_s_per_user=1e3 / tpot_ms,
        tokens_per_s_per_device=rate,
        source=COOKBOOK,
    )


def _lmsys(where: str, model: str, context_tokens: int, rate: float) -> Published:
    device, _, count = where.partition("x")
    return Published(
        device=device,
        num_devices=int(count),
        model=model,
        experts=ExpertFormat.MXFP4,
        is_low_latency=True,
        concurrency=1,
        context_tokens=context_tokens,
        ttft_s=0.0,
        tokens_per_s_per_user=rate,
        tokens_per_s_per_device=0.0,
        source=LMSYS,
    )


PUBLISHED = (
    _cookbook("b200x4", "flash fp4 LL", 1, 227, 2.88, 575),
    _cookbook("b200x4", "flash fp4 LL", 16, 248, 5.44, 4767),
    _cookbook("b200x4", "flash fp4 bal", 256, 2874, 66.2, 8401),
    _cookbook("b200x4", "flash fp4 HT", 4096, 277_454, 71.4, 8117),
    _cookbook("b200x8", "pro fp4 LL", 1, 333, 4.26, 214),
    _cookbook("b200x8", "pro nvfp4 LL", 1, 230, 4.17, 245),
    _cookbook("b200x8", "pro fp4 LL", 16, 405, 9.95, 1259),
    _cookbook("b200x8", "pro fp4 bal", 256, 3534, 101.4, 2708),
    _cookbook("b200x8", "pro fp4 HT", 4096, 263_860, 43.1, 4148),
    _cookbook("b300x8", "pro nvfp4 LL", 1, 210, 4.13, 251),
    _cookbook("gb200x8", "pro nvfp4 LL", 1, 338, 6.25, 161),
    _cookbook("gb300x4", "pro fp4 LL", 1, 416, 4.47, 411),
    _cookbook("h200x4", "flash fp4 LL", 1, 237, 3.37, 607),
    _cookbook("h200x4", "flash fp8 LL", 1, 178, 3.28, 631),
    _cookbook("h200x8", "pro fp4 LL", 1, 623, 5.64, 171),
    _cookbook("h200x8", "pro fp4 bal", 64, 45_971, 29.0, 535),
    _cookbook("h100x8", "flash fp4 LL", 1, 200, 3.22, 320),
    _lmsys("b200x8", "pro", 4_000, 199),
    _lmsys("b200x8", "pro", 900_000, 180),
    _lmsys("h200x4", "flash", 4_000, 266),
    _lmsys("h200x4", "flash", 900_000, 240),
)
