"""Every lack of a machine is named with its fix, all at once, before anything starts."""

from __future__ import annotations

import dataclasses
import os
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
from dsv4_setup.cli import is_machine_fit
from dsv4_setup.preflight import Machine, findings, inspect, is_busy, is_mounted_noexec, is_writable, libpython_dir

GOOD = Machine(
    python=(3, 11),
    machine="x86_64",
    glibc=(2, 36),
    has_venv=True,
    libpython_dir=Path("/usr/lib"),
    compiler="/usr/bin/g++",
    busy_ports=(),
    shm_free_bytes=1 << 30,
    is_shm_writable=True,
    is_tmp_writable=True,
    is_tmp_executable=True,
    disk_free_bytes=100 << 30,
)
LACKS = [
    ({"python": (3, 13)}, "Python is 3.13 but must be 3.11 or 3.12", "PYTHON=python3.11"),
    ({"has_venv": False}, "venv", "apt-get install python3.11-venv"),
    ({"libpython_dir": None}, "libpython3.11.so.1.0", "apt-get install libpython3.11"),
    ({"machine": "aarch64"}, "aarch64", "image"),
    ({"glibc": (2, 31)}, "glibc is 2.31", "Debian 12"),
    ({"compiler": None}, "no C++ compiler", "apt-get install g++"),
    ({"disk_free_bytes": 1 << 20}, "1 MiB of disk", "Free some"),
    ({"shm_free_bytes": None}, "/dev/shm cannot be written", "mount -t tmpfs"),
    ({"is_shm_writable": False}, "/dev/shm cannot be written", "mount -t tmpfs"),
    ({"shm_free_bytes": 4 << 20}, "/dev/shm has 4 MiB free", "--shm-size"),
    ({"is_tmp_writable": False}, "cannot be written", "TMPDIR"),
    ({"busy_ports": (8001,)}, "port 8001 is in use", "GRPC_PORT="),
]


def test_a_machine_with_everything_has_no_findings() -> None:
    assert findings(GOOD) == []


@pytest.mark.parametrize(("change", "what", "fix"), LACKS)
def test_each_lack_is_named_with_its_fix(change: dict[str, object], what: str, fix: str) -> None:
    (finding,) = findings(dataclasses.replace(GOOD, **change))  # type: ignore[arg-type]
    assert (what in finding.what, fix in finding.fix, finding.is_fatal) == (True, True, True)


def test_all_lacks_are_named_at_once() -> None:
    bare = dataclasses.replace(GOOD, compiler=None, has_venv=False, libpython_dir=None, busy_ports=(8000, 8001))
    assert len(findings(bare)) == 5


def test_a_noexec_tmp_is_only_a_note() -> None:
    (finding,) = findings(dataclasses.replace(GOOD, is_tmp_executable=False))
    assert not finding.is_fatal


def test_nvidias_image_may_run_on_another_processor() -> None:
    assert findings(dataclasses.replace(GOOD, machine="aarch64", has_server=True)) == []


def test_a_listener_makes_its_port_busy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert is_busy(listener.getsockname()[1], "127.0.0.1")


def test_port_0_is_never_busy(tmp_path: Path) -> None:
    assert inspect(tmp_path, ports=[0]).busy_ports == ()


def test_a_folder_that_is_not_there_is_not_writable(tmp_path: Path) -> None:
    assert not is_writable(tmp_path / "absent")


def test_a_noexec_mount_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda folder: SimpleNamespace(f_flag=os.ST_NOEXEC | os.ST_NOSUID))
    assert is_mounted_noexec(tmp_path)


def test_a_missing_libpython_is_seen(tmp_path: Path) -> None:
    assert libpython_dir([tmp_path]) is None


def test_no_compiler_on_an_empty_path_stops_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not is_machine_fit(tmp_path, [])
    assert "apt-get install g++" in capsys.readouterr().err
