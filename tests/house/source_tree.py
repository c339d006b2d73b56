"""Python sources as modules with their imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "dsv4_backend": ROOT / "dsv4_backend",
    "dsv4_kernels": ROOT / "kernels" / "dsv4_kernels",
    "dsv4_client": ROOT / "clients" / "dsv4_client",
    "dsv4_nim": ROOT / "build" / "nim" / "dsv4_nim",
}


@dataclass(frozen=True)
class Module:
    """One file of a package."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def unit(self) -> str:
        """The sub-package or module of the first level below the package: what the layers are made of."""
        parts = self.name.split(".")
        return ".".join(parts[:2])


@dataclass(frozen=True)
class Import:
    """`module` imports `target`; a lazy one stands inside a function."""

    module: Module
    target: str
    is_lazy: bool


@cache
def modules(package: str) -> tuple[Module, ...]:
    """Return every module of a package."""
    base = PACKAGES[package]
    found = []
    for path in sorted(base.rglob("*.py")):
        parts = [package, *path.relative_to(base).with_suffix("").parts]
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found.append(Module(name, path, ast.parse(path.read_text(encoding="utf-8"))))
    return tuple(found)


def imports(module: Module) -> Iterator[Import]:
    """Yield what a module imports while running; imports for the type checker alone are left out."""
    yield from _imports(module, module.tree, is_lazy=False)


def _imports(module: Module, node: ast.AST, *, is_lazy: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from (Import(module, alias.name, is_lazy) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            for alias in child.names:
                yield Import(module, f"{_base(module, child)}.{alias.name}", is_lazy)
        is_function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
        yield from _imports(module, child, is_lazy=is_lazy or is_function)


def _base(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = module.name.split(".")
    is_package = module.path.name == "__init__.py"
    kept = parts[: len(parts) - node.level + is_package]
    return ".".join([*kept, *([node.module] if node.module else [])])


def internal_target(target: str) -> str:
    """Return the unit that an import of this project lands in; "" for other packages."""
    parts = target.split(".")
    return ".".join(parts[:2]) if parts[0] in PACKAGES else ""


def closure(start: str) -> dict[str, str]:
    """Return every module reached from `start` by imports at load time, with the one that led to it."""
    by_name = {module.name: module for package in PACKAGES for module in modules(package)}
    reached = {start: ""}
    todo = [start]
    while todo:
        name = todo.pop()
        for found in imports(by_name[name]) if name in by_name else ():
            for target in _prefixes(found.target, by_name):
                if not found.is_lazy and target not in reached:
                    reached[target] = name
                    todo.append(target)
    return reached


def _prefixes(target: str, known: dict[str, Module]) -> list[str]:
    """A dotted import loads every package on its way; a foreign one counts by its first name."""
    parts = target.split(".")
    if parts[0] not in PACKAGES:
        return [parts[0]]
    names = [".".join(parts[: index + 1]) for index in range(len(parts))]
    return [name for name in names if name in known]
