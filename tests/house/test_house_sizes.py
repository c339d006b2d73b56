"""Sizes, types and habits of the sources and documents."""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest
from source_tree import PACKAGES, ROOT, Module, modules

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_MEDIAN_LINES = 12
MAX_ARGUMENTS = 7
DOCUMENTS = {"README.md": 200, "ARCHITECTURE.md": 200, "CONTRIBUTING.md": 150}
MAX_MODEL_LINES = 40
MAX_TARGET_LINES = 3
MAX_BROAD_EXCEPTS = 12  # thread and process ends

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(module: Module) -> Iterator[Function]:
    """Yield every function of a module."""
    for node in ast.walk(module.tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def at(module: Module, node: ast.AST) -> str:
    return f"{module.path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


def is_device_kernel(node: Function) -> bool:
    """Whether the Triton language compiles it: no Python function, so sizes and annotations do not apply."""
    names = [ast.unparse(each) for each in node.decorator_list]
    return any(name == "triton.jit" or name.startswith("triton.jit(") for name in names)


def num_lines(node: Function) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def arguments(node: Function) -> list[ast.arg]:
    spec = node.args
    found = [*spec.posonlyargs, *spec.args, *spec.kwonlyargs]
    return [each for each in found if each.arg not in ("self", "cls")]


@pytest.mark.parametrize("package", PACKAGES)
def test_files_are_short(package: str) -> None:
    lengths = {module.name: len(module.path.read_text(encoding="utf-8").splitlines()) for module in modules(package)}
    assert {name: length for name, length in lengths.items() if length > MAX_FILE_LINES} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_functions_are_short(package: str) -> None:
    sizes = {
        at(module, node): num_lines(node)
        for module in modules(package)
        for node in functions(module)
        if not is_device_kernel(node)
    }
    assert {place: size for place, size in sizes.items() if size > MAX_FUNCTION_LINES} == {}


def test_the_median_function_is_short() -> None:
    sizes = [num_lines(node) for module in modules("dsv4_backend") for node in functions(module)]
    assert statistics.median(sizes) <= MAX_MEDIAN_LINES


@pytest.mark.parametrize("package", PACKAGES)
def test_functions_take_few_arguments(package: str) -> None:
    counts = {at(module, node): len(arguments(node)) for module in modules(package) for node in functions(module)}
    kernels_may = package == "dsv4_kernels"  # an operator's signature is its specification
    assert {place: count for place, count in counts.items() if count > MAX_ARGUMENTS and not kernels_may} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_everything_is_typed(package: str) -> None:
    untyped = [
        at(module, node)
        for module in modules(package)
        for node in functions(module)
        if not is_device_kernel(node)
        if node.returns is None or any(each.annotation is None for each in arguments(node))
    ]
    assert untyped == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_says_what_it_is(package: str) -> None:
    assert [module.name for module in modules(package) if not ast.get_docstring(module.tree)] == []


def test_nothing_is_printed() -> None:
    printed = [
        at(module, node)
        for module in modules("dsv4_backend")
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert printed == []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_global_is_rebound(package: str) -> None:
    found = [
        at(module, node)
        for module in modules(package)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Global)
    ]
    assert found == []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_except_is_bare(package: str) -> None:
    found = [
        at(module, node)
        for module in modules(package)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ExceptHandler) and node.type is None
    ]
    assert found == []


def test_exceptions_are_caught_broadly_at_thread_ends_only() -> None:
    found = [
        at(module, node)
        for module in modules("dsv4_backend")
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ExceptHandler) and isinstance(node.type, ast.Name)
        if node.type.id in ("Exception", "BaseException")
    ]
    assert len(found) <= MAX_BROAD_EXCEPTS, found


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_is_asserted_outside_of_tests(package: str) -> None:
    found = [
        at(module, node)
        for module in modules(package)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Assert)
    ]
    assert found == []


def test_no_work_is_left_as_a_note() -> None:
    marks = [mark + word for mark in ("TO", "FIX", "XX") for word in ("DO", "ME", "X")]
    found = [
        f"{module.path.relative_to(ROOT)}: {mark}"
        for package in PACKAGES
        for module in modules(package)
        for mark in (marks[0], marks[4], marks[8])
        if mark in module.path.read_text(encoding="utf-8")
    ]
    assert found == []


@pytest.mark.parametrize(("name", "limit"), DOCUMENTS.items())
def test_documents_are_short(name: str, limit: int) -> None:
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= limit


def test_models_of_the_repository_are_thin() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in _models()}
    assert {str(path): length for path, length in lengths.items() if length > MAX_MODEL_LINES} == {}


def test_folders_beside_packages_are_not_packages() -> None:
    assert [name for name in ("kernels", "clients", "build") if (ROOT / name / "__init__.py").exists()] == []


def test_make_targets_are_short() -> None:
    recipe: dict[str, int] = {}
    target = ""
    for line in (ROOT / "Makefile").read_text(encoding="utf-8").splitlines():
        if line.startswith("\t"):
            recipe[target] = recipe.get(target, 0) + 1
        elif ":" in line and "=" not in line.split(":", 1)[0]:
            target = line.split(":", 1)[0]
    assert {name: size for name, size in recipe.items() if size > MAX_TARGET_LINES} == {}


def _models() -> list[Path]:
    return sorted((ROOT / "model_repository").glob("*/*/model.py"))
