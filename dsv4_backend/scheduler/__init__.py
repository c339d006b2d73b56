"""Which tokens of which sequences are computed next. Integers only."""
