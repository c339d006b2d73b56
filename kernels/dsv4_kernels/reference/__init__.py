"""The specification of every operator in plain torch, float32: `dispatch` binds them by name."""
