"""The `dsv4` command itself: what it imports, what it answers, how it exits."""

from __future__ import annotations

import argparse
import importlib
import resource
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from dsv4_backend import __version__, cli
from dsv4_backend.errors import CheckpointError, Dsv4Error, RequestError

DSV4 = Path(sys.executable).parent / "dsv4"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[argparse.Namespace], int]], None]:
    """Make `run` the body of a command named `probe`."""

    def install(run: Callable[[argparse.Namespace], int]) -> None:
        module = types.ModuleType("probe_command", "Probe the command line.")
        module.add_arguments = lambda parser: parser.add_argument("--number", type=int)  # type: ignore[attr-defined]
        module.run = run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "probe_command", module)
        monkeypatch.setitem(cli.COMMANDS, "probe", cli.Command("probe_command", "probe"))

    return install


def raising(error: BaseException) -> Callable[[argparse.Namespace], int]:
    """Return a command body that raises."""

    def run(args: argparse.Namespace) -> int:
        raise error

    return run


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in cli.COMMANDS)


def test_no_command_shows_help_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == cli.EXIT_REFUSED
    assert "usage: dsv4 COMMAND" in capsys.readouterr().out


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"dsv4 {__version__}\n"


def test_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["chta"]) == cli.EXIT_REFUSED
    assert "Did you mean `dsv4 chat`?" in capsys.readouterr().err


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_declares_arguments_and_has_help(name: str) -> None:
    module = importlib.import_module(cli.COMMANDS[name].module)
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    assert callable(module.run) and module.__doc__


def test_exit_status_is_the_commands(command: Callable[..., None]) -> None:
    command(lambda args: args.number)
    assert cli.main(["probe", "--number", "7"]) == 7


@pytest.mark.parametrize("error", [RequestError("top_p is 3."), CheckpointError("x", ["a is missing"])])
def test_refusal_is_told_without_a_traceback(
    error: Dsv4Error, command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    command(raising(error))
    assert cli.main(["probe"]) == cli.EXIT_REFUSED
    assert capsys.readouterr().err == f"dsv4 probe: {error}\n"


def test_a_bug_keeps_its_traceback(command: Callable[..., None]) -> None:
    command(raising(ValueError("a bug")))
    with pytest.raises(ValueError, match="a bug"):
        cli.main(["probe"])


def test_interrupt_exits_as_shells_expect(command: Callable[..., None]) -> None:
    command(raising(KeyboardInterrupt()))
    assert cli.main(["probe"]) == cli.EXIT_INTERRUPTED


def test_closed_pipe_ends_quietly(tokenizer_path: Path) -> None:
    command = [str(DSV4), "tokens", "--tokenizer", str(tokenizer_path), "-"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdout.close()
        process.stdin.write("word " * 50_000)
        process.stdin.close()
        assert process.stderr.read() == ""
    assert process.returncode == cli.EXIT_PIPE_CLOSED


def test_help_imports_nothing_heavy() -> None:
    probe = (
        "import sys; from dsv4_backend import cli; cli.main(['--help']); print(sorted(sys.modules), file=sys.stderr)"
    )
    shown = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stderr
    assert not {"'torch'", "'grpc'", "'numpy'", "'tokenizers'"} & set(shown.strip("[]\n").split(", "))


def test_help_is_quick() -> None:
    """Processor time, not wall time: the machine may be busy."""

    def spent_s() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([str(DSV4), "--help"], stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(spent_s() for _ in range(5)) < 0.15
