"""`dsv4 plan MODEL`: what a deployment needs, how many sequences fit, and what its hardware allows at best."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dsv4_backend.checkpoint.findings import Findings
from dsv4_backend.checkpoint.layout import Layout, read_layout
from dsv4_backend.config import CacheFormat, ModelConfig, load_model_config
from dsv4_backend.errors import ConfigError
from dsv4_backend.plan.bundled import BUNDLED_NAMES, bundled_config
from dsv4_backend.plan.compare import compare_published, comparison_json, render_comparison
from dsv4_backend.plan.deepseek_v4 import model_cost
from dsv4_backend.plan.estimate import Load, make_plan
from dsv4_backend.plan.formats import HcaState
from dsv4_backend.plan.hardware import DEVICES, find_device
from dsv4_backend.plan.mesh import choose_mesh
from dsv4_backend.plan.plot import draw
from dsv4_backend.plan.render import render_json, render_text
from dsv4_backend.plan.rivals import deepseek_v32, dense_gqa


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("model", nargs="?", default="", metavar="MODEL",
                        help=f"{' or '.join(BUNDLED_NAMES)}, a config.json, or a folder that holds one")  # fmt: skip
    parser.add_argument("--gpu", default="b200", metavar="NAME", help=f"{', '.join(DEVICES)} (default b200)")
    parser.add_argument("--gpus", type=int, default=8, metavar="N", help="how many (default 8)")
    parser.add_argument("--tp", type=int, metavar="N", help="ranks that share every weight (default: all that divide)")
    parser.add_argument(
        "--ep", type=int, metavar="N", help="groups that share experts and sequences (default: the rest)"
    )
    parser.add_argument("--context", type=int, default=131_072, metavar="TOKENS", help="length (default 131072)")
    parser.add_argument("--concurrency", type=int, default=1, metavar="N", help="sequences at once (default 1)")
    parser.add_argument("--kv-format", default=CacheFormat.PACKED_FP4INDEX.value,
                        choices=[each.value for each in CacheFormat], help="cache entries and index keys")  # fmt: skip
    parser.add_argument("--hca-state", default=HcaState.ONLINE.value, choices=[each.value for each in HcaState],
                        help="the entry that HCA fills: raw rows, or an online softmax (default)")  # fmt: skip
    parser.add_argument("--memory-share", type=float, default=0.9, metavar="X",
                        help="of a device's memory for weights and cache (default 0.9)")  # fmt: skip
    parser.add_argument("--snapshot-interval", type=int, default=2048, metavar="TOKENS",
                        help="a text that is kept has a snapshot each so many tokens (default 2048)")  # fmt: skip
    parser.add_argument("--json", action="store_true", dest="is_json", help="print JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="also draw cache bytes and FLOPs against context")
    parser.add_argument("--compare", action="store_true", help="set published GPU figures against their roofline")


def run(args: argparse.Namespace) -> int:
    """Print the plan, or the comparison. Returns 0, or 1 if the concurrency does not fit.

    Raises: ConfigError naming what cannot be planned: model, device, mesh by dimension, load, plot.
    """
    if args.compare:
        rows = compare_published()
        sys.stdout.write((comparison_json(rows) if args.is_json else render_comparison(rows)) + "\n")
        return 0
    name, config, layout = _read_model(args.model)
    mesh = choose_mesh(config, args.gpus, args.tp, args.ep)
    load = Load(
        device=find_device(args.gpu),
        mesh=mesh,
        context_tokens=args.context,
        concurrency=args.concurrency,
        memory_share=args.memory_share,
        snapshot_interval=args.snapshot_interval,
    )
    model = model_cost(name, config, CacheFormat(args.kv_format), HcaState(args.hca_state), layout)
    v32, gqa = deepseek_v32(), dense_gqa(model, config)
    plan = make_plan(model, v32, (gqa,), load)
    if args.plot is not None:
        draw((model, v32, gqa), args.plot)
    sys.stdout.write((render_json(plan) if args.is_json else render_text(plan)) + "\n")
    return 0 if plan.does_fit else 1


def _read_model(text: str) -> tuple[str, ModelConfig, Layout | None]:
    """Return name, config and stored layout; None means as the config announces.

    Raises: ConfigError if there is no such model, or its metadata contradict each other.
    """
    if not text:
        raise ConfigError(f"no model is named. Type: dsv4 plan {BUNDLED_NAMES[0]}, or dsv4 plan FOLDER.")
    bundled = bundled_config(text)
    if bundled is not None:
        return f"V4-{text.capitalize()}", bundled, None
    path = Path(text)
    if not path.exists():
        raise ConfigError(f"{text} does not exist. Name a config.json, its folder, or {' or '.join(BUNDLED_NAMES)}.")
    config = load_model_config(path)
    if not path.is_dir():
        return path.parent.resolve().name or path.name, config, None
    findings = Findings()
    layout = read_layout(path, config, findings)
    if findings.lines():
        raise ConfigError(f"{text}: the quantisation metadata cannot be used. Run: dsv4 check {text}")
    return path.resolve().name, config, layout
