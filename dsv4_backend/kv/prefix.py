"""The prefix index: which blocks of which beginnings of texts are in the cache, and where one may go on from.

A block is 128 tokens after a chain of blocks; its key is a hash of the chain, so equal keys mean equal texts. Its page
holds entries, which only grow. Going on needs windows and compressor rows as well: a snapshot, one place of the `state`
kind. What finds no room on the device any more moves to host memory where there is some, and comes back when it is hit.
"""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from dsv4_backend.config.model import PAGE_TOKENS
from dsv4_backend.kv.layout import BLOCK, KINDS, STATE
from dsv4_backend.kv.listing import DiskListing
from dsv4_backend.kv.pool import PagePool
from dsv4_backend.records import PageCopy, Tier

KEY_BYTES = 16
NUM_COMPARED = 8  # of the least recently used snapshots, the one that is cheapest to recompute goes first

Pools = Mapping[str, PagePool]


@dataclass(slots=True, eq=False, kw_only=True)
class Kept:
    """What the index keeps in one place: on the device (`page`) or in host memory (`host`), never in both."""

    page: int | None = None
    host: int | None = None


@dataclass(slots=True, eq=False, kw_only=True)
class Block:
    """One cached block, and the snapshot behind it. Rule: it `is_live` until nothing of it is cached any more."""

    key: bytes
    parent: Block | None
    entries: Kept
    snapshot: Kept | None = None
    children: set[bytes] = field(default_factory=set)
    is_live: bool = True
    is_pinned: bool = False

    def kept(self, kind: str) -> Kept | None:
        """What is kept of a kind."""
        return self.entries if kind == BLOCK else self.snapshot


class KeyedTokens:
    """The tokens of one sequence, which only grow, and the keys of their full blocks, computed once each.

    Rule: `may_hit` says whether the sequence may go on from what others computed.
          `turn_edges` are page edges where a later text is likely to part from this one: their snapshots stay.
    """

    def __init__(
        self,
        token_ids: Sequence[int],
        salt: str = "",
        *,
        may_hit: bool = True,
        turn_edges: frozenset[int] = frozenset(),
    ) -> None:
        self.token_ids = token_ids
        self.may_hit = may_hit
        self.turn_edges = turn_edges
        self._keys: list[bytes] = []
        self._root = hashlib.blake2b(salt.encode(), digest_size=KEY_BYTES, person=b"dsv4-prefix").digest()

    @property
    def last_edge(self) -> int:
        """The last page edge that leaves a token to compute."""
        return (len(self.token_ids) - 1) // PAGE_TOKENS * PAGE_TOKENS

    def key(self, block: int) -> bytes:
        """Return the key of a full block: a hash of all tokens up to its end, and of the tenant's salt."""
        while len(self._keys) <= block:
            first = len(self._keys) * PAGE_TOKENS
            tokens = array("i", self.token_ids[first : first + PAGE_TOKENS]).tobytes()
            before = self._keys[-1] if self._keys else self._root
            self._keys.append(hashlib.blake2b(tokens, digest_size=KEY_BYTES, key=before).digest())
        return self._keys[block]

    def edge_after(self, num_tokens: int) -> int:
        """The next edge at which to stop so that a snapshot can be kept: of a turn, or the last one."""
        return min((edge for edge in self.turn_edges if edge > num_tokens), default=self.last_edge)

    def common_edge(self, other: KeyedTokens) -> int:
        """The last page edge up to which both texts are the same, and behind which each has a token to compute."""
        most = min(self.last_edge, other.last_edge) // PAGE_TOKENS
        return bisect_left(range(most), True, key=lambda block: self.key(block) != other.key(block)) * PAGE_TOKENS


class PrefixIndex:
    """Keeps places that no sequence needs any more, until somebody needs their room. Least recently used goes first.

    Rule: copies between places are appended to `copies`, in the order in which they must be made.
    """

    def __init__(self, device: Pools, host: Pools, disk: DiskListing, copies: list[PageCopy]) -> None:
        self._device = device
        self._host = host
        self._disk = disk
        self._copies = copies
        self._blocks: OrderedDict[bytes, Block] = OrderedDict()  # least recently used first
        self._snapshots: OrderedDict[bytes, Block] = OrderedDict()

    def get(self, key: bytes) -> Block | None:
        """Return a block by its key."""
        return self._blocks.get(key)

    def longest(self, tokens: KeyedTokens) -> list[Block]:
        """Return the longest chain of cached blocks that begins the text and ends with a snapshot.

        Rule: at least one token is left to compute. Blocks that are on disk alone are not in the index yet.
        """
        chain, num_usable = list[Block](), 0
        most = tokens.last_edge // PAGE_TOKENS if tokens.may_hit else 0
        while len(chain) < most:
            block = self._find(tokens.key(len(chain)), chain[-1] if chain else None)
            if block is None:
                break
            chain.append(block)
            if block.snapshot is not None or self._disk.has(STATE, block.key):
                num_usable = len(chain)
        return chain[:num_usable]

    def _find(self, key: bytes, parent: Block | None) -> Block | None:
        block = self._blocks.get(key)
        if block is None and self._disk.has(BLOCK, key):
            return Block(key=key, parent=parent, entries=Kept())
        return block

    def touch(self, chain: Sequence[Block]) -> None:
        """Blocks are used now, the first of a text last."""
        for block in reversed(chain):
            self._blocks.move_to_end(block.key)
            if block.snapshot is not None:
                self._snapshots.move_to_end(block.key)

    def pin(self, chain: Iterable[Block], *, is_pinned: bool) -> None:
        """While blocks are pinned they are not evicted."""
        for block in chain:
            block.is_pinned = is_pinned

    def add(self, key: bytes, parent: Block | None, page: int) -> Block:
        """Keep the page of a new block. The caller has asked that no block has this key."""
        block = Block(key=key, parent=parent, entries=Kept())
        self.enter(block, page)
        return block

    def enter(self, block: Block, page: int) -> None:
        """Keep the page of a block that is not in the index yet."""
        self._device[BLOCK].keep(page)
        block.entries.page = page
        if block.parent is not None:
            block.parent.children.add(block.key)
        self._blocks[block.key] = block

    def forget(self, key: bytes) -> None:
        """Let a block go with all that follow it; one that is not cached is fine."""
        block = self._blocks.get(key)
        if block is not None:
            self._forget(block)

    def add_snapshot(self, block: Block, page: int) -> None:
        """Keep a state as the snapshot behind a block that has none."""
        self._device[STATE].keep(page)
        block.snapshot = Kept(page=page)
        self._snapshots[block.key] = block

    def adopt(self, block: Block, page: int) -> None:
        """A block has the same entries on the device again: that page is kept instead of the one in host memory."""
        if block.entries.host is not None:
            self._host[BLOCK].release((block.entries.host,))
            self._device[BLOCK].keep(page)
            block.entries.page, block.entries.host = page, None

    def drop_snapshot(self, block: Block) -> None:
        """Let a block's snapshot go; one without is fine."""
        if block.snapshot is not None:
            self._let_go(STATE, block.snapshot)
            block.snapshot = None
            del self._snapshots[block.key]

    def make_room(self, kind: str, count: int) -> bool:
        """Move out or evict until `count` places are free on the device; False, with nothing done, if that cannot be.

        Rule: pinned blocks that no sequence holds can stand in the way; then it is False with some evicted.
        """
        pool = self._device[kind]
        if count > pool.num_available:
            return False
        while pool.num_free < count:
            block = self._victim(kind)
            if block is None:
                return False
            self._move_out(kind, block)
        return True

    def clear(self) -> None:
        """Let everything go."""
        for block in list(self._blocks.values()):
            self._forget(block)

    def check(self) -> None:
        """Verify that links, snapshots and places agree. Raises: AssertionError."""
        for key, block in self._blocks.items():
            if block.key != key or not block.is_live or block.is_pinned:
                raise AssertionError("a block stands under another key, is not live, or was left pinned.")
            if block.parent is not None and (not block.parent.is_live or key not in block.parent.children):
                raise AssertionError("a block's parent does not know it.")
            if not block.children <= self._blocks.keys():
                raise AssertionError("a block has a child that is not cached.")
            if (block.snapshot is None) == (key in self._snapshots):
                raise AssertionError("a snapshot is listed but not there, or the reverse.")
        for kind in KINDS:
            if any((kept.page is None) == (kept.host is None) for kept in self._all(kind)):
                raise AssertionError(f"a {kind} is kept on both tiers, or on none.")
            on_host = [kept.host for kept in self._all(kind) if kept.host is not None]
            if len(on_host) != len(set(on_host)) or len(on_host) != self._host[kind].num_used:
                raise AssertionError(f"host places of {kind} are lost or held twice.")

    def held(self, kind: str) -> list[int]:
        """Return all places of a kind that the index keeps on the device."""
        return [kept.page for kept in self._all(kind) if kept.page is not None]

    def _all(self, kind: str) -> Iterator[Kept]:
        return (kept for block in self._blocks.values() if (kept := block.kept(kind)) is not None)

    def _let_go(self, kind: str, kept: Kept) -> None:
        if kept.page is not None:
            self._device[kind].drop(kept.page)
        if kept.host is not None:
            self._host[kind].release((kept.host,))

    def _move_out(self, kind: str, block: Block) -> None:
        """Free a block's place on the device: its contents go to host memory, or are lost."""
        place = self._host_place(kind)
        kept = block.kept(kind) if block.is_live else None  # the host's victim may have been its parent
        if kept is None or kept.page is None:
            if place is not None:
                self._host[kind].release((place,))
            return
        if place is None:
            self._lose(kind, block)
            return
        self._copies.append(PageCopy(kind=kind, source=kept.page, target=place, target_tier=Tier.HOST))
        self._device[kind].drop(kept.page)
        kept.page, kept.host = None, place

    def _host_place(self, kind: str) -> int | None:
        """Return a place in host memory, the least recently used one if all are taken; None where there is none."""
        pool = self._host[kind]
        if not pool.num_free:
            on_host = (block for block in self._order(kind) if _is_on_host(block.kept(kind)) and not block.is_pinned)
            victim = self._cheapest(kind, on_host)
            if victim is None:
                return None
            self._lose(kind, victim)
        return pool.reserve(1)[0] if pool.num_free else None

    def _victim(self, kind: str) -> Block | None:
        """Return a block whose place on the device can be had."""
        pool = self._device[kind]

        def can_go(block: Block) -> bool:
            kept = block.kept(kind)
            return kept is not None and kept.page is not None and not block.is_pinned and pool.is_evictable(kept.page)

        return self._cheapest(kind, (block for block in self._order(kind) if can_go(block)))

    def _order(self, kind: str) -> Iterable[Block]:
        return self._blocks.values() if kind == BLOCK else self._snapshots.values()

    def _cheapest(self, kind: str, candidates: Iterator[Block]) -> Block | None:
        """Return what to evict of candidates, least recently used first.

        Rule: of blocks the first that ends a chain, else the first; of a few snapshots the one cheapest to recompute.
        """
        if kind == STATE:
            return min(islice(candidates, NUM_COMPARED), key=_recompute_blocks, default=None)
        first = None
        for block in candidates:
            if not block.children:
                return block
            first = first or block
        return first

    def _lose(self, kind: str, block: Block) -> None:
        if kind == STATE:
            self.drop_snapshot(block)
        else:
            self._forget(block)

    def _forget(self, block: Block) -> None:
        """Let a block go, and all that follow it: nobody could reach them."""
        if not block.is_live:
            return
        pending = [block]
        while pending:
            item = pending.pop()
            pending += [self._blocks[key] for key in item.children]
            self.drop_snapshot(item)
            self._let_go(BLOCK, item.entries)
            item.is_live = False
            del self._blocks[item.key]
        if block.parent is not None:
            block.parent.children.discard(block.key)


def _is_on_host(kept: Kept | None) -> bool:
    return kept is not None and kept.host is not None


def _recompute_blocks(block: Block) -> int:
    """Blocks that must be computed again to stand behind this one without its snapshot."""
    count, before = 1, block.parent
    while before is not None and before.snapshot is None:
        count, before = count + 1, before.parent
    return count
