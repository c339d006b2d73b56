"""A long context: exact at sampled positions, in memory that does not grow, at a pace that grows linearly at most."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from long_context import Report, run

RESULT = Path(__file__).resolve().parents[1] / "results" / "long-context.json"
MAX_DIFFERENCE = 2e-5
MAX_SCORE_GAP = 1e-6  # of the largest score: float32 may order nearly equal entries differently
MAX_EXTRA_BYTES = 2 << 30


def check(report: Report) -> None:
    assert report.num_sampled >= 3 * 64  # every position in every layer
    assert report.max_difference <= MAX_DIFFERENCE
    assert report.max_score_gap <= MAX_SCORE_GAP
    assert report.extra_bytes <= MAX_EXTRA_BYTES


@pytest.mark.ci
def test_64k_tokens_attend_as_float64_does() -> None:
    check(run(65_536))


def test_a_few_thousand_tokens_attend_as_float64_does() -> None:
    check(run(4096))


def test_the_committed_million_tokens_kept_every_bound() -> None:
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    report = Report(**{name: result[name] for name in Report.__dataclass_fields__})
    assert report.num_tokens == 1_048_576
    check(report)
