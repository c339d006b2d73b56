"""`dsv4 check` as a user runs it, and the default random checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoint_rig import TINY, edit_header, remove_tensor, shard_of

from dsv4_backend.checkpoint.inspect import inspect_checkpoint
from dsv4_backend.checkpoint.write import write_checkpoint
from dsv4_backend.cli import main
from dsv4_backend.parallel import Mesh

DEFAULT = Path(__file__).parents[2] / "build" / "random_checkpoint.py"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path, TINY)
    return tmp_path


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The default checkpoint and what its script printed."""
    out = tmp_path_factory.mktemp("default") / "random"
    done = subprocess.run([sys.executable, str(DEFAULT), str(out)], capture_output=True, check=True, text=True)
    return out, done.stdout


def check(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    status = main(["check", *arguments])
    return status, capsys.readouterr().out


def test_a_sound_checkpoint_exits_0(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, text = check(capsys, str(folder))
    assert (status, text.splitlines()[-1]) == (0, "sound       no problem found")


def test_every_problem_is_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    remove_tensor(folder, "head.weight")
    edit_header(shard_of(folder, "norm.weight"), "norm.weight", shape=[8, 8])
    status, text = check(capsys, str(folder))
    assert (status, text.splitlines()[-3:]) == (
        1,
        ["unusable    2 problem(s)", "  - missing head.weight", "  - misshapen norm.weight: [8, 8] but must be [64]"],
    )


def test_an_uneven_mesh_is_an_error_that_names_the_dimension(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, text = check(capsys, str(folder), "--ep", "3")
    assert status == 1
    assert "n_routed_experts is 4 but must be divisible by ep 3. Set --ep 2." in text


def test_an_impossible_mesh_is_a_mistake_in_the_call(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(capsys, str(folder), "--tp", "0")[0] == 2


def test_a_missing_folder_is_said_in_json_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, text = check(capsys, str(tmp_path / "absent"), "--json")
    report = json.loads(text)
    assert (status, report["is_valid"]) == (1, False)


def test_a_wrong_config_lists_its_problems(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "config.json").write_text(json.dumps(TINY | {"model_type": "deepseek_v41"}), "utf-8")
    status, text = check(capsys, str(folder))
    assert status == 1
    assert "model_type is 'deepseek_v41'" in text


def test_bytes_by_format_make_up_the_whole(folder: Path) -> None:
    report = inspect_checkpoint(folder)
    assert sum(report.bytes_by_format.values()) == report.num_bytes


def test_expert_groups_share_nothing_but_the_experts(folder: Path) -> None:
    whole = inspect_checkpoint(folder).rank_bytes[0]
    halves = inspect_checkpoint(folder, Mesh(ep=2)).rank_bytes
    experts = 4 * 4 * 3 * (64 * 32 // 2 + 64 * 32 // 32)  # layers, experts, projections; codes and scales
    assert halves == (whole - experts // 2,) * 2


def test_check_loads_no_torch(folder: Path) -> None:
    code = "import sys; from dsv4_backend.cli import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, "check", str(folder)], check=False).returncode == 0


def test_the_default_checkpoint_is_sound_and_small(default: tuple[Path, str]) -> None:
    report = inspect_checkpoint(default[0])
    assert (report.problems, report.draft, report.num_bytes <= 16e6) == ((), "mtp", True)


def test_the_default_checkpoint_has_what_a_release_has(default: tuple[Path, str]) -> None:
    names = {file.name for file in default[0].iterdir() if file.suffix == ".json"}
    assert names == {"config.json", "generation_config.json", "model.safetensors.index.json", "tokenizer.json"}


def test_making_the_default_checkpoint_shows_progress(default: tuple[Path, str]) -> None:
    assert default[1].count("MB\n") >= 2


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("keep me", "utf-8")
    done = subprocess.run([sys.executable, str(DEFAULT), str(tmp_path)], capture_output=True, check=False, text=True)
    assert (done.returncode, (tmp_path / "letter.txt").exists()) == (1, True)


def test_making_it_again_gives_the_same_bytes(default: tuple[Path, str]) -> None:
    out = default[0]
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    subprocess.run([sys.executable, str(DEFAULT), str(out)], capture_output=True, check=True)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
