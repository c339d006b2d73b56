"""Whatever stands in a file, opening it ends in a checkpoint or in a CheckpointError."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from pathlib import Path

import pytest
from checkpoint_rig import TINY, read_shard, write_shard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsv4_backend.checkpoint.header import HeaderError, read_header
from dsv4_backend.checkpoint.load import Checkpoint
from dsv4_backend.checkpoint.write import WriteOptions, write_checkpoint
from dsv4_backend.errors import CheckpointError

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
sizes = st.lists(st.integers(-2, 1 << 70) | st.integers(0, 9) | st.booleans(), max_size=4)
types = st.sampled_from(["BF16", "F32", "F8_E8M0", "U8", "F4", "", "bf16"]) | json_values
entries = st.fixed_dictionaries(
    {}, optional={"dtype": types, "shape": sizes | json_values, "data_offsets": sizes | json_values}
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    write_checkpoint(folder, TINY, WriteOptions(shard_bytes=1 << 30))
    return folder


@pytest.fixture(scope="module")
def scratch(sound: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scratch") / "copy"
    shutil.copytree(sound, folder)
    return folder


def refusal(file: Path) -> str | None:
    """Why a header cannot be read; None if it can."""
    try:
        read_header(file)
    except HeaderError as error:
        return str(error)
    return None


@given(header=st.dictionaries(st.text(max_size=12), entries | json_values, max_size=4), data=st.binary(max_size=40))
def test_any_json_header_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, header: dict[str, object], data: bytes
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.safetensors"
    write_shard(file, header, data)
    reason = refusal(file)
    assert reason or sum(entry.num_bytes for entry in read_header(file)) == len(data)


@given(content=st.binary(max_size=200), length=st.none() | st.integers(0, (1 << 64) - 1) | st.integers(0, 200))
def test_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, length: int | None
) -> None:
    file = tmp_path_factory.getbasetemp() / "bytes.safetensors"
    file.write_bytes(content if length is None else length.to_bytes(8, "little") + content)
    assert refusal(file) != ""


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(entry=entries | json_values, pick=st.integers(0, 1 << 30))
def test_a_replaced_entry_is_refused_with_a_reason(sound: Path, scratch: Path, entry: object, pick: int) -> None:
    name = next(iter(sound.glob("*.safetensors"))).name
    header, data = read_shard(sound / name)
    header[sorted(header)[pick % len(header)]] = entry
    write_shard(scratch / name, header, data)
    with pytest.raises(CheckpointError):
        Checkpoint.open(scratch)


@settings(max_examples=60)
@given(seed=st.integers(0, 1 << 30), num=st.integers(1, 8))
def test_flipped_header_bytes_never_crash(sound: Path, scratch: Path, seed: int, num: int) -> None:
    name = next(iter(sound.glob("*.safetensors"))).name
    content = bytearray((sound / name).read_bytes())
    end = 8 + int.from_bytes(content[:8], "little")
    chooser = random.Random(seed)
    for _ in range(num):
        content[chooser.randrange(end)] = chooser.randrange(256)
    (scratch / name).write_bytes(content)
    with contextlib.suppress(CheckpointError):
        Checkpoint.open(scratch)


@settings(max_examples=60)
@given(weight_map=st.dictionaries(st.text(max_size=12), json_values, max_size=4) | json_values)
def test_any_index_is_read_or_refused(
    sound: Path, tmp_path_factory: pytest.TempPathFactory, weight_map: object
) -> None:
    folder = tmp_path_factory.getbasetemp() / "indexed"
    folder.mkdir(exist_ok=True)
    shutil.copy(sound / "config.json", folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}), "utf-8")
    with pytest.raises(CheckpointError):
        Checkpoint.open(folder)
