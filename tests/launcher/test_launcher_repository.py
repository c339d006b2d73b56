"""Settings in config.pbtxt."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2

from dsv4_backend.errors import ConfigError
from dsv4_backend.launcher.repository import RunDirectory, remove_stale, with_parameters


def parameters(text: str) -> dict[str, str]:
    """Read the parameters as Triton does."""
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    return {name: value.string_value for name, value in config.parameters.items()}


@pytest.mark.parametrize(
    "written",
    [
        'parameters { key: "checkpoint" value { string_value: "old" } }',
        'parameters: { key: "checkpoint", value: { string_value: "old \\"path\\"" } }',
        'parameters [ { key: "checkpoint" value { string_value: "old" } } ]',
        "",
    ],
)
def test_a_parameter_is_replaced_wherever_it_stands(written: str) -> None:
    text = with_parameters(f'name: "m"\n{written}\n', {"checkpoint": "/new"})
    assert parameters(text) == {"checkpoint": "/new"}


def test_other_parameters_stay() -> None:
    text = with_parameters('parameters { key: "a" value { string_value: "1" } }', {"b": "2"})
    assert parameters(text) == {"a": "1", "b": "2"}


@given(st.text(st.characters(codec="utf-8", exclude_characters="\x00")), st.text(st.characters(codec="utf-8")))
def test_any_value_survives_being_written_twice(first: str, second: str) -> None:
    text = with_parameters(with_parameters('name: "m"\n', {"v": first}), {"v": second})
    assert parameters(text) == {"v": second}


def test_the_repository_itself_is_never_changed(tmp_path: Path) -> None:
    config = tmp_path / "m" / "config.pbtxt"
    config.parent.mkdir()
    config.write_text('name: "m"\n', encoding="utf-8")
    made = RunDirectory(tmp_path, {"a": "1"}, ["m", "absent"], "prefix_of_a_test")
    copied = (made.repository / "m" / "config.pbtxt").read_text(encoding="utf-8")
    made.remove()
    assert (config.read_text(encoding="utf-8"), parameters(copied)) == ('name: "m"\n', {"a": "1"})


def test_a_missing_repository_is_named() -> None:
    with pytest.raises(ConfigError, match="/nowhere is not a folder"):
        RunDirectory(Path("/nowhere"), {}, [], "prefix_of_a_test")


def test_what_a_living_launcher_holds_is_not_stale(tmp_path: Path) -> None:
    made = RunDirectory(tmp_path, {}, [], "prefix_of_a_test")
    remove_stale()
    assert made.repository.is_dir()
    made.remove()
