"""What the load tools' reports become."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

LOADTOOLS = Path(__file__).parents[2] / "build" / "loadtools"


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names of build/loadtools/run.py."""
    monkeypatch.syspath_prepend(str(LOADTOOLS))
    return runpy.run_path(str(LOADTOOLS / "run.py"))


def test_perf_analyzer_table_becomes_figures(tools: dict[str, Any], tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text(
        "Concurrency,Inferences/Second,Response Throughput,p50 latency,p90 latency,p99 latency\n"
        "4,49.9424,799.078,50949,56109,60842\n"
    )
    assert tools["read_perf_analyzer"](table) == {
        "num_streams": 4, "requests_per_s": 49.9424, "responses_per_s": 799.078,
        "request_latency": {"p50_ms": 50.949, "p90_ms": 56.109, "p99_ms": 60.842}}  # fmt: skip


def test_time_to_first_token_comes_from_the_first_response(tools: dict[str, Any]) -> None:
    requests = [{"timestamp": 5_000_000, "response_timestamps": [7_000_000, 90_000_000]}]
    assert tools["first_responses"]({"experiments": [{"requests": requests}]}).p50_ms == 2.0


def test_genai_perf_report_keeps_means_and_percentiles(tools: dict[str, Any]) -> None:
    metric = {"unit": "ms", "avg": 1.23456, "p25": 1.0, "p50": 1.1, "p90": 1.5, "p99": 2.0, "std": 0.1}
    report = {"time_to_first_token": metric, "input_config": {"model": "dsv4"}}
    assert tools["read_genai_perf"](report) == {
        "time_to_first_token": {"unit": "ms", "avg": 1.235, "p50": 1.1, "p90": 1.5, "p99": 2.0}}  # fmt: skip


def test_missing_tokenizer_is_named(tools: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(tools["LoadToolError"], match=r"tokenizer\.json does not exist"):
        tools["copy_tokenizer"](tmp_path)


def test_every_committed_result_says_where_it_comes_from() -> None:
    results = LOADTOOLS.parent / "bench" / "results"
    records = [json.loads(path.read_text()) for path in results.glob("*.json")]
    ours = [record for record in records if "loadtools" in record.get("command", "")]
    assert all({"name", "commit", "hardware", "server", "results"} <= set(record) for record in ours)


@pytest.mark.parametrize("name", ["perf-analyzer", "genai-perf"])
def test_locks_name_exact_versions(name: str) -> None:
    lines = (LOADTOOLS / f"{name}.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert pins and all("==" in line for line in pins)
