"""The prefix index: which blocks of which beginnings of texts are in the cache, and where one may go on from.

A block is 128 tokens after a chain of blocks; its key is a hash of the chain, so equal keys mean equal texts.
Append-only kinds keep one page per block. Going on needs the window and the compressor rows as well: a snapshot.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dsv4_backend.config.model import PAGE_TOKENS
from dsv4_backend.kv.pool import PagePool

KEY_BYTES = 16
Pools = Mapping[str, PagePool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What a sequence needs besides entries to go on after a block: pages by kind, oldest block first."""

    pages: Mapping[str, tuple[int, ...]]


@dataclass(slots=True, eq=False, kw_only=True)
class Block:
    """One cached block. Rule: pages hold its entries by append-only kind; `is_live` until it is evicted."""

    key: bytes
    parent: Block | None
    pages: Mapping[str, int]
    children: set[bytes] = field(default_factory=set)
    snapshot: Snapshot | None = None
    is_live: bool = True


class KeyedTokens:
    """The tokens of one sequence, which only grow, and the keys of their full blocks, computed once each.

    Rule: `may_hit` says whether the sequence may go on from what others computed.
    """

    def __init__(self, token_ids: Sequence[int], salt: str = "", *, may_hit: bool = True) -> None:
        self.token_ids = token_ids
        self.may_hit = may_hit
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


class PrefixIndex:
    """Keeps pages that no sequence needs any more, until somebody needs their place. Least recently used goes first."""

    def __init__(self, pools: Pools) -> None:
        self._pools = pools
        self._blocks: OrderedDict[bytes, Block] = OrderedDict()  # least recently used first
        self._snapshots: OrderedDict[bytes, Block] = OrderedDict()

    def get(self, key: bytes) -> Block | None:
        """Return a block by its key."""
        return self._blocks.get(key)

    def longest(self, tokens: KeyedTokens) -> list[Block]:
        """Return the longest chain of cached blocks that begins the text and ends with a snapshot.

        Rule: at least one token is left to compute.
        """
        chain, num_usable = list[Block](), 0
        most = tokens.last_edge // PAGE_TOKENS if tokens.may_hit else 0
        while len(chain) < most and (block := self._blocks.get(tokens.key(len(chain)))) is not None:
            chain.append(block)
            if block.snapshot is not None:
                num_usable = len(chain)
        return chain[:num_usable]

    def touch(self, chain: Sequence[Block]) -> None:
        """Blocks are used now, the first of a text last."""
        for block in reversed(chain):
            self._blocks.move_to_end(block.key)
            if block.snapshot is not None:
                self._snapshots.move_to_end(block.key)

    def add(self, key: bytes, parent: Block | None, pages: Mapping[str, int]) -> Block:
        """Keep the pages of a new block. The caller has asked that no block has this key."""
        block = Block(key=key, parent=parent, pages=pages)
        for kind, page in pages.items():
            self._pools[kind].keep(page)
        if parent is not None:
            parent.children.add(key)
        self._blocks[key] = block
        return block

    def add_snapshot(self, block: Block, snapshot: Snapshot) -> None:
        """Keep the pages of a snapshot after a block that has none."""
        for kind, pages in snapshot.pages.items():
            for page in pages:
                self._pools[kind].keep(page)
        block.snapshot = snapshot
        self._snapshots[block.key] = block

    def drop_snapshot(self, block: Block) -> None:
        """Let a block's snapshot go; one without is fine."""
        if block.snapshot is None:
            return
        for kind, pages in block.snapshot.pages.items():
            for page in pages:
                self._pools[kind].drop(page)
        block.snapshot = None
        del self._snapshots[block.key]

    def make_room(self, kind: str, count: int) -> bool:
        """Evict until `count` pages of a kind are free; False, with nothing evicted, where that cannot be had."""
        pool = self._pools[kind]
        if count > pool.num_available:
            return False
        while pool.num_free < count:
            self._evict(kind, pool)
        return True

    def clear(self) -> None:
        """Let everything go."""
        for block in list(self._blocks.values()):
            self._forget(block)

    def check(self) -> None:
        """Verify that links and snapshots agree. Raises: AssertionError."""
        for key, block in self._blocks.items():
            if block.key != key or not block.is_live:
                raise AssertionError("a block stands under another key, or is not live.")
            if block.parent is not None and (not block.parent.is_live or key not in block.parent.children):
                raise AssertionError("a block's parent does not know it.")
            if not block.children <= self._blocks.keys():
                raise AssertionError("a block has a child that is not cached.")
            if (block.snapshot is None) == (key in self._snapshots):
                raise AssertionError("a snapshot is listed but not there, or the reverse.")

    def held(self, kind: str) -> list[int]:
        """Return all pages of a kind that the index keeps."""
        pages = [block.pages[kind] for block in self._blocks.values() if kind in block.pages]
        for block in self._snapshots.values():
            pages += block.snapshot.pages.get(kind, ()) if block.snapshot else ()
        return pages

    def _evict(self, kind: str, pool: PagePool) -> None:
        """Free at least one page of a kind, of which at least one is evictable."""
        for block in self._snapshots.values():
            snapshot = block.snapshot
            if snapshot is not None and any(pool.is_evictable(page) for page in snapshot.pages.get(kind, ())):
                self.drop_snapshot(block)
                return
        self._forget(self._victim(kind, pool))

    def _victim(self, kind: str, pool: PagePool) -> Block:
        """Return the least recently used evictable block, one that ends a chain where there is such a one."""
        first = None
        for block in self._blocks.values():
            if pool.is_evictable(block.pages[kind]):
                if not block.children:
                    return block
                first = first or block
        if first is None:
            raise ValueError(f"no {kind} page is evictable, but {pool.num_evictable} are counted.")
        return first

    def _forget(self, block: Block) -> None:
        """Let a block go, and all that follow it: nobody could reach them."""
        if not block.is_live:
            return
        pending = [block]
        while pending:
            item = pending.pop()
            pending += [self._blocks[key] for key in item.children]
            self.drop_snapshot(item)
            for kind, page in item.pages.items():
                self._pools[kind].drop(page)
            item.is_live = False
            del self._blocks[item.key]
        if block.parent is not None:
            block.parent.children.discard(block.key)
