"""The program that shows samples."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from nano_data import FAMILIES

SHOW = Path(__file__).resolve().parents[2] / "build" / "nano" / "show.py"


def shown(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(SHOW), *arguments], check=True, capture_output=True, text=True, timeout=120
    )
    return done.stdout


def test_it_prints_samples_of_a_family_with_their_verdict() -> None:
    text = shown("--family", "tools", "--mode", "on", "--n", "2")
    assert text.count("=== tools, thinking on") == 2
    assert text.count("(correct: True)") == 2


def test_it_prints_a_line_of_statistics_per_family_and_mode() -> None:
    assert len(shown("--stats", "2").splitlines()) == 1 + len(FAMILIES) * 3
