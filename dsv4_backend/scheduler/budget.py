"""How a step's token budget is split: every decoding sequence gets its token, prefills share the rest fairly."""

from __future__ import annotations

from collections.abc import Iterable

from dsv4_backend.config.model import PAGE_TOKENS


def chunk_tokens(start: int, num_pending: int, share: int) -> int:
    """Return how many of `num_pending` tokens to compute from position `start` within `share` tokens.

    Rule: a chunk that does not finish its prompt ends at a page edge where the share reaches one.
    """
    if num_pending <= share:
        return num_pending
    aligned = (start + share) // PAGE_TOKENS * PAGE_TOKENS - start
    return aligned if aligned > 0 else share


def fair_shares(wanted: Iterable[int], budget: int) -> list[int]:
    """Split `budget` among demands given in order of service: equal shares of at least one page, rest to the first.

    The sum never exceeds the budget, and no share exceeds its demand.
    """
    demands = list(wanted)
    if not demands:
        return []
    equal = max(PAGE_TOKENS, budget // len(demands))
    shares = []
    for demand in demands:
        share = min(demand, equal, budget)
        shares.append(share)
        budget -= share
    for index, demand in enumerate(demands):
        extra = min(demand - shares[index], budget)
        shares[index] += extra
        budget -= extra
    return shares
