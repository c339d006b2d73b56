"""Finding the server, and trying ports."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from dsv4_backend.errors import ConfigError
from dsv4_backend.launcher import find_installation, free_ports, require_free


def make_tree(root: Path, *, has_stub: bool = True) -> Path:
    """An empty tree that looks like tritonserver's."""
    for name in ("bin/tritonserver", "backends/python/triton_python_backend_stub")[: 1 + has_stub]:
        (root / name).parent.mkdir(parents=True)
        (root / name).touch()
    return root


def test_a_named_tree_is_taken(tmp_path: Path) -> None:
    assert find_installation(make_tree(tmp_path)).server == tmp_path / "bin" / "tritonserver"


def test_the_image_comes_before_the_wheel(tmp_path: Path) -> None:
    assert find_installation(image_root=make_tree(tmp_path)).root == tmp_path


def test_a_missing_server_names_where_it_was_sought(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"looked at {tmp_path}"):
        find_installation(tmp_path)


def test_a_missing_stub_names_the_fix(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="make setup"):
        find_installation(make_tree(tmp_path, has_stub=False))


def test_free_ports_are_different() -> None:
    assert len(set(free_ports(16))) == 16


def test_every_taken_port_is_named_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        ports = [("http", one.getsockname()[1]), ("grpc", two.getsockname()[1])]
        with pytest.raises(ConfigError, match=rf"{ports[0][1]} .* in use.*{ports[1][1]} .* in use"):
            require_free("127.0.0.1", ports)


def test_a_port_given_twice_is_refused() -> None:
    port = free_ports(1)[0]
    with pytest.raises(ConfigError, match="given twice"):
        require_free("127.0.0.1", [("http", port), ("grpc", port)])
