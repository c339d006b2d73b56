"""The files of the model repository: they agree with the wire table and keep the rules of the architecture."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from dsv4_backend.server.pbtxt import render_repository
from dsv4_backend.server.wire import CLIENT_INPUTS, RESULTS, RUNTIME_INPUTS, TEXT_INPUTS, TEXT_OUTPUT

REPOSITORY = Path(__file__).parents[2] / "model_repository"
MODELS = ("dsv4", "dsv4_tokenizer", "dsv4_runtime", "dsv4_detokenizer")


def read_config(model: str) -> model_config_pb2.ModelConfig:
    text = (REPOSITORY / model / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, model_config_pb2.ModelConfig())


@pytest.mark.parametrize("model", MODELS)
def test_the_written_config_is_what_the_table_renders(model: str) -> None:
    text = (REPOSITORY / model / "config.pbtxt").read_text(encoding="utf-8")
    assert text == render_repository()[model]


def test_the_repository_holds_exactly_the_four_models() -> None:
    assert sorted(path.name for path in REPOSITORY.iterdir()) == sorted(MODELS)


@pytest.mark.parametrize(
    ("model", "inputs", "outputs"),
    [
        ("dsv4", CLIENT_INPUTS, (TEXT_OUTPUT, *RESULTS)),
        ("dsv4_runtime", RUNTIME_INPUTS, (*TEXT_INPUTS, *RESULTS)),
        ("dsv4_detokenizer", TEXT_INPUTS, (TEXT_OUTPUT,)),
    ],
)
def test_names_in_the_config_are_those_of_the_table(model: str, inputs: tuple, outputs: tuple) -> None:  # type: ignore[type-arg]
    config = read_config(model)
    assert [item.name for item in config.input] == [item.name for item in inputs]
    assert [item.name for item in config.output] == [item.name for item in outputs]


def test_every_input_of_the_ensemble_is_optional() -> None:
    assert all(item.optional for item in read_config("dsv4").input)


def test_the_detokenizer_has_one_instance_because_two_reorder_a_stream() -> None:
    config = read_config("dsv4_detokenizer")
    assert [group.count for group in config.instance_group] == [1]


def test_the_runtime_is_decoupled_with_one_instance() -> None:
    config = read_config("dsv4_runtime")
    assert config.model_transaction_policy.decoupled
    assert [group.count for group in config.instance_group] == [1]


def test_every_python_model_loads_without_a_gpu() -> None:
    for model in MODELS[1:]:
        kinds = {group.kind for group in read_config(model).instance_group}
        assert kinds == {model_config_pb2.ModelInstanceGroup.KIND_CPU}


def test_no_tensor_of_the_ensemble_is_both_input_and_output() -> None:
    config = read_config("dsv4")
    assert not {item.name for item in config.input} & {item.name for item in config.output}


@pytest.mark.parametrize("model", MODELS[1:])
def test_model_files_are_thin(model: str) -> None:
    text = (REPOSITORY / model / "1" / "model.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 40
    assert not re.search(r"^\s*(def|class) ", text, re.MULTILINE)


@pytest.mark.parametrize("model", MODELS[1:])
@pytest.mark.parametrize("folder", [REPOSITORY.parent, Path("/")], ids=["in the checkout", "elsewhere"])
def test_model_files_find_the_project_in_a_checkout_that_is_not_installed(model: str, folder: Path) -> None:
    file = REPOSITORY / model / "1" / "model.py"
    script = f"""
import sys, types
from importlib.util import find_spec
sys.path.extend({[path for path in sys.path if path.endswith("site-packages")]!r})  # without the .pth files in there
sys.modules["triton_python_backend_utils"] = types.ModuleType("triton_python_backend_utils")
sys.path.insert(0, "")  # as in Triton's stub: a server started in the checkout sees half of the project
assert find_spec("dsv4_kernels") is None, "this test must start without the project"
import runpy
found = runpy.run_path({str(file)!r})["TritonPythonModel"]
assert sys.modules[found.__module__].__file__.startswith({str(REPOSITORY.parent)!r})
assert find_spec("dsv4_kernels") and find_spec("dsv4_client")
"""
    subprocess.run([sys.executable, "-I", "-S", "-c", script], check=True, timeout=60, cwd=folder)
