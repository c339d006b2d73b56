"""Packing and reading cache rows in the interpreter, byte for byte."""

from __future__ import annotations

import pytest
import torch
from dsv4_kernels.ops import OpTable
from dsv4_kernels.rows import RowFormat, RowSpec
from test_cache_rows import SPECS, values_of
from triton_rig import interpreted

TABLE = interpreted()
ODD = RowSpec(format=RowFormat.FP4, width=37)


@pytest.mark.parametrize("spec", [*SPECS, ODD], ids=lambda spec: f"{spec.format.value}-{spec.width}")
def test_rows_have_the_references_bytes(spec: RowSpec, reference: OpTable):
    values = values_of(spec)
    assert torch.equal(TABLE.pack_rows(values, spec).data, reference.pack_rows(values, spec).data)
