"""Bookkeeping of the paged caches: which page holds what. Integers only."""
