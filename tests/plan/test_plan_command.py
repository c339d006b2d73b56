"""`dsv4 plan`: table, JSON, plot and refusals."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest

from dsv4_backend.commands import plan
from dsv4_backend.errors import ConfigError
from dsv4_backend.plan.render import ROWS

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    plan.add_arguments(parser)
    return plan.run(parser.parse_args(arguments))


@pytest.mark.parametrize("name", ["pro", "flash"])
def test_the_table_shows_the_figures_of_the_json(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    load = (name, "--gpu", "b300", "--gpus", "8", "--tp", "4", "--context", "1000000", "--concurrency", "3")
    run(*load, "--json")
    models = json.loads(capsys.readouterr().out)["models"]
    run(*load)
    lines = capsys.readouterr().out.splitlines()[-len(ROWS) :]
    shown = [line.removeprefix(row.label).split() for row, line in zip(ROWS, lines, strict=True)]
    assert shown == [[word for model in models for word in row.show(model[row.key]).split()] for row in ROWS]


def test_every_figure_of_the_json_stands_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    run("flash", "--json")
    keys = set(json.loads(capsys.readouterr().out)["models"][0])
    assert keys - {"name"} == {row.key for row in ROWS}


def test_the_plan_names_v4_v32_and_dense_attention(capsys: pytest.CaptureFixture[str]) -> None:
    run("pro", "--json")
    names = [model["name"] for model in json.loads(capsys.readouterr().out)["models"]]
    assert names == ["V4-Pro", "DeepSeek-V3.2", "GQA 8x128"]


def test_a_checkpoint_folder_is_planned(random_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(random_checkpoint), "--gpu", "cpu", "--gpus", "1", "--json") == 0
    assert json.loads(capsys.readouterr().out)["does_fit"] is True


def test_a_config_file_is_planned(random_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(random_checkpoint / "config.json"), "--gpus", "1") == 0
    assert "fits" in capsys.readouterr().out


def test_what_does_not_fit_is_a_problem_with_a_fix(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("pro", "--gpu", "h200", "--context", "1000000", "--concurrency", "64") == 1
    assert "Lower --concurrency" in capsys.readouterr().out


def test_weights_that_do_not_fit_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("pro", "--gpu", "h100", "--gpus", "1") == 1
    assert "not even the weights fit" in capsys.readouterr().out


def test_the_comparison_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--compare") == 0
    assert "SGLang cookbook" in capsys.readouterr().out


def test_a_plot_is_a_png(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("flash", "--plot", str(tmp_path / "plan.png"))
    assert (tmp_path / "plan.png").read_bytes().startswith(PNG_SIGNATURE)


def test_a_plot_without_matplotlib_names_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match="pip install"):
        run("flash", "--plot", str(tmp_path / "plan.png"))


def test_a_plot_that_is_no_png_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must end in \.png"):
        run("flash", "--plot", str(tmp_path / "plan.svg"))


def test_a_plot_into_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        run("flash", "--plot", str(tmp_path / "missing" / "plan.png"))


@pytest.mark.parametrize(("model", "text"), [("", "no model is named"), ("prp", "does not exist")])
def test_an_unknown_model_is_refused(model: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        run(model)
