"""A prompt of a million tokens on a small model: python tests/model/measure_long_context.py [TOKENS]

Writes tests/results/long-context.json and the curve beside it (microseconds per token against context).
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import torch
from long_context import run

RESULT = Path(__file__).resolve().parents[1] / "results" / "long-context.json"


def main() -> None:
    num_tokens = int(sys.argv[1]) if len(sys.argv) > 1 else 1_048_576
    report = run(num_tokens, progress=lambda tokens, seconds: print(f"{tokens} tokens, {seconds:.0f} s", flush=True))
    times = [(0, 0.0), *report.pace]
    curve = [
        {"tokens": end, "us_per_token": round(1e6 * (done - begun) / (end - start), 1)}
        for (start, begun), (end, done) in pairwise(times)
    ]
    values = asdict(report) | {"threads": torch.get_num_threads(), "curve": curve}
    RESULT.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({name: values[name] for name in values if name not in ("pace", "curve")}, indent=1))


if __name__ == "__main__":
    main()
