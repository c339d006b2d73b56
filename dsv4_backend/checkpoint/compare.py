"""Hold the tensors that are there against the tensors that the config announces, and name every difference."""

from __future__ import annotations

from collections.abc import Mapping

from dsv4_backend.checkpoint.findings import Findings
from dsv4_backend.checkpoint.header import TensorEntry
from dsv4_backend.checkpoint.index import CheckpointIndex
from dsv4_backend.checkpoint.names import TensorSpec


def compare(index: CheckpointIndex, specs: Mapping[str, TensorSpec], findings: Findings) -> dict[str, TensorSpec]:
    """Return the specs that apply to this checkpoint; every other difference goes into `findings`.

    Rule: a draft is there as a whole or not at all; one that is left out as a whole is no fault, since the backbone
          does not need it. Without headers only names are compared.
    """
    if not any(name.startswith("mtp.") for name in index.names):
        specs = {name: spec for name, spec in specs.items() if not name.startswith("mtp.")}
    for name in specs:
        if name not in index.names:
            findings.add("missing", name)
    for name in sorted(index.names - specs.keys()):
        findings.add("extra", name, "the config announces no such tensor")
    for name, entry in index.tensors.items():
        if name in specs:
            _compare_tensor(entry, specs[name], findings)
    return dict(specs)


def count_skipped(specs: Mapping[str, TensorSpec]) -> dict[str, int]:
    """Return the number of tensors per skip rule."""
    counts: dict[str, int] = {}
    for spec in specs.values():
        if spec.skip:
            counts[spec.skip] = counts.get(spec.skip, 0) + 1
    return counts


def _compare_tensor(entry: TensorEntry, spec: TensorSpec, findings: Findings) -> None:
    if entry.shape != spec.shape and not (spec.shape == () and entry.shape == (1,)):
        findings.add("misshapen", entry.name, f"{list(entry.shape)} but must be {list(spec.shape)}")
    if entry.dtype not in spec.dtypes:
        findings.add("mistyped", entry.name, f"{entry.dtype} but must be {' or '.join(spec.dtypes)}")
