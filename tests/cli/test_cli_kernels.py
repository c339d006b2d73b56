"""`dsv4 kernels`: which implementation is chosen, where, and why."""

from __future__ import annotations

import pytest
from dsv4_kernels.dispatch import OPERATORS

from dsv4_backend import cli


def test_the_cpu_takes_its_twins(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["kernels", "--arch", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n{op} " in shown for op in OPERATORS)
    assert shown.count("C++ twin, batch-invariant") == len(OPERATORS)


def test_an_architecture_that_is_not_here_shows_its_products_and_fallbacks(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["kernels", "--arch", "sm_120a", "--model", "flash", "--pairs"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("triton_lang") >= len(OPERATORS)
    assert "mma.sync kind::mxf4nvf4.block_scale, native" in shown
    assert "sm_120a does not multiply e4m3 by e2m1" in shown
    assert "FORMAT=nvfp4 " in shown and "warps=4" in shown


def test_an_unknown_architecture_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["kernels", "--arch", "sm_80"]) == cli.EXIT_REFUSED
    assert "sm_90, sm_100a, sm_103a, sm_120a" in capsys.readouterr().err
