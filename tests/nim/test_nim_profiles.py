"""Profiles: what there is, what fits where, and how one is chosen."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from dsv4_nim.catalog import PROFILES_FILE, all_profiles, dump, find_profiles
from dsv4_nim.errors import HardwareError, SettingError
from dsv4_nim.generate import GPU_WEIGHTS, SHAPES, compute_profiles, needed_bytes
from dsv4_nim.judge import RUNTIME_RANKS, Fit, choose, judge, judge_all, runtime_gap, select
from dsv4_nim.machine import Machine, kind_of, memory_bytes, parse_gpus
from dsv4_nim.manifest import render
from dsv4_nim.profiles import GB, Goal, Profile, Weights

from dsv4_backend.config import CacheFormat, ServingConfig
from dsv4_backend.errors import ConfigError
from dsv4_backend.plan.bundled import bundled_config
from dsv4_backend.plan.deepseek_v4 import model_cost
from dsv4_backend.plan.estimate import Load, max_sequences
from dsv4_backend.plan.formats import HcaState
from dsv4_backend.plan.hardware import find_device

GIB = 1 << 30
MIB_B200 = 183_359
PROFILES = all_profiles()
CPU_ONLY = Machine(cpu_memory_bytes=16 * GB)


def gpus(name: str, count: int, mib: int = MIB_B200, used: int = 0) -> Machine:
    return Machine(gpus=parse_gpus(f"{name}, {mib}, {used}\n" * count), cpu_memory_bytes=512 * GB)


def b200_profile(**wanted: object) -> Profile:
    return next(
        each
        for each in PROFILES
        if each.gpu == "b200" and all(getattr(each, key) == value for key, value in wanted.items())
    )


def test_the_file_holds_what_the_arithmetic_gives() -> None:
    assert PROFILES_FILE.read_text(encoding="utf-8") == dump(compute_profiles())


def test_every_wanted_gpu_model_and_goal_has_profiles() -> None:
    there = {(each.model, each.gpu) for each in PROFILES if not each.is_cpu}
    assert there == {(model, gpu) for model in ("v4-pro", "v4-flash") for gpu in GPU_WEIGHTS}
    assert {each.goal for each in PROFILES} == set(Goal)
    assert {each.weights for each in PROFILES} == set(Weights)


def test_ids_and_names_are_unique_and_ids_are_64_hexadecimal_digits() -> None:
    assert len({each.id for each in PROFILES}) == len({each.name for each in PROFILES}) == len(PROFILES)
    assert all(re.fullmatch(r"[0-9a-f]{64}", each.id) for each in PROFILES)


def test_every_gpu_profile_fits_the_device_that_it_is_for() -> None:
    wrong = [each.name for each in PROFILES if each.needed_bytes > find_device(each.gpu).memory_bytes]
    assert wrong == []


def test_a_profile_agrees_with_dsv4_plan() -> None:
    profile = b200_profile(model="v4-pro", goal=Goal.LATENCY, num_gpus=8, weights=Weights.MXFP4)
    config = bundled_config("pro")
    assert config is not None
    cost = model_cost("v4-pro", config, CacheFormat.PACKED_FP4INDEX, HcaState.ONLINE)
    load = Load(device=find_device("b200"), mesh=profile.mesh, context_tokens=profile.context_tokens, concurrency=1)
    assert profile.weight_bytes == cost.weight_bytes(profile.mesh)
    assert profile.max_sequences == min(SHAPES[Goal.LATENCY].num_sequences, max_sequences(cost, load))


def test_nvfp4_is_for_blackwell_only() -> None:
    assert {each.gpu for each in PROFILES if each.weights is Weights.NVFP4}.isdisjoint({"h100", "h200"})


def test_a_machine_without_gpus_runs_the_bundled_model() -> None:
    assert choose(CPU_ONLY).model == "dsv4-nano"


def test_the_right_gpus_are_seen_and_what_this_version_lacks_is_said() -> None:
    verdict = judge(b200_profile(num_gpus=8), gpus("NVIDIA B200", 8))
    assert verdict.fit is Fit.NOT_YET
    assert "a mesh of 8 ranks (it runs 1), GPU kernels" in verdict.reason


def test_the_wrong_gpu_is_incompatible_with_what_is_needed_and_what_is_there() -> None:
    verdict = judge(b200_profile(num_gpus=8), gpus("NVIDIA H100 80GB HBM3", 8, 81_559))
    assert verdict.fit is Fit.INCOMPATIBLE
    assert verdict.reason.startswith("needs 8 x B200; this machine has 8 x NVIDIA H100 80GB HBM3")


def test_too_few_gpus_are_incompatible() -> None:
    assert judge(b200_profile(num_gpus=8), gpus("NVIDIA B200", 4)).fit is Fit.INCOMPATIBLE


def test_gpus_in_use_are_low_on_memory_with_a_context_that_fits() -> None:
    profile = b200_profile(model="v4-flash", goal=Goal.BALANCED, num_gpus=8)
    shorter = needed_bytes(profile, 4_096)
    used = MIB_B200 - shorter // (1 << 20) - 64
    verdict = judge(profile, gpus("NVIDIA B200", 8, used=used))
    assert verdict.fit is Fit.LOW_MEMORY
    found = re.search(r"(\d+) GB are there, try --max-model-len=(\d+) to reduce to >=(\d+) GB/gpu", verdict.reason)
    assert found is not None
    assert needed_bytes(profile, int(found.group(2))) <= judge_available(profile, used) < profile.needed_bytes


def judge_available(profile: Profile, used_mib: int) -> int:
    return (MIB_B200 - used_mib) * (1 << 20)


def test_the_memory_of_the_fullest_gpu_counts() -> None:
    lines = "NVIDIA B200, 183359, 0\n" * 7 + "NVIDIA B200, 183359, 180000\n"
    machine = Machine(gpus=parse_gpus(lines), cpu_memory_bytes=512 * GB)
    assert judge(b200_profile(num_gpus=8), machine).fit is Fit.LOW_MEMORY


def test_a_small_machine_is_low_on_memory_for_the_bundled_model() -> None:
    with pytest.raises(HardwareError, match="1 GB are there"):
        choose(Machine(cpu_memory_bytes=GB))


def test_only_what_the_runtime_can_run_is_offered() -> None:
    offered = [
        verdict.profile
        for kind in GPU_WEIGHTS
        for verdict in judge_all(gpus(kind.replace("-", " "), 16, 300_000))
        if verdict.fit is Fit.COMPATIBLE
    ]
    assert {profile.name for profile in offered} == {PROFILES[0].name}


def test_the_limit_of_ranks_is_the_runtimes() -> None:
    ServingConfig(num_ranks=RUNTIME_RANKS)
    with pytest.raises(ConfigError, match="num_ranks"):
        ServingConfig(num_ranks=RUNTIME_RANKS + 1)


def test_roles_are_not_run_yet() -> None:
    assert "the role prefill" in runtime_gap(replace(PROFILES[0], goal=Goal.PREFILL))


@pytest.mark.parametrize("profile", PROFILES[:40:8], ids=lambda profile: profile.name)
def test_an_id_and_a_name_find_their_profile(profile: Profile) -> None:
    assert find_profiles(profile.id) == find_profiles(profile.name) == [profile]


def test_nims_short_name_finds_all_that_share_it() -> None:
    assert len(find_profiles("triton-nvfp4-tp8-pp1")) > 1


def test_a_tags_selector_narrows_the_choice() -> None:
    chosen = select(tags="precision=nvfp4,tp=8, model=v4-pro")
    assert {(each.weights, each.mesh.tp, each.model) for each in chosen} == {(Weights.NVFP4, 8, "v4-pro")}


@pytest.mark.parametrize(
    ("wanted", "tags", "message"),
    [
        ("triton-nvfp4-tp3-pp1", "", r"no profile has that id or name \(did you mean triton-nvfp4-tp\d-pp1"),
        ("f" * 64, "", "no profile has that id or name"),
        ("", "precision=int4", "asks for precision=int4 but the profiles have fp32, fp8, mxfp4, nvfp4. Set precision="),
        ("", "precison=fp8", r"names the tag 'precison' \(did you mean precision"),
        ("", "nvfp4", "has 'nvfp4' but needs name=value"),
    ],
)
def test_a_choice_that_no_profile_meets_is_refused_with_the_fix(wanted: str, tags: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        select(wanted, tags)


def test_a_wanted_profile_that_does_not_fit_is_refused_with_the_reason() -> None:
    with pytest.raises(HardwareError, match=r"needs 8 x B200; this machine has no GPU[\s\S]*list-model-profiles"):
        choose(CPU_ONLY, b200_profile(num_gpus=8).id)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("NVIDIA GB200", "gb200"), ("NVIDIA B200", "b200"), ("NVIDIA B300 SXM6 AC", "b300"), ("NVIDIA GB300", "gb300"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtx-pro-6000"), ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"), ("NVIDIA GH200 480GB", ""), ("Tesla T4", ""),
    ],
)  # fmt: skip
def test_products_are_known_by_name(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_a_line_that_nvidia_smi_cannot_fill_is_left_out() -> None:
    assert [gpu.name for gpu in parse_gpus("A, [N/A], [N/A]\nNVIDIA B200, 100, 1\nno devices were found\n")] == [
        "NVIDIA B200"
    ]


@pytest.mark.parametrize(("limit", "expected"), [("max", 8 * GIB), (str(2 * GIB), 2 * GIB)])
def test_a_containers_limit_is_its_memory(tmp_path: Path, limit: str, expected: int) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: {8 * GIB // 1024} kB\nMemFree: 1 kB\n", encoding="ascii")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory.max").write_text(f"{limit}\n", encoding="ascii")
    assert memory_bytes(tmp_path) == expected


def test_the_manifest_is_what_the_operator_reads() -> None:
    content = yaml.safe_load(render(PROFILES))
    assert content["schema_version"] == "2.0.0"
    assert [row["id"] for row in content["profiles"]] == [each.id for each in PROFILES]
    values = [value for row in content["profiles"] for value in row["tags"].values()]
    assert {type(value) for value in values} == {str}
    assert content["profiles"][0]["workspace"]["files"]["checkpoint"]["uri"] == PROFILES[0].uri


@pytest.mark.parametrize("label", ["NVIDIA-B200", "NVIDIA-RTX-PRO-6000-Blackwell-Server-Edition", "NVIDIA-GB300"])
def test_the_operator_finds_the_gpu_of_a_profile_in_a_nodes_label(label: str) -> None:
    assert any(each.tags["gpu"].lower() in label.lower() for each in PROFILES if not each.is_cpu)
