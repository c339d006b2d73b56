"""Accelerators as vendors specify them: memory, bandwidth and dense matrix rates of one device.

Rates are without structured sparsity. Real devices stay below all of these figures; that is what a roofline is for.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from dsv4_backend.config.fields import nearest_name
from dsv4_backend.errors import ConfigError


class Precision(str, Enum):
    """What a matrix product is computed in."""

    FP4 = "fp4"
    FP8 = "fp8"
    BF16 = "bf16"


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One accelerator.

    Units: memory_bytes decimal as sold; bandwidth in bytes/s; rates in dense FLOP/s.
    Rule:  a rate of 0 means that the device lacks the format; `rate` then answers with the next wider one.
    """

    name: str
    memory_bytes: int
    bandwidth: float
    fp4: float
    fp8: float
    bf16: float
    source: str

    def rate(self, precision: Precision) -> float:
        """Return the FLOP/s of a precision, or those of the next wider one that the device has."""
        if precision is Precision.FP4 and self.fp4:
            return self.fp4
        if precision is not Precision.BF16 and self.fp8:
            return self.fp8
        return self.bf16


def _device(name: str, memory_gb: int, bandwidth_tb: float, tera: tuple[float, float, float], source: str) -> Device:
    """Units: memory in GB, bandwidth in TB/s, rates (FP4, FP8, BF16) in TFLOP/s."""
    fp4, fp8, bf16 = (each * 1e12 for each in tera)
    return Device(
        name=name,
        memory_bytes=memory_gb * 10**9,
        bandwidth=bandwidth_tb * 1e12,
        fp4=fp4,
        fp8=fp8,
        bf16=bf16,
        source=source,
    )


_DEVICES = (
    _device("h100", 80, 3.35, (0, 1979, 989.5), "NVIDIA H100 datasheet, SXM5; sparse rates halved"),
    _device("h200", 141, 4.8, (0, 1979, 989.5), "NVIDIA H200 datasheet, SXM5; sparse rates halved"),
    _device("b200", 180, 7.7, (9000, 4500, 2250), "NVIDIA HGX B200 specification (8 GPUs: 1.44 TB, 62 TB/s), per GPU"),
    _device(
        "b300", 270, 8.0, (13500, 4500, 2250), "NVIDIA HGX B300 specification (8 GPUs: 2.1 TB, 108 PF FP4), per GPU"
    ),
    _device("gb200", 186, 8.0, (10000, 5000, 2500), "NVIDIA GB200 NVL72 specification (13.4 TB, 576 TB/s), per GPU"),
    _device("gb300", 279, 8.0, (15000, 5000, 2500), "NVIDIA GB300 NVL72 specification (20 TB, 576 TB/s), per GPU"),
    _device("rtx-pro-6000", 96, 1.792, (2000, 1000, 500), "NVIDIA RTX PRO 6000 Blackwell Workstation; sparse halved"),
    _device("cpu", 384, 0.4608, (0, 0, 14.7), "one EPYC 9654: 12 x DDR5-4800, 96 cores x 2.4 GHz x 64 BF16 FLOP"),
)
DEVICES = {device.name: device for device in _DEVICES}


def find_device(name: str) -> Device:
    """Return the device of that name, in any case.

    Raises: ConfigError naming the nearest one.
    """
    key = name.lower().replace(" ", "-").replace("_", "-")
    if key not in DEVICES:
        raise ConfigError(f"unknown device {name!r}{nearest_name(key, DEVICES)}. Known: {', '.join(DEVICES)}.")
    return DEVICES[key]
