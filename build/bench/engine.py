"""Measure whole steps of the engine: python build/bench/engine.py --folder DIR [--device cpu|cuda] [--shape large]

For a random checkpoint of the official layout (written into DIR unless it is there), all in one run:
prefill       tokens per second of 512 and 8,192 tokens, in chunks of 512
decode        a step of 1, 8 and 32 sequences (and 64 on a GPU) behind 512 and 8,192 tokens
long contexts a step of one sequence behind 65,536 and 1,048,576 tokens
Contexts of decode steps are synthetic: pages of random entries, so that nothing has to be computed before. On a GPU
every step is measured plain and recorded (CUDA graphs), the device waited for. Medians by the wall.
Writes build/bench/results/DEVICE/engine.json and a plot of it, engine.png. Without a GPU, `--device cuda` ends with 2.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from cpu_decode import hardware
from cpu_models import SHAPES, Streams, load_model, make_checkpoint, random_prompt, stored_bytes
from figures import draw_engine

from dsv4_backend.config import CacheFormat, DeviceKind, ServingConfig
from dsv4_backend.errors import ConfigError
from dsv4_backend.model import Transformer
from dsv4_backend.runner.graphs import Recorder
from dsv4_backend.runner.target import Target, open_target

RESULTS = Path(__file__).resolve().parent / "results"
CHUNK_TOKENS = 512
WARM_STEPS = 3
CONTEXTS, LONG_CONTEXTS = (512, 8192), (65_536, 1_048_576)
STREAMS = {"cpu": (1, 8, 32), "cuda": (1, 8, 32, 64)}


def main() -> int:
    """Measure, draw and write JSON; return 2 without the device."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, metavar="DIR")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="large")
    parser.add_argument("--device", choices=sorted(STREAMS), default="cpu")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--longest", type=int, default=LONG_CONTEXTS[-1], help="leave out longer contexts")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR")
    args = parser.parse_args()
    checkpoint = make_checkpoint(args.folder, args.shape)
    try:
        target = open_target(ServingConfig(checkpoint=str(checkpoint), device=DeviceKind(args.device)))
    except ConfigError as error:
        sys.stderr.write(f"{error} Nothing was measured.\n")
        return 2
    model = load_model(checkpoint, target)
    contexts = [context for context in CONTEXTS if context <= args.longest]
    record = {
        "command": f"python build/bench/engine.py --folder DIR --shape {args.shape} --device {args.device}",
        "hardware": hardware(),
        "device": torch.cuda.get_device_name() if args.device == "cuda" else f"{torch.get_num_threads()} threads",
        "shape": args.shape,
        "weight_bytes": stored_bytes(checkpoint),
        "torch": torch.__version__,
        "prefill": [{"tokens": context, "tokens_per_s": round(prefill(model, context), 1)} for context in contexts],
        "decode": decodes(model, target, contexts, STREAMS[args.device], args.steps),
        "long": decodes(model, target, [each for each in LONG_CONTEXTS if each <= args.longest], (1,), args.steps),
    }
    folder = args.out / ("gpu" if args.device == "cuda" else "cpu")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "engine.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    draw_engine(record, folder / "engine.png")
    sys.stdout.write(json.dumps(record, indent=1) + "\n")
    return 0


def decodes(
    model: Transformer, target: Target, contexts: list[int], streams: tuple[int, ...], steps: int
) -> list[dict[str, Any]]:
    """One line for each context and number of sequences."""
    found = []
    for context in contexts:
        for count in streams:
            line: dict[str, Any] = {"context": context, "streams": count}
            for name, recorder in (("plain", None), ("recorded", target.recorder)):
                if name == "plain" or recorder is not None:
                    step = decode(model, recorder, count, context, steps)
                    line[name] = {"ms_per_step": round(1e3 * step, 3), "tokens_per_s": round(count / step, 1)}
            sys.stderr.write(f"{line}\n")
            found.append(line)
    return found


def prefill(model: Transformer, count: int) -> float:
    """Tokens per second of one prompt; the second of two, as the first may compile kernels."""
    run = Streams(model, count, 2, CacheFormat.PACKED_FP4INDEX)
    for stream in (0, 1):
        tokens, started = random_prompt(count, stream), time.perf_counter()
        for first in range(0, count, CHUNK_TOKENS):
            run.step({stream: tokens[first : first + CHUNK_TOKENS]})
        wait(model)
    return count / (time.perf_counter() - started)


def decode(model: Transformer, recorder: Recorder | None, num_streams: int, context: int, steps: int) -> float:
    """Median seconds of a decode step of all sequences."""
    run = Streams(model, context + steps + WARM_STEPS, num_streams, CacheFormat.PACKED_FP4INDEX, recorder)
    run.fill()
    for stream in range(num_streams):
        run.place(stream, context)
    times = []
    for number in range(WARM_STEPS + steps):
        started = time.perf_counter()
        run.step({stream: [17 + 31 * stream + number] for stream in range(num_streams)})
        wait(model)
        times.append(time.perf_counter() - started)
    return statistics.median(times[WARM_STEPS:])


def wait(model: Transformer) -> None:
    """Until the device has done all of it."""
    if model.placement.device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main())
