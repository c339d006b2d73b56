"""How far our plain logits are from transformers', by configuration: python tests/model/measure_equality.py

Writes tests/results/equality.json and prints a table. The test of the same name only says that the tolerance is kept.
"""

from __future__ import annotations

import json
from pathlib import Path

from hf_oracle import hf_logits, make_oracle, random_tokens, tolerance
from model_rig import Driver
from test_against_transformers import CONFIGS, load_plain

NUM_TOKENS = 600
RESULT = Path(__file__).resolve().parents[1] / "results" / "equality.json"


def main() -> None:
    rows = []
    for index, name in enumerate(CONFIGS):
        model, config = make_oracle(100 + index, **CONFIGS[name])
        tokens = random_tokens(NUM_TOKENS, 100 + index)
        expected = hf_logits(model, tokens)
        difference = float((Driver(load_plain(model, config)).run(tokens, [NUM_TOKENS]) - expected).abs().max())
        rows.append({"configuration": name, "max_abs_difference": difference, "tolerance": float(tolerance(expected))})
        print(f"{name:18} {difference:.2e}  of {rows[-1]['tolerance']:.2e}")
    RESULT.write_text(json.dumps({"tokens": NUM_TOKENS, "results": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
