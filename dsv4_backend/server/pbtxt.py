"""Writes the config.pbtxt files of the model repository from the wire table. A test holds that they are up to date.

Run `python -m dsv4_backend.server.pbtxt MODEL_REPOSITORY` after changing the table.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from dsv4_backend.server.wire import (
    CLIENT_INPUTS,
    INPUT_IDS,
    PREPARED,
    RESULTS,
    RUNTIME_INPUTS,
    TEXT_INPUTS,
    TEXT_OUTPUT,
    Tensor,
)

NUM_TOKENIZERS = 2
_HEAD = "# Written by `python -m dsv4_backend.server.pbtxt`; change dsv4_backend/server/wire.py instead.\n"


def render_repository() -> dict[str, str]:
    """Return the text of config.pbtxt by model name."""
    tokens = (INPUT_IDS, PREPARED)
    return {
        "dsv4": _ensemble(),
        "dsv4_tokenizer": _python_model("dsv4_tokenizer", CLIENT_INPUTS, tokens, NUM_TOKENIZERS),
        "dsv4_runtime": _python_model("dsv4_runtime", RUNTIME_INPUTS, (*TEXT_INPUTS, *RESULTS), 1, is_decoupled=True),
        # Two instances would reorder the chunks of a stream: exactly one.
        "dsv4_detokenizer": _python_model("dsv4_detokenizer", TEXT_INPUTS, (TEXT_OUTPUT,), 1),
    }


def _python_model(
    name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor], num_instances: int, *, is_decoupled: bool = False
) -> str:
    parts = [_HEAD, f'name: "{name}"\nbackend: "python"\nmax_batch_size: 0\n']
    if is_decoupled:
        parts.append("model_transaction_policy { decoupled: true }\n")
    parts.append(f"instance_group [ {{ count: {num_instances}, kind: KIND_CPU }} ]\n")
    parts.append('parameters { key: "checkpoint" value { string_value: "build/nano/checkpoints/official" } }\n')
    optional = "" if inputs == TEXT_INPUTS else ", optional: true"
    parts.extend(f"input [ {_tensor(item)}{optional} }} ]\n" for item in inputs)
    parts.extend(f"output [ {_tensor(item)} }} ]\n" for item in outputs)
    return "".join(parts)


def _ensemble() -> str:
    parts = [_HEAD, 'name: "dsv4"\nplatform: "ensemble"\nmax_batch_size: 0\n']
    parts.extend(f"input [ {_tensor(item)}, optional: true }} ]\n" for item in CLIENT_INPUTS)
    parts.extend(f"output [ {_tensor(item)} }} ]\n" for item in (TEXT_OUTPUT, *RESULTS))
    steps = [
        _step("dsv4_tokenizer", CLIENT_INPUTS, (INPUT_IDS, PREPARED)),
        _step("dsv4_runtime", (INPUT_IDS, PREPARED), (*TEXT_INPUTS, *RESULTS)),
        _step("dsv4_detokenizer", TEXT_INPUTS, (TEXT_OUTPUT,)),
    ]
    return "".join(parts) + "ensemble_scheduling {\n  step [\n" + ",\n".join(steps) + "\n  ]\n}\n"


def _tensor(item: Tensor) -> str:
    dims = ", ".join(str(size) for size in item.dims)
    return f'{{ name: "{item.name}", data_type: TYPE_{item.dtype.value}, dims: [ {dims} ]'


def _step(model: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> str:
    lines = [f'    {{ model_name: "{model}", model_version: -1']
    lines.extend(f'      input_map {{ key: "{item.name}", value: "{item.name}" }}' for item in inputs)
    lines.extend(f'      output_map {{ key: "{item.name}", value: "{item.name}" }}' for item in outputs)
    return "\n".join(lines) + "\n    }"


def write_repository(root: Path) -> None:
    """Write every config.pbtxt under `root`."""
    for name, text in render_repository().items():
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.pbtxt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write_repository(Path(sys.argv[1]))
