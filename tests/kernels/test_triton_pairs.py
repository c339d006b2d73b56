"""What would be launched: found without data, at the models' shapes, native on each architecture or declared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from dsv4_kernels.errors import BindError
from dsv4_kernels.triton_lang.arch import ARCHES, arch_named, arch_of
from dsv4_kernels.triton_lang.lower import lower, matrix_opcodes
from dsv4_kernels.triton_lang.native import FALLBACKS, due, why
from dsv4_kernels.triton_lang.pairs import pairs_of
from dsv4_kernels.triton_lang.profiles import PROFILES

from dsv4_backend.plan.bundled import bundled_config

KERNELS = Path(__file__).resolve().parents[2] / "kernels"
LOWERED = KERNELS / "lowering.jsonl"  # what `report --json` told of every pair
OLDEST = "DSV4_TRITON_36"  # names a Python that has Triton 3.6, the oldest that the kernels are kept compilable on


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_are_the_released_models(name: str):
    profile, config = PROFILES[name], bundled_config(name)
    assert config is not None
    assert (profile.hidden, profile.heads, profile.q_rank) == (config.hidden_size, config.num_heads, config.q_lora_rank)
    assert (profile.out_groups, profile.out_rank) == (config.o_groups, config.o_lora_rank)
    assert (profile.experts, profile.inter, profile.index_topk) == (
        config.num_experts, config.moe_size, config.index_topk,
    )  # fmt: skip


@pytest.mark.parametrize("arch", ARCHES)
def test_operators_decide_without_looking_at_data_and_every_product_has_its_opcode(arch: str):
    pairs = pairs_of(arch_named(arch), PROFILES["flash"])
    assert len(pairs) > 50
    assert [pair.format for pair in pairs if pair.format and not due(arch_named(arch), pair.format)] == []
    assert all(
        "native" in why(arch_named(arch), pair.format) or pair.format in FALLBACKS for pair in pairs if pair.format
    )


def test_weights_stay_in_their_own_format_where_the_architecture_can():
    formats = {pair.op: pair.format for pair in pairs_of(arch_named("sm_100a"), PROFILES["pro"]) if pair.format}
    assert formats["moe nvfp4 w4a4"] == "nvfp4" and formats["moe mxfp4"] == "mxfp4" and formats["linear fp8"] == "mxfp8"


def test_an_unknown_architecture_is_refused_with_the_known_ones():
    with pytest.raises(BindError, match=r"sm_80.*sm_90, sm_100a"):
        arch_named("sm_80")
    with pytest.raises(BindError, match=r"8\.0.*sm_90 \(9\.0\)"):
        arch_of((8, 0))


def test_opcodes_are_read_from_ptx():
    ptx = """
    tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale.block16 [ %r1 + 0 ], %rd1;
    wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%f1};
    mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%f1};
    """
    want = ("mma.sync tf32", "tcgen05.mma kind::mxf4nvf4.block_scale", "wgmma.mma_async bf16")
    assert matrix_opcodes(ptx) == want


def test_an_interpreted_kernel_is_not_compiled():
    arch = arch_named("sm_90")
    with pytest.raises(BindError, match="process of its own"):
        lower(pairs_of(arch, PROFILES["flash"])[0], arch)


def compiled(*arguments: str, python: str = sys.executable, timeout: int = 600) -> list[dict]:
    """Compile in a process of its own: here kernels are interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(KERNELS), environment.get("PYTHONPATH", "")])
    command = [python, "-m", "dsv4_kernels.triton_lang.report", "--json", *arguments]
    told = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout, env=environment)
    assert told.returncode in (0, 1), told.stderr
    return [json.loads(line) for line in told.stdout.splitlines() if line.startswith("{")]


@pytest.mark.ci
@pytest.mark.parametrize(
    ("arch", "op", "opcode"),
    [
        ("sm_90", "linear fp8", "wgmma.mma_async e4m3"),
        ("sm_100a", "moe nvfp4 w4a4 linear", "tcgen05.mma kind::mxf4nvf4.block_scale"),
        ("sm_103a", "moe nvfp4 w4a4 linear", "tcgen05.mma kind::mxf4nvf4.block_scale"),
        ("sm_120a", "moe nvfp4 w4a4 linear", "mma.sync kind::mxf4nvf4.block_scale"),
    ],
)
def test_a_sample_compiles_to_native_products(arch: str, op: str, opcode: str):
    results = compiled("--arch", arch, "--model", "flash", "--op", op, "--sample")
    assert [one["problems"] for one in results if one["problems"]] == []
    assert opcode in {each for one in results for each in one["opcodes"]}


def recorded() -> list[dict]:
    return [json.loads(line) for line in LOWERED.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("arch", ARCHES)
def test_every_pair_of_both_models_was_compiled_as_it_is_now(arch: str):
    told = {(one["op"], one["kernel"], one["configuration"]) for one in recorded() if one["arch"] == arch}
    pairs = [pair for profile in PROFILES.values() for pair in pairs_of(arch_named(arch), profile)]
    assert {(pair.op, pair.name, pair.configuration) for pair in pairs} == told


def test_no_recorded_pair_falls_short():
    assert [one for one in recorded() if one["problems"]] == []


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHES)
def test_every_pair_compiles_to_its_opcodes_without_spills(arch: str):
    results = compiled("--arch", arch, timeout=7200)
    assert [one for one in results if one["problems"]] == []
    wanted = {(one["op"], one["configuration"]): one["opcodes"] for one in recorded() if one["arch"] == arch}
    assert {(one["op"], one["configuration"]): one["opcodes"] for one in results} == wanted


@pytest.mark.slow
def test_a_sample_for_sm_90_compiles_with_triton_3_6():
    python = os.environ.get(OLDEST)
    if python is None:
        pytest.skip(f"{OLDEST} names no Python with triton==3.6.0; kernels/README.md says how to make one")
    version = [python, "-c", "import triton; print(triton.__version__)"]
    told = subprocess.run(version, capture_output=True, text=True, check=False)
    assert told.stdout.startswith("3.6."), told.stdout + told.stderr
    results = compiled("--arch", "sm_90", "--sample", python=python, timeout=3600)
    assert len(results) > 30 and [one for one in results if one["problems"]] == []
