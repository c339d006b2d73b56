"""Imports go down only, as ARCHITECTURE.md's table says, and each outside library enters by one place."""

from __future__ import annotations

import pytest
from source_tree import PACKAGES, closure, imports, internal_target, modules

# unit → layer. A unit imports units of lower layers only; two units of one layer do not know each other.
LAYERS = {
    "errors": 0,
    "records": 1, "config": 2, "metrics": 1,
    "text": 3, "chat": 4, "kv": 3, "speculative": 3, "parallel": 3, "checkpoint": 4,
    "scheduler": 5, "model": 5, "plan": 5,
    "engine": 6, "sampling": 6, "grammar": 6,
    "runner": 7,
    "assemble": 8,
    "server": 9,
    "launcher": 9,
    "commands": 11,
    "cli": 12,
}  # fmt: skip
DECISION_SIDE = (
    "errors", "records", "config", "metrics", "text", "chat", "kv", "speculative", "scheduler", "engine", "server",
    "plan",
)  # fmt: skip
ADAPTERS = {
    "deepseek_recipe": "dsv4_backend.chat",
    "xgrammar": "dsv4_backend.grammar",
    "matplotlib": "dsv4_backend.plan",
    "triton_python_backend_utils": "dsv4_backend.server",
    "fastapi": "dsv4_client.gateway",
    "starlette": "dsv4_client.gateway",
    "uvicorn": "dsv4_client.gateway",
    "fsspec": "dsv4_nim.remote",
    "huggingface_hub": "dsv4_nim.remote",
    "yaml": "dsv4_nim.deploy",
}
CLIENT_MAY = ("chat", "text", "records", "errors")


def edges(package: str) -> list[tuple[str, str, str]]:
    """Return (importing unit, imported unit, sentence) of every import between units of this project."""
    found = []
    for module in modules(package):
        for each in imports(module):
            target = internal_target(each.target)
            if target and target not in (module.unit, package):
                found.append((module.unit, target, f"{module.name} imports {each.target}"))
    return found


def short(unit: str) -> str:
    return unit.partition(".")[2]


def test_every_unit_has_a_layer() -> None:
    units = {short(module.unit) for module in modules("dsv4_backend")} - {"", "__main__"}
    assert units - set(LAYERS) == set()


def test_imports_go_down_only() -> None:
    wrong = [
        sentence
        for source, target, sentence in edges("dsv4_backend")
        if short(source) and target.startswith("dsv4_backend.") and short(target) in LAYERS
        if LAYERS[short(source)] <= LAYERS[short(target)]
    ]
    assert wrong == []


def test_the_two_sides_meet_in_records_only() -> None:
    wrong = [
        sentence
        for source, target, sentence in edges("dsv4_backend")
        if {short(source), short(target)} & {"kv", "scheduler", "engine"}
        and {short(source), short(target)} & {"model", "sampling", "grammar"}
    ]
    assert wrong == []


def test_the_runner_satisfies_the_executor_without_knowing_the_engine() -> None:
    wrong = [
        sentence
        for source, target, sentence in edges("dsv4_backend")
        if short(source) == "runner" and short(target) in ("engine", "scheduler")
    ]
    assert wrong == []


@pytest.mark.parametrize("unit", DECISION_SIDE)
def test_the_decision_side_never_imports_torch(unit: str) -> None:
    names = [module.name for module in modules("dsv4_backend") if short(module.unit) == unit]
    led = {name: closure(name) for name in names}
    assert {name: reached["torch"] for name, reached in led.items() if "torch" in reached} == {}


def test_the_runtimes_stub_never_imports_torch() -> None:
    assert "torch" not in closure("dsv4_backend.assemble")


@pytest.mark.parametrize(("library", "home"), ADAPTERS.items())
def test_an_outside_library_enters_by_one_place(library: str, home: str) -> None:
    found = {
        module.unit
        for package in PACKAGES
        for module in modules(package)
        for each in imports(module)
        if each.target.split(".")[0] == library
    }
    assert found <= {home}


def test_kernels_know_nothing_of_the_rest() -> None:
    assert [sentence for _, target, sentence in edges("dsv4_kernels") if not target.startswith("dsv4_kernels")] == []


def test_clients_use_only_what_they_may() -> None:
    allowed = {f"dsv4_backend.{unit}" for unit in CLIENT_MAY}
    wrong = [
        sentence
        for _, target, sentence in edges("dsv4_client")
        if not target.startswith("dsv4_client") and target not in allowed
    ]
    assert wrong == []


def test_nothing_knows_the_container_that_it_runs_in() -> None:
    wrong = [
        sentence
        for package in ("dsv4_backend", "dsv4_kernels", "dsv4_client")
        for _, target, sentence in edges(package)
        if target.startswith("dsv4_nim")
    ]
    assert wrong == []


def test_only_the_container_reads_the_nim_environment() -> None:
    readers = [
        module.name
        for package in PACKAGES
        for module in modules(package)
        if "NIM_" in module.path.read_text(encoding="utf-8") and not module.name.startswith("dsv4_nim")
    ]
    assert readers == []


def test_only_the_command_line_knows_the_clients() -> None:
    wrong = [
        sentence
        for source, target, sentence in edges("dsv4_backend")
        if target.startswith("dsv4_client") and short(source) != "commands"
    ]
    assert wrong == []


def test_nothing_is_imported_inside_functions_to_dodge_a_cycle() -> None:
    wrong = [
        f"{each.module.name} imports {each.target} inside a function"
        for module in modules("dsv4_backend")
        for each in imports(module)
        if each.is_lazy and internal_target(each.target)
    ]
    assert wrong == []
