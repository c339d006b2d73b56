"""Grade the small trained model: python build/nano/evaluate.py [--count 16]; see nano_eval/main.py."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "tests" / "model")]  # the oracle of the equality tests

from nano_eval.main import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
