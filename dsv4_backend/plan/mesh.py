"""Choose and check the mesh of a plan."""

from __future__ import annotations

from dsv4_backend.config import ModelConfig
from dsv4_backend.errors import ConfigError
from dsv4_backend.parallel import Mesh, mesh_problems


def choose_mesh(config: ModelConfig, num_devices: int, tp: int | None = None, ep: int | None = None) -> Mesh:
    """Return a mesh over all devices; what is not given is chosen: the largest tp that divides the model.

    Raises: ConfigError naming every dimension that does not divide, or sizes that do not give num_devices.
    """
    for name, size in (("gpus", num_devices), ("tp", tp), ("ep", ep)):
        if size is not None and size < 1:
            raise ConfigError(f"{name} is {size} but must be at least 1.")
    if tp is None:
        tp = num_devices // ep if ep is not None else _largest_tp(config, num_devices)
    ep = num_devices // tp if ep is None else ep
    if tp * ep != num_devices:
        fix = f"Set --gpus {tp * ep}." if tp * ep else f"Set --tp and --ep to divisors of {num_devices}."
        raise ConfigError(f"tp {tp} x ep {ep} is {tp * ep} ranks but gpus is {num_devices}. {fix}")
    mesh = Mesh(tp=tp, ep=ep)
    problems = mesh_problems(config, mesh)
    if problems:
        raise ConfigError("the mesh does not divide the model:\n" + "\n".join(f"  - {each}" for each in problems))
    return mesh


def _largest_tp(config: ModelConfig, num_devices: int) -> int:
    """The largest tp that the model divides into, all devices else going to ep; 1 where none fits."""
    sizes = [size for size in range(num_devices, 0, -1) if num_devices % size == 0]
    return next((size for size in sizes if not mesh_problems(config, Mesh(tp=size, ep=num_devices // size))), 1)
