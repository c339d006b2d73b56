"""Every kind of damage is refused, named, and listed together with the others."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoint_rig import (
    TINY,
    TINY_DSPARK,
    add_tensor,
    edit_header,
    edit_index,
    read_shard,
    remove_tensor,
    shard_of,
    write_json,
    write_shard,
)

from dsv4_backend.checkpoint.load import Checkpoint
from dsv4_backend.checkpoint.write import LayoutName, WriteOptions, with_layout, write_checkpoint
from dsv4_backend.errors import CheckpointError

EXPERT = "layers.3.ffn.experts.2.w1"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    write_checkpoint(folder, TINY, WriteOptions(shard_bytes=100_000))
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(sound, tmp_path / "copy")
    return tmp_path / "copy"


def problems(folder: Path) -> tuple[str, ...]:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(folder)
    return caught.value.problems


def truncate(folder: Path) -> None:
    file = sorted(folder.glob("*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[:-100])


def truncate_header(folder: Path) -> None:
    file = sorted(folder.glob("*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[:500])


def empty_file(folder: Path) -> None:
    sorted(folder.glob("*.safetensors"))[1].write_bytes(b"")


def huge_header(folder: Path) -> None:
    file = sorted(folder.glob("*.safetensors"))[1]
    file.write_bytes((1 << 62).to_bytes(8, "little") + file.read_bytes()[8:])


def bad_json(folder: Path) -> None:
    file = sorted(folder.glob("*.safetensors"))[1]
    content = file.read_bytes()
    file.write_bytes(content[:8] + b"]" + content[9:])


def deep_json(folder: Path) -> None:
    text = b"[" * 200_000
    sorted(folder.glob("*.safetensors"))[1].write_bytes(len(text).to_bytes(8, "little") + text)


def append_bytes(folder: Path) -> None:
    with sorted(folder.glob("*.safetensors"))[1].open("ab") as stream:
        stream.write(b"surplus")


def remove_file(folder: Path) -> None:
    sorted(folder.glob("*.safetensors"))[1].unlink()


def pipe_for_a_file(folder: Path) -> None:
    file = sorted(folder.glob("*.safetensors"))[1]
    file.unlink()
    os.mkfifo(file)


def overlap(folder: Path) -> None:
    file = sorted(folder.glob("*.safetensors"))[1]
    header, data = read_shard(file)
    names = list(header)
    size = header[names[1]]["data_offsets"][1] - header[names[1]]["data_offsets"][0]
    header[names[1]]["data_offsets"] = [0, size]
    write_shard(file, header, data)


def twice_in_one_header(folder: Path) -> None:
    file = sorted(folder.glob("*.safetensors"))[1]
    header, data = read_shard(file)
    name = next(iter(header))
    text = json.dumps(header)[:-1] + "," + json.dumps({name: header[name]})[1:]
    file.write_bytes(len(text).to_bytes(8, "little") + text.encode() + data)


def twice_in_two_files(folder: Path) -> None:
    files = sorted(folder.glob("*.safetensors"))
    header, data = read_shard(files[0])
    name = next(iter(read_shard(files[1])[0]))
    header[name] = {"dtype": "U8", "shape": [3], "data_offsets": [len(data), len(data) + 3]}
    write_shard(files[0], header, data + b"abc")


def unknown_type(folder: Path) -> None:
    file = shard_of(folder, "embed.weight")
    edit_header(file, "embed.weight", dtype="F3")


def negative_size(folder: Path) -> None:
    edit_header(shard_of(folder, "embed.weight"), "embed.weight", shape=[-64, -64])


def path_traversal(folder: Path) -> None:
    edit_index(folder, {"embed.weight": "../copy/model-00001.safetensors"})


def stray_file(folder: Path) -> None:
    write_shard(folder / "other.safetensors", {}, b"")


def index_names_too_much(folder: Path) -> None:
    edit_index(folder, {"embed.phantom": shard_of(folder, "norm.weight").name})


def index_misses_a_tensor(folder: Path) -> None:
    edit_index(folder, {"embed.weight": None})


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (truncate, "it is cut short"),
    (truncate_header, "header claims"),
    (empty_file, "it is cut short: 8 header bytes announced, 0 present"),
    (huge_header, "header claims"),
    (bad_json, "JSON is damaged"),
    (deep_json, "nested too deeply"),
    (append_bytes, "7 bytes after its last tensor"),
    (remove_file, "does not exist"),
    (pipe_for_a_file, "not a regular file"),
    (overlap, "overlaps its neighbour"),
    (twice_in_one_header, "twice"),
    (twice_in_two_files, "duplicate tensor"),
    (unknown_type, "has type 'F3'"),
    (negative_size, "all integers of at least 0"),
    (path_traversal, "must be the plain name"),
    (stray_file, "unindexed file other.safetensors"),
    (index_names_too_much, "absent tensor embed.phantom"),
    (index_misses_a_tensor, "unindexed tensor embed.weight"),
]


@pytest.mark.parametrize(("damage", "words"), [pytest.param(*item, id=item[0].__name__) for item in DAMAGES])
def test_damage_is_named(folder: Path, damage: Callable[[Path], None], words: str) -> None:
    damage(folder)
    assert any(words in line for line in problems(folder))


def test_all_kinds_of_problems_are_listed_at_once(folder: Path) -> None:
    remove_tensor(folder, "layers.1.attn.attn_sink")
    add_tensor(folder, "layers.1.ffn.gate.bias_vl", "F32", [4])
    edit_header(shard_of(folder, "norm.weight"), "norm.weight", shape=[32, 2])
    edit_header(shard_of(folder, f"{EXPERT}.weight"), f"{EXPERT}.weight", dtype="F8_E4M3")
    assert problems(folder) == (
        "missing layers.1.attn.attn_sink",
        "extra layers.1.ffn.gate.bias_vl: the config announces no such tensor",
        f"mistyped {EXPERT}.weight: F8_E4M3 but must be I8 or U8",
        "misshapen norm.weight: [32, 2] but must be [64]",
    )


def test_many_problems_of_one_kind_share_a_line(folder: Path) -> None:
    for expert in range(4):
        remove_tensor(folder, f"layers.3.ffn.experts.{expert}.w2.scale")
    assert problems(folder) == (
        "missing layers.*.ffn.experts.*.w2.scale (4 of them, first layers.3.ffn.experts.0.w2.scale)",
    )


def test_patterns_beyond_the_limit_are_counted(folder: Path) -> None:
    for number in range(55):
        add_tensor(folder, f"surplus{number}", "U8", [1])
    assert problems(folder)[-1] == "extra … 5 more patterns, 5 more findings"


def test_a_folder_without_checkpoint_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", TINY)
    assert "there are 0 .safetensors files" in problems(tmp_path)[0]


def test_a_draft_that_is_left_out_as_a_whole_is_accepted(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TINY | {"num_nextn_predict_layers": 0})
    write_json(tmp_path / "config.json", TINY)
    assert Checkpoint.open(tmp_path).skipped() == {}


def test_a_draft_with_a_tensor_missing_is_refused(folder: Path) -> None:
    remove_tensor(folder, "mtp.0.enorm.weight")
    assert problems(folder) == ("missing mtp.0.enorm.weight",)


def test_an_mtp_block_under_a_dspark_config_is_refused(folder: Path) -> None:
    write_json(folder / "config.json", TINY_DSPARK)
    found = problems(folder)
    assert "missing mtp.1.markov_head.markov_w1.weight" in found
    assert "extra mtp.0.enorm.weight: the config announces no such tensor" in found


def test_transformers_names_are_listed_as_extra(folder: Path) -> None:
    add_tensor(folder, "model.embed_tokens.weight", "BF16", [64, 64])
    assert problems(folder) == ("extra model.embed_tokens.weight: the config announces no such tensor",)


def test_an_fp4_checkpoint_under_a_bf16_config_is_refused(folder: Path) -> None:
    write_json(folder / "config.json", with_layout(TINY, LayoutName.BF16))
    assert any(line.startswith("mistyped") for line in problems(folder))
