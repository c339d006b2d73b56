"""The steps of set-up. Each has a key over what it depends on; a step whose key is stamped is passed over.

environment → torch → packages → stub → project → kernels
"""

from __future__ import annotations

import filecmp
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dsv4_setup.locks import digest, read_lock, requirements
from dsv4_setup.packages import CudaBuildError, PackageError, install


@dataclass(frozen=True)
class Checkout:
    """Where things are. `environment` is the virtual environment."""

    root: Path
    target: str
    torch: str = "auto"

    @property
    def environment(self) -> Path:
        """The virtual environment."""
        return self.root / ".venv"

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.environment / "bin" / "python"

    @property
    def first(self) -> str:
        """The package that decides which torch there is."""
        return "tensorrt-llm" if self.target == "gpu" else "torch"

    @property
    def is_cpu_build(self) -> bool:
        """Whether a CPU build of torch is wanted (`auto`: where there is one)."""
        return self.target == "cpu" and self.torch != "cuda"

    @property
    def lock(self) -> Path:
        """The lock of this target."""
        return self.root / "build" / "locks" / f"{self.target}.txt"

    @property
    def stamps(self) -> Path:
        """Folder of the stamps; it goes with the environment."""
        return self.environment / ".setup"

    @property
    def site_packages(self) -> Path:
        """Where packages are installed."""
        return self.environment / "lib" / f"python{_version()}" / "site-packages"


@dataclass(frozen=True)
class Step:
    """One step: `key` over its inputs, `is_there` tells whether its result still exists, `run` makes it."""

    name: str
    key: str
    is_there: Callable[[], bool]
    run: Callable[[Callable[[str], None]], None]


def steps(checkout: Checkout) -> list[Step]:
    """Return the steps of this target in order."""
    root, lock = checkout.root, checkout.lock
    kernels = root / "kernels" / "dsv4_kernels"
    sources = sorted([*kernels.glob("cpu/*.cpp"), *kernels.glob("cpu/*.h"), *kernels.glob("build*.py")])
    python = digest([sys.version, os.path.realpath(sys.base_prefix), checkout.target])
    first = digest([python, read_lock(lock)[checkout.first], str(checkout.torch)])
    installed = digest([first, lock])
    project = digest([python, root / "pyproject.toml", str(root)])
    return [
        Step("environment", python, checkout.python.is_file, lambda say: _environment(checkout)),
        Step("torch", first, lambda: True, lambda say: _torch(checkout, say)),
        Step("packages", installed, lambda: True, lambda say: _packages(checkout, say)),
        Step("stub", installed, lambda: _has_stub(checkout), lambda say: _stub(checkout)),
        Step("project", project, lambda: True, lambda say: _project(checkout, say)),
        Step("kernels", digest([installed, *sources]), lambda: True, lambda say: _kernels(checkout)),
    ]


def pending(checkout: Checkout) -> list[Step]:
    """Return the steps that still have to run. Rule: a step after a pending environment is pending too."""
    found = steps(checkout)
    if not _is_done(checkout, found[0]):
        return found
    return [step for step in found if not _is_done(checkout, step)]


def run(checkout: Checkout, todo: list[Step], say: Callable[[str], None]) -> None:
    """Run these steps and stamp each when it is done, so that an interrupted set-up goes on where it stopped."""
    for number, step in enumerate(todo, start=1):
        say(f"  [{number}/{len(todo)}] {step.name}")
        step.run(say)
        checkout.stamps.mkdir(parents=True, exist_ok=True)
        (checkout.stamps / step.name).write_text(step.key, encoding="ascii")


def _is_done(checkout: Checkout, step: Step) -> bool:
    stamp = checkout.stamps / step.name
    return stamp.is_file() and stamp.read_text(encoding="ascii") == step.key and step.is_there()


def _version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _command(checkout: Checkout, *arguments: str) -> None:
    done = subprocess.run([str(checkout.python), *arguments], cwd=checkout.root, check=False)
    if done.returncode:
        raise PackageError(f"`python {' '.join(arguments)}` ended with exit code {done.returncode}; see above.")


def _environment(checkout: Checkout) -> None:
    """Make the environment; one of another Python, or half made, is made anew."""
    if checkout.python.is_file() and checkout.site_packages.is_dir() and not checkout.stamps.is_dir():
        return  # somebody made it by hand, with this Python: kept
    options = ["--system-site-packages"] if checkout.target != "cpu" else []
    subprocess.run([sys.executable, "-m", "venv", "--clear", *options, str(checkout.environment)], check=True)


def _torch(checkout: Checkout, say: Callable[[str], None]) -> None:
    """Install exactly the pinned torch (gpu: tensorrt-llm with its torch) before what depends on it could choose."""
    pins, name = read_lock(checkout.lock), checkout.first
    if checkout.target != "cpu" and _imports(checkout, name.replace("-", "_")):
        return
    wanted = f"{name}=={pins[name]}"
    if checkout.is_cpu_build:
        try:
            install(checkout.python, ["--no-deps", wanted], num_packages=1, allow_cuda=False, say=say)
            return
        except CudaBuildError as error:
            if checkout.torch == "cpu":
                raise
            say(f"      note: {error}\n      going on with the CUDA build; it runs on the CPU too")
    install(checkout.python, [wanted], num_packages=0, allow_cuda=True, say=say)


def _packages(checkout: Checkout, say: Callable[[str], None]) -> None:
    """Install the rest of the lock. The lock is the whole closure, so pip is told to add nothing."""
    pins = read_lock(checkout.lock)
    pins.pop(checkout.first)
    if _torch_brings_triton(checkout):
        pins.pop("triton", None)
    wanted = requirements(pins)
    arguments = ["--no-deps", "--only-binary=:all:", *wanted]
    install(checkout.python, arguments, num_packages=len(wanted), allow_cuda=not checkout.is_cpu_build, say=say)


def _imports(checkout: Checkout, module: str) -> bool:
    return _succeeds(checkout, f"import importlib.util as u, sys; sys.exit(u.find_spec({module!r}) is None)")


def _torch_brings_triton(checkout: Checkout) -> bool:
    """A GPU build of torch asks for the triton that it was built with: that one is kept."""
    asks = "any(r.split()[0].startswith(('triton', 'pytorch-triton')) for r in (m.requires('torch') or ()))"
    return _succeeds(checkout, f"import importlib.metadata as m, sys; sys.exit(not {asks})")


def _succeeds(checkout: Checkout, code: str) -> bool:
    return subprocess.run([str(checkout.python), "-c", code], check=False, capture_output=True).returncode == 0


def _stub_paths(checkout: Checkout) -> tuple[Path, Path] | None:
    """Return (source, destination) of the stub for the running Python; None where the image has its own."""
    if checkout.target != "cpu":
        return None
    server = checkout.site_packages / "pytriton" / "tritonserver"
    name = "triton_python_backend_stub"
    return server / "python_backend_stubs" / _version() / name, server / "backends" / "python" / name


def _has_stub(checkout: Checkout) -> bool:
    paths = _stub_paths(checkout)
    return paths is None or (all(path.is_file() for path in paths) and filecmp.cmp(*paths, shallow=True))


def _stub(checkout: Checkout) -> None:
    paths = _stub_paths(checkout)
    if paths:
        shutil.copy2(*paths)


def _project(checkout: Checkout, say: Callable[[str], None]) -> None:
    arguments = ["--no-deps", "--no-build-isolation", "--editable", str(checkout.root)]
    install(checkout.python, arguments, num_packages=1, allow_cuda=False, say=say)


def _kernels(checkout: Checkout) -> None:
    _command(checkout, "-m", "dsv4_kernels.build")
