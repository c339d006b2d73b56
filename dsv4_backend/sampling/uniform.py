"""One random number per (seed, position), so that neither the batch nor a restart changes a result."""

from __future__ import annotations

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15


def uniform(seed: int, position: int) -> float:
    """Return a number in [0, 1) with 53 random bits.

    Rule:   the seed is mixed first, so that neighbouring seeds do not share a sequence shifted by one position.
    Source: splitmix64, Steele, Lea and Flood, OOPSLA 2014, section 6.
    """
    bits = _mix(_mix((seed + _GAMMA) & _MASK) + (position + 1) * _GAMMA)
    return float(bits >> 11) * 2.0**-53


def _mix(value: int) -> int:
    value &= _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
