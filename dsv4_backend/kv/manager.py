"""Which places each sequence holds: pages that grow with it and one state, shared where texts begin alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from dsv4_backend.config import ServingConfig
from dsv4_backend.config.model import PAGE_TOKENS
from dsv4_backend.kv.layout import BLOCK, KINDS, STATE
from dsv4_backend.kv.listing import DiskListing
from dsv4_backend.kv.pool import PagePool
from dsv4_backend.kv.prefix import Block, KeyedTokens, PrefixIndex
from dsv4_backend.records import PageCopy, PageGrant, Tier

Places = Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheRules:
    """How much there is to hold, and how beginnings of texts are kept.

    Rule: device and host are places by kind. Snapshots at multiples of interval_tokens stay, besides the latest; one
          may be taken up to max_drafts tokens after its page edge, because rings still hold what stood there.
    """

    device: Places
    host: Places = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    keeps_prefixes: bool = False
    interval_tokens: int = 2048
    max_drafts: int = 0


def cache_rules(config: ServingConfig) -> CacheRules:
    """Return the rules of the settings: pages for cache_tokens, a state per sequence and per snapshot."""
    keeps_prefixes = config.prefix_cache
    snapshots = config.max_snapshots if keeps_prefixes else 0
    has_host = keeps_prefixes and config.host_cache_tokens > 0
    return CacheRules(
        device={BLOCK: config.cache_tokens // PAGE_TOKENS, STATE: config.max_sequences + snapshots},
        host={
            BLOCK: config.host_cache_tokens // PAGE_TOKENS if has_host else 0,
            STATE: config.max_host_snapshots if has_host else 0,
        },
        keeps_prefixes=keeps_prefixes,
        interval_tokens=config.snapshot_interval_tokens,
        max_drafts=config.max_drafts,
    )


@dataclass(slots=True)
class _Held:
    """Places of one sequence: `pages[i]` holds block i."""

    pages: list[int] = field(default_factory=list)
    states: list[int] = field(default_factory=list)

    def of(self, kind: str) -> list[int]:
        return self.pages if kind == BLOCK else self.states


@dataclass(slots=True, kw_only=True)
class _Chain:
    """The kept blocks of a sequence: `last` is block num_blocks - 1, `passing` one whose snapshot the next replaces."""

    tokens: KeyedTokens
    prompt_edge: int
    last: Block | None = None
    num_blocks: int = 0
    passing: Block | None = None


class CacheManager:
    """Reserves, shares and releases the places of sequences."""

    def __init__(self, rules: CacheRules, disk: DiskListing | None = None) -> None:
        self._rules = rules
        self._disk = disk or DiskListing(None)
        self._pools: dict[str, PagePool] = {}
        self._held: dict[int, _Held] = {}
        self._chains: dict[int, _Chain] = {}
        self._copies: list[PageCopy] = []
        self.clear()

    def clear(self) -> None:
        """Free every place, and forget every beginning."""
        self._pools = {kind: PagePool(kind, self._rules.device[kind]) for kind in KINDS}
        self._host = {kind: PagePool(f"host {kind}", self._rules.host[kind]) for kind in KINDS}
        self._held, self._chains, self._copies = {}, {}, []
        self._index = PrefixIndex(self._pools, self._host, self._disk, self._copies)

    def forget_beginnings(self) -> None:
        """The ranks lost their memory: nothing that is kept can be used again."""
        self._index.clear()
        self._copies.clear()

    def forget(self, keys: Iterable[bytes]) -> None:
        """What stood on disk under these keys is damaged: forget it, and all that followed."""
        for key in keys:
            self._disk.remove(key)
            self._index.forget(key)

    @property
    def has_saves(self) -> bool:
        """Whether something is to be written to disk, be there a next step or not."""
        return any(item.target_tier is Tier.DISK for item in self._copies)

    @property
    def capacity_tokens(self) -> int:
        """Tokens that one sequence can hold when it is alone."""
        return self._rules.device[BLOCK] * PAGE_TOKENS

    def usage(self) -> dict[str, tuple[int, int]]:
        """Kind → (places held by sequences, all places)."""
        return {kind: (pool.num_used, pool.num_pages) for kind, pool in self._pools.items()}

    def kept(self) -> dict[str, int]:
        """Kind → places that only the prefix index holds, those in host memory included."""
        return {kind: pool.num_evictable + self._host[kind].num_used for kind, pool in self._pools.items()}

    def grants(self, sequence_id: int) -> tuple[PageGrant, ...]:
        """Everything that a sequence holds, for a rank that does not know it yet."""
        held = self._held.get(sequence_id, _Held())
        return tuple(
            PageGrant(kind=kind, first_block=0, page_ids=tuple(held.of(kind))) for kind in KINDS if held.of(kind)
        )

    def take_copies(self) -> tuple[PageCopy, ...]:
        """Return the copies that the ranks must make before their next step, in order."""
        copies = tuple(self._copies)
        self._copies.clear()
        return copies

    def admit(self, sequence_id: int, tokens: KeyedTokens, num_tokens: int) -> int | None:
        """Begin a sequence: share the longest beginning that is kept, and return its tokens.

        Rule: None, and nothing is held, where pages for num_tokens in all are lacking.
        """
        chain = self._index.longest(tokens) if self._rules.keeps_prefixes else []
        self._index.pin(chain, is_pinned=True)
        is_shared = bool(chain) and self._share(sequence_id, chain, num_tokens)
        self._index.pin(chain, is_pinned=False)
        if not is_shared:
            self.release(sequence_id)
            chain = []
        if not self._can_take(sequence_id, BLOCK, num_tokens):
            self.release(sequence_id)
            return None
        if self._rules.keeps_prefixes:
            self._index.touch(chain)
            self._chains[sequence_id] = _Chain(
                tokens=tokens, prompt_edge=tokens.last_edge, last=chain[-1] if chain else None, num_blocks=len(chain)
            )
        return len(chain) * PAGE_TOKENS

    def fork(self, parent_id: int, child_id: int, tokens: KeyedTokens, num_tokens: int) -> bool:
        """Begin a sequence with the num_tokens that another has computed: full blocks are shared, the rest is copied.

        Rule: False, and nothing is held, where there is no room. `tokens` are the child's own.
        """
        parent, num_full = self._held[parent_id], num_tokens // PAGE_TOKENS
        held = _Held(pages=parent.pages[:num_full])
        self._pools[BLOCK].share(held.pages)
        self._held[child_id] = held
        if not (self._can_take(child_id, BLOCK, num_tokens) and self._can_take(child_id, STATE, num_tokens)):
            self.release(child_id)
            return False
        for kind in KINDS:
            taken = self._take(child_id, kind, num_tokens)
            sources = parent.of(kind)[len(held.of(kind)) - len(taken) :]
            self._copies += [
                PageCopy(kind=kind, source=source, target=target)
                for source, target in zip(sources, taken, strict=False)
            ]
        chain = self._chains.get(parent_id)
        if chain is not None and chain.num_blocks == num_full:
            self._chains[child_id] = _Chain(
                tokens=tokens, prompt_edge=chain.prompt_edge, last=chain.last, num_blocks=num_full
            )
        return True

    def reserve(self, sequence_id: int, num_tokens: int) -> tuple[PageGrant, ...] | None:
        """Make sure that positions [0, num_tokens) have pages, and the sequence a state; None where one is lacking."""
        held = self._held.get(sequence_id)
        if held and held.states and num_tokens <= len(held.pages) * PAGE_TOKENS:
            return ()  # nearly every decoded token: the page is there
        if not all(self._can_take(sequence_id, kind, num_tokens) for kind in KINDS):
            return None
        held = self._held.setdefault(sequence_id, _Held())
        grants = []
        for kind in KINDS:
            first_block = len(held.of(kind))
            page_ids = self._take(sequence_id, kind, num_tokens)
            if page_ids:
                grants.append(PageGrant(kind=kind, first_block=first_block, page_ids=page_ids))
        return tuple(grants)

    def commit(self, sequence_id: int, num_tokens: int) -> None:
        """Positions [0, num_tokens) are certain: keep blocks that became full, and where one may go on from here."""
        chain = self._chains.get(sequence_id)
        if chain is None:
            return
        pages = self._held[sequence_id].pages
        while (chain.num_blocks + 1) * PAGE_TOKENS <= num_tokens:
            if chain.last is not None and not chain.last.is_live:
                del self._chains[sequence_id]  # its beginning was evicted: nobody could reach what follows
                return
            key, page = chain.tokens.key(chain.num_blocks), pages[chain.num_blocks]
            block = self._index.get(key)
            if block is None:
                block = self._index.add(key, chain.last, page)
            else:
                self._index.adopt(block, page)
            chain.last, chain.num_blocks = block, chain.num_blocks + 1
        past_edge = num_tokens - chain.num_blocks * PAGE_TOKENS
        if past_edge <= self._rules.max_drafts and chain.last is not None and chain.last.is_live:
            self._pass(sequence_id, chain, chain.last)

    def release(self, sequence_id: int) -> None:
        """Give back everything that a sequence holds; one that holds nothing is fine."""
        chain = self._chains.pop(sequence_id, None)
        if chain is not None and self._disk.is_on:
            self._save(chain.last)
        held = self._held.pop(sequence_id, None)
        if held is not None:
            for kind in KINDS:
                self._pools[kind].release(held.of(kind))

    def check(self) -> None:
        """Verify that every place has exactly the holders it counts. Raises: AssertionError."""
        self._index.check()
        for kind, pool in self._pools.items():
            pool.check()
            pages = [page for held in self._held.values() for page in held.of(kind)] + self._index.held(kind)
            counted = [pool.holders(page) for page in range(pool.num_pages)]
            found = [0] * pool.num_pages
            for page in pages:
                found[page] += 1
            if found != counted:
                raise AssertionError(f"{kind}: the holders {found} are counted as {counted}.")

    def _share(self, sequence_id: int, chain: list[Block], num_tokens: int) -> bool:
        """Hold the pages of a chain, and a copy of the snapshot at its end; what is in host memory comes back.

        Rule: False where there is no room; the caller then releases what the sequence holds.
        """
        held = self._held[sequence_id] = _Held()
        on_device = [block.entries.page for block in chain if block.entries.page is not None]
        self._pools[BLOCK].share(on_device)  # held, so that making room spares them
        held.pages = list(on_device)
        missing = -(-num_tokens // PAGE_TOKENS) - len(on_device)
        if missing > self._pools[BLOCK].num_available:
            return False
        for block in chain:
            if block.entries.page is None:
                if not self._index.make_room(BLOCK, 1):
                    return False
                held.pages.append(self._bring(block))
        held.pages = [block.entries.page for block in chain if block.entries.page is not None]
        return self._copy_state(held, chain[-1])

    def _bring(self, block: Block) -> int:
        """Bring a block back from host memory or disk; return its page, which the caller's sequence holds."""
        page, source = self._pools[BLOCK].reserve(1)[0], block.entries.host
        if source is not None:
            self._copies.append(PageCopy(kind=BLOCK, source=source, target=page, source_tier=Tier.HOST))
            self._index.adopt(block, page)
        else:
            self._load(BLOCK, block.key, page)
            self._index.enter(block, page)
        return page

    def _copy_state(self, held: _Held, block: Block) -> bool:
        """Give a sequence its own copy of a block's snapshot; False where there is no place for it."""
        if not self._index.make_room(STATE, 1):
            return False
        held.states = list(self._pools[STATE].reserve(1))
        target, snapshot = held.states[0], block.snapshot
        if snapshot is None:
            self._load(STATE, block.key, target)
        elif snapshot.page is not None:
            self._copies.append(PageCopy(kind=STATE, source=snapshot.page, target=target))
        elif snapshot.host is not None:
            self._copies.append(PageCopy(kind=STATE, source=snapshot.host, target=target, source_tier=Tier.HOST))
        return True

    def _load(self, kind: str, key: bytes, target: int) -> None:
        self._copies.append(PageCopy(kind=kind, source=0, target=target, source_tier=Tier.DISK, key=key))

    def _save(self, block: Block | None) -> None:
        """Write the blocks of a chain and their snapshots to disk, as far as they are not there."""
        while block is not None and block.is_live:
            for kind in KINDS:
                kept = block.kept(kind)
                if kept is not None and kept.page is not None and not self._disk.has(kind, block.key):
                    self._disk.add(kind, block.key)
                    self._copies.append(
                        PageCopy(kind=kind, source=kept.page, target=0, target_tier=Tier.DISK, key=block.key)
                    )
            block = block.parent

    def _pass(self, sequence_id: int, chain: _Chain, block: Block) -> None:
        """A sequence stands at a page edge: make it a place to go on from, instead of its passing one before."""
        if chain.passing is block:
            return
        is_new = block.snapshot is None
        if is_new and not self._snapshot(self._held[sequence_id].states[0], block):
            return
        if chain.passing is not None and chain.passing.is_live:
            self._index.drop_snapshot(chain.passing)
        edge = chain.num_blocks * PAGE_TOKENS
        marked = edge == chain.prompt_edge or edge in chain.tokens.turn_edges
        stays = marked or edge % self._rules.interval_tokens == 0
        chain.passing = block if is_new and not stays else None

    def _snapshot(self, state: int, block: Block) -> bool:
        """Keep a copy of a state behind a block; False where there is no place for it."""
        if not self._index.make_room(STATE, 1):
            return False
        page = self._pools[STATE].reserve(1)
        self._copies.append(PageCopy(kind=STATE, source=state, target=page[0]))
        self._index.add_snapshot(block, page[0])
        self._pools[STATE].release(page)  # the index alone holds the copy
        return True

    def _can_take(self, sequence_id: int, kind: str, num_tokens: int) -> bool:
        return self._missing(sequence_id, kind, num_tokens) <= self._pools[kind].num_available

    def _take(self, sequence_id: int, kind: str, num_tokens: int) -> tuple[int, ...]:
        """Take what is missing of a kind; the caller has asked that it can be had."""
        count = self._missing(sequence_id, kind, num_tokens)
        self._index.make_room(kind, count)
        pages = self._pools[kind].reserve(count)
        self._held[sequence_id].of(kind).extend(pages)
        return pages

    def _missing(self, sequence_id: int, kind: str, num_tokens: int) -> int:
        held = self._held.get(sequence_id, _Held())
        wanted = 1 if kind == STATE else -(-num_tokens // PAGE_TOKENS)
        return max(0, wanted - len(held.of(kind)))
