"""Cache rows as the compiled library takes them."""

from __future__ import annotations

import ctypes

from dsv4_kernels.cache import CacheRows
from dsv4_kernels.errors import require
from dsv4_kernels.rows import RowFormat

FORMAT_CODES = {name: code for code, name in enumerate(RowFormat)}  # the order of rows.h


class StoredRows(ctypes.Structure):
    """`CacheRows` of rows.h. It holds an address: whoever keeps it keeps the cache."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("count", "bytes", "format", "width", "rope")),
    )

    @classmethod
    def of(cls, what: str, cache: CacheRows, width: int) -> StoredRows:
        """Describe a cache whose rows go with vectors of this width. Raises: ShapeError."""
        spec = cache.spec
        require(spec.width == width, f"{what} has rows of width {spec.width} but must have {width}.")
        return cls(
            cache.data.data_ptr(), cache.num_rows, spec.row_bytes, FORMAT_CODES[spec.format], width, spec.rope_dim
        )
