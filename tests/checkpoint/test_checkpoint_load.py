"""Taking weights: once each, with progress, in little memory; and what the quantisation metadata say."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint_rig import QUANTIZATION, TINY, TINY_DSPARK, edit_header, replace_tensor, shard_of, write_json
from dsv4_kernels.placement import HOST
from dsv4_kernels.tensors import WeightFormat

from dsv4_backend.checkpoint.layout import Storage
from dsv4_backend.checkpoint.load import Checkpoint
from dsv4_backend.checkpoint.names import DRAFT_RULE, INPUT_SCALE_RULE, model_weights
from dsv4_backend.checkpoint.write import LayoutName, WriteOptions, with_layout, write_checkpoint
from dsv4_backend.config import DraftKind
from dsv4_backend.errors import CheckpointError, ConfigError
from dsv4_backend.model.weights import Loader, load_weights

PROBE = Path(__file__).with_name("memory_probe.py")
SLACK_BYTES = 16 << 20  # chunks of 2^20 elements while dequantising, the allocator's free lists; measured: below 8 MiB
LARGE = TINY | {
    "hidden_size": 1024,
    "num_hidden_layers": 3,
    "compress_ratios": [0, 4, 128],
    "num_nextn_predict_layers": 0,
    "moe_intermediate_size": 1024,
    "n_routed_experts": 8,
    "vocab_size": 16384,
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_checkpoint(folder, TINY)
    return folder


@pytest.fixture
def nvfp4(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "nvfp4", with_layout(TINY_DSPARK, LayoutName.NVFP4))
    return tmp_path / "nvfp4"


def experts_format(folder: Path, prefix: str) -> WeightFormat:
    return Checkpoint.open(folder).source().linear(f"{prefix}.ffn.experts.0.w2").format


def test_anonymous_memory_stays_below_the_weights_and_one_tensor(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, LARGE, WriteOptions(shard_bytes=32 << 20))
    checkpoint = Checkpoint.open(tmp_path)
    final = sum(
        weight.num_parameters * (8 if weight.storage is Storage.I64 else 4)
        for weight in model_weights(checkpoint.config, checkpoint.layout)
    )
    done = subprocess.run([sys.executable, str(PROBE), str(tmp_path)], capture_output=True, check=True, text=True)
    report = json.loads(done.stdout)
    assert report["stored"] > 100e6
    assert report["peak"] <= final + report["largest"] + SLACK_BYTES


def test_the_model_uses_every_tensor_that_no_rule_skips(tiny: Path) -> None:
    checkpoint = Checkpoint.open(tiny)
    with checkpoint.source() as source:
        load_weights(checkpoint.config, Loader(source, HOST))
        source.finish()


def test_a_tensor_that_nobody_takes_is_reported_at_the_end(tiny: Path) -> None:
    with pytest.raises(CheckpointError, match=r"not used by the model embed\.weight"):
        Checkpoint.open(tiny).source().finish()


def test_a_tensor_cannot_be_taken_twice(tiny: Path) -> None:
    source = Checkpoint.open(tiny).source()
    source.dense("norm.weight")
    with pytest.raises(CheckpointError, match=r"norm\.weight was taken before"):
        source.dense("norm.weight")


def test_an_unknown_name_is_refused(tiny: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight is no weight"):
        Checkpoint.open(tiny).source().dense("model.norm.weight")


def test_a_vector_is_no_matrix(tiny: Path) -> None:
    with pytest.raises(CheckpointError, match="is a vector"):
        Checkpoint.open(tiny).source().linear("norm")


def test_progress_ends_at_the_bytes_to_load(tiny: Path) -> None:
    checkpoint = Checkpoint.open(tiny)
    reports: list[tuple[int, int]] = []
    load_weights(checkpoint.config, Loader(checkpoint.source(lambda *done: reports.append(done)), HOST))
    loaded = sum(checkpoint.index.tensors[name].num_bytes for name, spec in checkpoint.specs.items() if not spec.skip)
    assert reports[-1] == (loaded, loaded)
    assert reports == sorted(reports)


def test_weights_outlive_the_source(tiny: Path) -> None:
    with Checkpoint.open(tiny).source() as source:
        weight = source.dense("embed.weight")
    assert torch.isfinite(weight).all()


def test_hash_tables_are_integers(tiny: Path) -> None:
    table = Checkpoint.open(tiny).source().dense("layers.0.ffn.gate.tid2eid")
    assert (table.dtype, int(table.min()) >= 0, int(table.max()) < 4) == (torch.int64, True, True)


def test_skipped_draft_tensors_are_counted_by_rule(tiny: Path) -> None:
    checkpoint = Checkpoint.open(tiny)
    names = [name for name in checkpoint.index.names if name.startswith("mtp.")]
    assert checkpoint.skipped() == {DRAFT_RULE: len(names)}


def test_a_draft_tensor_can_be_loaded_on_request(tiny: Path) -> None:
    assert Checkpoint.open(tiny).source().linear("mtp.0.e_proj").format is WeightFormat.FP8


def test_dspark_is_told_by_its_keys(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TINY_DSPARK)
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.config.draft.kind is DraftKind.DSPARK
    assert "mtp.1.markov_head.markov_w2.weight" in checkpoint.specs


@pytest.mark.parametrize("layout", [LayoutName.NVFP4, LayoutName.NVFP4_OLD])
def test_both_generations_of_metadata_leave_draft_experts_mxfp4(tmp_path: Path, layout: LayoutName) -> None:
    write_checkpoint(tmp_path, with_layout(TINY, layout))
    found = experts_format(tmp_path, "layers.3"), experts_format(tmp_path, "mtp.0")
    assert found == (WeightFormat.NVFP4, WeightFormat.MXFP4)


@pytest.mark.parametrize("layout", [LayoutName.NVFP4, LayoutName.NVFP4_OLD])
def test_metadata_may_stand_in_hf_quant_config_alone(tmp_path: Path, layout: LayoutName) -> None:
    write_checkpoint(tmp_path, with_layout(TINY, layout))
    write_json(tmp_path / "config.json", TINY | {"quantization_config": QUANTIZATION})
    assert experts_format(tmp_path, "layers.3") is WeightFormat.NVFP4


def test_nvfp4_applies_to_listed_layers_only(tmp_path: Path) -> None:
    values = with_layout(TINY, LayoutName.NVFP4)
    listed = {"layers.3.ffn.experts": {"quant_algo": "NVFP4", "group_size": 16}}
    write_checkpoint(
        tmp_path, values | {"quantization_config": values["quantization_config"] | {"quantized_layers": listed}}
    )
    found = experts_format(tmp_path, "layers.2"), experts_format(tmp_path, "layers.3")
    assert found == (WeightFormat.MXFP4, WeightFormat.NVFP4)


def test_input_scales_are_skipped_by_rule(nvfp4: Path) -> None:
    num_projections = 4 * 4 * 3
    assert Checkpoint.open(nvfp4).skipped()[INPUT_SCALE_RULE] == num_projections


def test_a_scalar_may_be_stored_as_a_vector_of_one(nvfp4: Path) -> None:
    name = "layers.0.ffn.experts.0.w2.weight_scale_2"
    edit_header(shard_of(nvfp4, name), name, shape=[1])
    assert experts_format(nvfp4, "layers.0") is WeightFormat.NVFP4


@pytest.mark.parametrize(
    ("name", "entry", "words"),
    [
        ("layers.0.attn.wq_a", {"quant_algo": "NVFP4"}, "only routed experts"),
        ("layers.0.ffn.experts", {"quant_algo": "INT4"}, "quant_algo is 'INT4'"),
        ("layers.0.ffn.experts", {"group_size": 32}, "group_size is 32 but must be 16"),
    ],
)
def test_metadata_that_cannot_be_applied_are_refused(
    nvfp4: Path, name: str, entry: dict[str, object], words: str
) -> None:
    values = json.loads((nvfp4 / "config.json").read_text("utf-8"))
    values["quantization_config"]["quantized_layers"][name] = entry
    write_json(nvfp4 / "config.json", values)
    with pytest.raises(CheckpointError, match=words):
        Checkpoint.open(nvfp4)


def test_the_same_seed_writes_the_same_bytes(tiny: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TINY)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {
        file.name: file.read_bytes() for file in tiny.iterdir()
    }


def test_another_seed_writes_other_weights(tiny: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TINY, WriteOptions(seed=1))
    first, second = (Checkpoint.open(folder).source().dense("embed.weight") for folder in (tiny, tmp_path))
    assert not torch.equal(first, second)


def test_the_writer_makes_several_shards_and_tells_its_progress(tmp_path: Path) -> None:
    reports: list[tuple[int, int]] = []
    write_checkpoint(tmp_path, TINY, WriteOptions(shard_bytes=100_000), lambda *report: reports.append(report))
    num_bytes = Checkpoint.open(tmp_path).index.num_bytes
    assert (len(reports) >= 4, reports[-1]) == (True, (num_bytes, num_bytes))


def test_a_width_that_splits_an_fp4_group_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="moe_intermediate_size is 40 but must be a multiple of 32"):
        write_checkpoint(tmp_path / "never", TINY | {"moe_intermediate_size": 40})
    assert not (tmp_path / "never").exists()


def test_an_unquantised_checkpoint_may_hold_float32(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, with_layout(TINY, LayoutName.BF16))
    replace_tensor(tmp_path, "layers.0.attn.wq_a.weight", "F32", [32, 64], bytes(4 * 32 * 64))
    assert Checkpoint.open(tmp_path).source().linear("layers.0.attn.wq_a").format is WeightFormat.FP32


def test_float32_scales_of_a_base_model_become_exponents(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, with_layout(TINY, LayoutName.FP8))
    replace_tensor(tmp_path, "layers.0.attn.wq_a.scale", "F32", [1, 1], struct.pack("<f", 0.125))
    scales = Checkpoint.open(tmp_path).source().linear("layers.0.attn.wq_a").scales
    assert scales is not None and scales.tolist() == [[124]]


def test_float32_scales_that_are_no_powers_of_two_are_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, with_layout(TINY, LayoutName.FP8))
    replace_tensor(tmp_path, "layers.0.attn.wq_a.scale", "F32", [1, 1], struct.pack("<f", 0.3))
    with pytest.raises(CheckpointError, match="no powers of two"):
        Checkpoint.open(tmp_path).source().linear("layers.0.attn.wq_a")


def test_a_hash_table_that_names_an_absent_expert_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TINY)
    table = struct.pack("<q", 4) * 128
    replace_tensor(tmp_path, "layers.0.ffn.gate.tid2eid", "I64", [64, 2], table)
    with pytest.raises(CheckpointError, match=r"holds 4\.\.4 but experts are 0\.\.3"):
        Checkpoint.open(tmp_path).source().dense("layers.0.ffn.gate.tid2eid")


@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_bytes(b"short")])
def test_a_file_that_changes_after_the_check_is_refused(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    write_checkpoint(tmp_path, TINY)
    source = Checkpoint.open(tmp_path).source()
    damage(shard_of(tmp_path, "norm.weight"))
    with pytest.raises(CheckpointError, match="checked"):
        source.dense("norm.weight")
