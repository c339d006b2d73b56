"""The released models, from their configs alone: tensor counts, payload bytes, parameters."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import pytest
from checkpoint_rig import FLASH, FLASH_0731, PRO, PRO_0813, write_sparse_shards, write_synthetic_index

from dsv4_backend.checkpoint.header import DTYPE_BYTES
from dsv4_backend.checkpoint.inspect import inspect_checkpoint
from dsv4_backend.checkpoint.names import expected_tensors
from dsv4_backend.commands import check
from dsv4_backend.config import parse_model_config
from dsv4_backend.parallel import Mesh

RELEASES = [
    pytest.param(FLASH, 69_187, 159_609_485_896, id="Flash"),
    pytest.param(PRO, 145_116, 864_704_792_696, id="Pro"),
    pytest.param(FLASH_0731, 72_317, 166_878_536_440, id="Flash-0731"),
    pytest.param(PRO_0813, 149_782, 892_727_580_904, id="Pro-0813"),
]


@pytest.mark.parametrize(("values", "num_tensors", "num_bytes"), RELEASES)
def test_a_config_gives_the_released_tensors_and_bytes(
    values: dict[str, object], num_tensors: int, num_bytes: int
) -> None:
    specs = expected_tensors(parse_model_config(values))
    size = sum(math.prod(spec.shape) * DTYPE_BYTES[spec.dtypes[0]] for spec in specs.values())
    assert (len(specs), size) == (num_tensors, num_bytes)


def test_flash_has_the_released_number_of_tensors_of_each_type() -> None:
    counts: dict[str, int] = {}
    for spec in expected_tensors(parse_model_config(FLASH)).values():
        counts[spec.dtypes[0]] = counts.get(spec.dtypes[0], 0) + 1
    released = {"BF16": 433, "F32": 417, "F8_E4M3": 375, "F8_E8M0": 34_167, "I64": 3, "I8": 33_792}
    assert counts == released


@pytest.mark.parametrize(
    ("values", "num_files", "billions", "active_billions"),
    [pytest.param(PRO, 64, 1573.0, 48.85, id="Pro"), pytest.param(FLASH, 46, 284.33, 13.27, id="Flash")],
)
def test_check_finds_the_parameters_from_config_and_index_alone(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    values: dict[str, object],
    num_files: int,
    billions: float,
    active_billions: float,
) -> None:
    write_synthetic_index(tmp_path, values, expected_tensors(parse_model_config(values)), num_files)
    parser = argparse.ArgumentParser()
    check.add_arguments(parser)
    status = check.run(parser.parse_args([str(tmp_path), "--json"]))
    report = json.loads(capsys.readouterr().out)
    found = (
        status,
        report["has_headers"],
        round(report["num_parameters"] / 1e9, 1 if billions > 1000 else 2),
        round(report["num_active_parameters"] / 1e9, 2),
    )
    assert found == (0, False, billions, active_billions)


def test_check_reads_the_headers_of_a_full_size_checkpoint(tmp_path: Path) -> None:
    specs = expected_tensors(parse_model_config(FLASH_0731))
    write_synthetic_index(tmp_path, FLASH_0731, specs, 48)
    write_sparse_shards(tmp_path, specs, 48)
    report = inspect_checkpoint(tmp_path, Mesh(tp=8, ep=2))
    assert (report.problems, report.has_headers, report.num_files, report.num_bytes, len(report.rank_bytes)) == (
        (), True, 48, 166_878_536_440, 16,
    )  # fmt: skip


def test_every_missing_name_of_a_full_size_index_is_counted(tmp_path: Path) -> None:
    specs = expected_tensors(parse_model_config(FLASH))
    kept = {name: spec for name, spec in specs.items() if ".experts." not in name}
    write_synthetic_index(tmp_path, FLASH, kept, 4)
    problems = inspect_checkpoint(tmp_path).problems
    missing = sum(int(line.split("(")[1].split(" ")[0].replace(",", "")) for line in problems)
    assert missing == len(specs) - len(kept)
