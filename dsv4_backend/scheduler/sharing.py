"""Where texts part: edges at which a snapshot is worth keeping, and prompts that are computed once for several."""

from __future__ import annotations

from collections.abc import Sequence

from dsv4_backend.config.model import PAGE_TOKENS
from dsv4_backend.kv.prefix import KeyedTokens

NEWEST_TURNS = 4  # what is edited or asked anew is mostly near the end


def turn_edges(token_ids: Sequence[int], turn_id: int | None) -> frozenset[int]:
    """Return the page edges before the first turn of a conversation, and before its newest ones.

    Rule: what stands before the first turn, a system prompt with tools, is what other conversations share. There are
          no edges where no token begins a turn.
    """
    turns = [position for position, token_id in enumerate(token_ids) if token_id == turn_id]
    edges = [position // PAGE_TOKENS * PAGE_TOKENS for position in turns]
    newest = sorted({edge for edge in edges if edge})[-NEWEST_TURNS:]
    return frozenset([*edges[:1], *newest]) - {0}


def kept_edge(leader: KeyedTokens, follower: KeyedTokens, interval_tokens: int) -> int:
    """Return the last edge from which a text will be able to go on when another one is computed; 0 where none is."""
    if not follower.may_hit or min(leader.last_edge, follower.last_edge) == 0 or leader.key(0) != follower.key(0):
        return 0
    common = leader.common_edge(follower)
    edges = [edge for edge in (*leader.turn_edges, leader.last_edge) if edge <= common]
    return max(common // interval_tokens * interval_tokens, *edges, 0)
