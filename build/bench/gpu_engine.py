"""Measure whole steps of the engine on the GPU that is here: python build/bench/gpu_engine.py --folder DIR

For a random checkpoint of the official layout (written into DIR unless it is there): prefill tokens per second, and
decode at batch 1, 8, 32 and 64 behind 512 and 8,192 tokens, with recorded steps (CUDA graphs) and without, in one run.
Medians by the wall, each step waited for. Writes build/bench/results/gpu/engine.json. Without a GPU it says so and
ends with 2; `--device cpu` runs the same program on the CPU, to try it out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from cpu_models import SHAPES, Streams, load_model, make_checkpoint, random_prompt, stored_bytes

from dsv4_backend.config import CacheFormat, DeviceKind, ServingConfig
from dsv4_backend.errors import ConfigError
from dsv4_backend.model import Transformer
from dsv4_backend.runner.graphs import Recorder
from dsv4_backend.runner.target import Target, open_target

OUT = Path(__file__).resolve().parent / "results" / "gpu" / "engine.json"
CHUNK_TOKENS = 512
WARM_STEPS = 3


def main() -> int:
    """Measure and write JSON; return 2 without a GPU."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, metavar="DIR")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="large")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--streams", default="1,8,32,64")
    parser.add_argument("--contexts", default="512,8192")
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--out", type=Path, default=OUT, metavar="FILE.json")
    args = parser.parse_args()
    checkpoint = make_checkpoint(args.folder, args.shape)
    try:
        target = open_target(ServingConfig(checkpoint=str(checkpoint), device=DeviceKind(args.device)))
    except ConfigError as error:
        sys.stderr.write(f"{error} Nothing was measured.\n")
        return 2
    model = load_model(checkpoint, target)
    figures = []
    for context in map(int, args.contexts.split(",")):
        for streams in map(int, args.streams.split(",")):
            figures.append(figure(model, target, streams, context, args.steps))
            sys.stderr.write(f"{figures[-1]}\n")
    record = {
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "shape": args.shape,
        "weight_bytes": stored_bytes(checkpoint),
        "commit": subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip(),
        "torch": torch.__version__,
        "command": " ".join(["python build/bench/gpu_engine.py", *sys.argv[1:]]),
        "figures": figures,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=2) + "\n")
    return 0


def figure(model: Transformer, target: Target, streams: int, context: int, steps: int) -> dict[str, float]:
    """One row of the table; a target without a recorder has no recorded steps."""
    found: dict[str, float] = {"streams": streams, "context": context}
    for name, recorder in (("plain", None), ("recorded", target.recorder)):
        if name == "plain" or recorder is not None:
            prefill, step = measure(model, recorder, streams, context, steps)
            found |= {f"{name}_ms_per_step": 1e3 * step, f"{name}_tokens_per_s": streams / step}
            found["prefill_tokens_per_s"] = prefill
    return found


def measure(
    model: Transformer, recorder: Recorder | None, num_streams: int, context: int, steps: int
) -> tuple[float, float]:
    """Prefill tokens per second of the first stream, and median seconds of a decode step of all."""
    run = Streams(model, context + steps + WARM_STEPS, num_streams, CacheFormat.PACKED_FP4INDEX, recorder)
    prefill = 0.0
    for stream in range(num_streams):
        tokens, started = random_prompt(context, stream), time.perf_counter()
        for first in range(0, context, CHUNK_TOKENS):
            run.step({stream: tokens[first : first + CHUNK_TOKENS]})
        wait(model)
        prefill = prefill or context / (time.perf_counter() - started)
    times = []
    for _ in range(WARM_STEPS + steps):
        started = time.perf_counter()
        run.step({stream: [17] for stream in range(num_streams)})
        wait(model)
        times.append(time.perf_counter() - started)
    return prefill, statistics.median(times[WARM_STEPS:])


def commit() -> str:
    """The commit that was measured."""
    found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip()


def wait(model: Transformer) -> None:
    """Until the device has done all of it."""
    if model.placement.device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main())
