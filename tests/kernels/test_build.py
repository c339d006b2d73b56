"""Building the library, finding it again, and what is said where that fails; binding and its table."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from dsv4_kernels import build as builder
from dsv4_kernels.build import LEVELS, Level, build, build_all, cpu_flags, levels_of
from dsv4_kernels.cache import CacheRows, WindowRows
from dsv4_kernels.cpu.library import load
from dsv4_kernels.dispatch import OPERATORS, Needs, bind, choose, describe
from dsv4_kernels.errors import BindError, BuildError
from dsv4_kernels.prepared import LinearWeight, prepare_linear
from dsv4_kernels.tensors import quantise_fp8_block, quantise_mxfp4

SOURCE = 'extern "C" int answer() { return 42; }\n'


@pytest.fixture
def small_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "one.cpp").write_text(SOURCE)
    monkeypatch.setattr(builder, "SOURCES", folder)
    return folder


def test_a_second_build_finds_the_first(small_sources: Path, tmp_path: Path):
    first = build(tmp_path / "cache")
    made = first.stat().st_mtime_ns
    assert build(tmp_path / "cache") == first and first.stat().st_mtime_ns == made


def test_a_changed_source_is_another_library(small_sources: Path, tmp_path: Path):
    first = build(tmp_path / "cache")
    (small_sources / "one.cpp").write_text(SOURCE + "// changed\n")
    assert build(tmp_path / "cache") != first


def test_a_build_leaves_one_file_only(small_sources: Path, tmp_path: Path):
    library = build(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == [library]


def test_a_failed_build_names_compiler_and_command_and_leaves_nothing(small_sources: Path, tmp_path: Path):
    (small_sources / "one.cpp").write_text("this is no C++\n")
    with pytest.raises(BuildError, match=r"(?s)g\+\+ exited with 1.*command: .*-O3.*apt install g\+\+"):
        build(tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_without_a_compiler_the_library_built_earlier_is_used(small_sources: Path, tmp_path: Path):
    library = build(tmp_path / "cache")
    assert build(tmp_path / "cache", compilers=("no-such-compiler",)) == library


ZEN3 = frozenset("avx avx2 bmi1 bmi2 f16c fma abm movbe".split())
SKYLAKE = ZEN3 | frozenset("avx512f avx512bw avx512cd avx512dq avx512vl".split())
ICE_LAKE = SKYLAKE | {"avx512_vnni"}
ZEN4 = ICE_LAKE | {"avx512_bf16", "avx512vbmi"}


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (frozenset(), ["native"]),
        (ZEN3 - {"fma"}, ["native"]),
        (ZEN3, ["x86-64-v3", "native"]),
        (SKYLAKE, ["x86-64-v3", "native"]),
        (ICE_LAKE, ["x86-64-v4", "x86-64-v3", "native"]),
        (ZEN4, ["x86-64-v4-bf16", "x86-64-v4", "x86-64-v3", "native"]),
    ],
)
def test_a_cpu_gets_the_best_level_that_it_has_every_flag_of(flags: frozenset[str], names: list[str]):
    assert [level.name for level in levels_of(flags)] == names


def test_a_laptop_builds_its_own_level_only_and_an_image_all(small_sources: Path, tmp_path: Path):
    own = build(tmp_path / "own")
    assert own.name.startswith(f"dsv4_{levels_of(cpu_flags())[0].name}_")
    assert list((tmp_path / "own").iterdir()) == [own]
    every = build_all(tmp_path / "all")
    assert sorted((tmp_path / "all").iterdir()) == sorted(every)
    if platform.machine() == "x86_64":
        assert [library.name.split("_")[1] for library in every] == [level.name for level in LEVELS]


def test_without_a_compiler_each_cpu_finds_its_level_in_an_image(
    small_sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    build_all(tmp_path)
    for flags, level in (
        (ZEN4, "x86-64-v4-bf16"),
        (ICE_LAKE, "x86-64-v4"),
        (SKYLAKE, "x86-64-v3"),
        (ZEN3, "x86-64-v3"),
    ):
        monkeypatch.setattr(builder, "cpu_flags", lambda flags=flags: flags)
        assert build(tmp_path, compilers=("no-such-compiler",)).name.startswith(f"dsv4_{level}_")


def test_a_lower_level_is_taken_where_the_best_is_not_there(
    small_sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(builder, "cpu_flags", lambda: ZEN3)
    library = build(tmp_path)
    monkeypatch.setattr(builder, "cpu_flags", lambda: ICE_LAKE)
    assert build(tmp_path, compilers=("no-such-compiler",)) == library


def test_the_name_of_a_level_follows_from_the_sources_not_from_the_machine(
    small_sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    names = [path.name for path in build_all(tmp_path / "here")]
    monkeypatch.setattr(builder, "cpu_features", lambda: "x86_64\nmodel name : another")
    assert [path.name for path in build_all(tmp_path / "there")] == names


@pytest.mark.ci
@pytest.mark.parametrize("level", levels_of(cpu_flags()), ids=lambda level: level.name)
def test_every_level_that_this_cpu_has_gives_the_same_bits(
    level: Level, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    lowest = levels_of(cpu_flags())[-2:][0]
    tables = []
    for each in (lowest, level):
        monkeypatch.setattr(builder, "levels_of", lambda flags, each=each: [each])
        tables.append(bind("cpu", tmp_path))
    torch.manual_seed(1)
    weight, rows, gates = LinearWeight(dense=torch.randn(96, 200)), torch.randn(37, 200), torch.randn(3, 8, 100)
    cache, query = CacheRows.plain(torch.randn(40, 100)), torch.randn(3, 5, 100)
    window = WindowRows(cache, cache, torch.randint(-1, 40, (3, 20)))
    sink, wide = torch.randn(5), torch.randn(6, 320)
    packed = [prepare_linear(quantise(torch.randn(70, 320))) for quantise in (quantise_fp8_block, quantise_mxfp4)]
    answers = [
        (
            table.linear(rows, weight),
            table.rms_norm(rows, torch.randn(200, generator=torch.Generator().manual_seed(2)), 1e-6),
            table.compress_pool(gates, gates.flip(0)),
            table.sparse_attention(query, window, None, sink, 0.1),
            table.fp8_round_trip(gates, 64),
            *(table.linear(x, one) for one in packed for x in (wide, wide[:1], table.fp8_round_trip(wide, 128))),
        )
        for table in tables
    ]
    assert all(torch.equal(one, other) for one, other in zip(*answers, strict=True))


def test_without_a_compiler_and_library_the_fix_is_named(small_sources: Path, tmp_path: Path):
    with pytest.raises(BuildError, match=r"no-such-compiler.*apt install g\+\+"):
        build(tmp_path / "cache", compilers=("no-such-compiler",))


def test_a_folder_that_cannot_be_written_is_named(small_sources: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BuildError, match=r"file/cache.*writable"):
        build(tmp_path / "file" / "cache")


def test_two_processes_may_build_at_once(tmp_path: Path):
    script = (
        "import sys; from pathlib import Path; from dsv4_kernels import build as b; "
        "b.SOURCES = Path(sys.argv[1]); print(b.build(Path(sys.argv[2])))"
    )
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "one.cpp").write_text(SOURCE)
    command = [sys.executable, "-c", script, str(sources), str(tmp_path / "cache")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = {process.communicate(timeout=60)[0] for process in running}
    assert len(told) == 1 and [process.returncode for process in running] == [0, 0]


def test_a_library_without_the_functions_is_refused(small_sources: Path, tmp_path: Path):
    with pytest.raises(BuildError, match="dsv4_linear"):
        load(build(tmp_path / "cache"))


def test_a_file_that_is_no_library_is_refused(tmp_path: Path):
    (tmp_path / "broken.so").write_text("not a library")
    with pytest.raises(BuildError, match="Remove it"):
        load(tmp_path / "broken.so")


@pytest.mark.ci
@pytest.mark.parametrize("flags", ["-mno-avx512f", "-mno-avx512f -mno-fma", "-march=x86-64 -mno-avx512f"])
def test_older_instruction_sets_compute_the_same_operators(flags: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(builder, "FLAGS", (*builder.FLAGS, "-O1", *flags.split()))
    old, reference = bind("cpu", tmp_path), bind("reference")
    torch.manual_seed(0)
    values, gates = torch.randn(3, 8, 100), torch.randn(3, 8, 100)
    torch.testing.assert_close(old.compress_pool(values, gates), reference.compress_pool(values, gates))
    query, cache, rows, sink = (
        torch.randn(3, 5, 100),
        CacheRows.plain(torch.randn(40, 100)),
        torch.randint(-1, 40, (3, 20)),
        torch.randn(5),
    )
    window = WindowRows(cache, cache, rows)
    got = old.sparse_attention(query, window, None, sink, 0.1)
    torch.testing.assert_close(got, reference.sparse_attention(query, window, None, sink, 0.1))
    weight = LinearWeight(dense=torch.randn(9, 100))
    assert torch.equal(old.linear(values[:, 3], weight)[1:2], old.linear(values[1:2, 3], weight))
    assert torch.equal(old.fp8_round_trip(values, 64), reference.fp8_round_trip(values, 64))


def test_building_from_the_command_line_prints_the_library(tmp_path: Path):
    command = [sys.executable, "-m", "dsv4_kernels.build"]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert Path(told.stdout.strip()).exists() and told.stderr == ""


@pytest.mark.parametrize("target", ["cpu", "reference", "cuda"])
def test_every_operator_is_served_and_described(target: str):
    assert [one.op for one in choose(Needs(target=target))] == list(OPERATORS)
    assert all(f"{op} " in describe(target) for op in OPERATORS)


def test_an_unknown_target_is_refused_with_the_known_ones():
    with pytest.raises(BindError, match=r"'tpu'.*cpu, reference"):
        bind("tpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_cpu_is_named():
    with pytest.raises(BindError, match=r'sees no GPU.*Bind "cpu"'):
        bind("cuda")


def test_another_number_type_is_refused():
    with pytest.raises(BindError, match="bfloat16"):
        choose(Needs(target="cpu", dtype="bfloat16"))
