"""Which pages each sequence holds, over all kinds: reserved together or not at all, shared where texts begin alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dsv4_backend.config import ServingConfig
from dsv4_backend.config.model import PAGE_TOKENS
from dsv4_backend.kv.layout import CacheLayout, KindSpec
from dsv4_backend.kv.pool import PagePool
from dsv4_backend.kv.prefix import Block, KeyedTokens, PrefixIndex, Snapshot
from dsv4_backend.records import PageCopy, PageGrant


def page_counts(layout: CacheLayout, config: ServingConfig) -> dict[str, int]:
    """Pages per kind for the configured capacity.

    Rule: entries hold cache_tokens in all; a window needs two pages per sequence, one more where a step straddles a
          page edge, and the pages of the step itself; fixed state is one page per sequence. A snapshot needs a window
          and a state besides.
    """
    counts = {}
    snapshots = config.max_snapshots if config.prefix_cache else 0
    for kind in layout.kinds:
        if kind.is_fixed:
            counts[kind.name] = config.max_sequences + snapshots
        elif kind.is_windowed:
            window = snapshots * window_blocks(layout)
            counts[kind.name] = 3 * config.max_sequences + config.max_step_tokens // PAGE_TOKENS + window
        else:
            counts[kind.name] = config.cache_tokens // PAGE_TOKENS
    return counts


def window_blocks(layout: CacheLayout) -> int:
    """Blocks before a page edge that the token after it still sees."""
    return -(-(layout.window - 1) // PAGE_TOKENS)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixRules:
    """How beginnings of texts are kept. Rule: snapshots at multiples of interval_tokens stay, besides the latest."""

    is_on: bool = False
    interval_tokens: int = 2048


@dataclass(slots=True)
class _Held:
    """Pages of one sequence and kind: `pages[i]` is block first_block + i."""

    first_block: int = 0
    pages: list[int] = field(default_factory=list)

    @property
    def next_block(self) -> int:
        return self.first_block + len(self.pages)


@dataclass(slots=True, kw_only=True)
class _Chain:
    """The kept blocks of a sequence: `last` is block num_blocks - 1, `passing` one whose snapshot the next replaces."""

    tokens: KeyedTokens
    prompt_edge: int
    last: Block | None = None
    num_blocks: int = 0
    passing: Block | None = None


class CacheManager:
    """Reserves, shares, trims and releases the pages of sequences."""

    def __init__(self, layout: CacheLayout, counts: dict[str, int], rules: PrefixRules | None = None) -> None:
        self.layout = layout
        self._counts = counts
        self._rules = rules or PrefixRules()
        self._pools: dict[str, PagePool] = {}
        self._held: dict[int, dict[str, _Held]] = {}
        self._covered: dict[int, int] = {}  # tokens for which every kind has pages, by sequence
        self._chains: dict[int, _Chain] = {}
        self._copies: list[PageCopy] = []
        self._growing = tuple(kind.name for kind in layout.kinds if _grows(kind))
        self.clear()

    def clear(self) -> None:
        """Free every page, and forget every beginning."""
        self._pools = {kind.name: PagePool(kind.name, self._counts[kind.name]) for kind in self.layout.kinds}
        self._index = PrefixIndex(self._pools)
        self._held, self._covered, self._chains, self._copies = {}, {}, {}, []

    def forget_beginnings(self) -> None:
        """The ranks lost their memory: nothing that is kept can be used again."""
        self._index.clear()
        self._copies = []

    @property
    def capacity_tokens(self) -> int:
        """Tokens that one sequence can hold when it is alone."""
        return min((self._pools[name].num_pages for name in self._growing), default=2**40) * PAGE_TOKENS

    def usage(self) -> dict[str, tuple[int, int]]:
        """Kind → (pages held by sequences, all pages)."""
        return {name: (pool.num_used, pool.num_pages) for name, pool in self._pools.items()}

    def kept(self) -> dict[str, int]:
        """Kind → pages that only the prefix index holds."""
        return {name: pool.num_evictable for name, pool in self._pools.items()}

    def can_reserve(self, sequence_id: int, num_tokens: int) -> bool:
        """Whether `reserve` with these arguments would succeed."""
        return self._has_room(sequence_id, num_tokens, self._pools)

    def can_reserve_growing(self, sequence_id: int, num_tokens: int) -> bool:
        """Whether the kinds that grow with length have pages for a whole sequence of num_tokens."""
        return self._has_room(sequence_id, num_tokens, self._growing)

    def grants(self, sequence_id: int) -> tuple[PageGrant, ...]:
        """Everything that a sequence holds, for a rank that does not know it yet."""
        return tuple(
            PageGrant(kind=name, first_block=entry.first_block, page_ids=tuple(entry.pages))
            for name, entry in self._held.get(sequence_id, {}).items()
            if entry.pages
        )

    def take_copies(self) -> tuple[PageCopy, ...]:
        """Return the copies that the ranks must make before their next step, in order."""
        copies, self._copies = tuple(self._copies), []
        return copies

    def admit(self, sequence_id: int, tokens: KeyedTokens, num_tokens: int) -> int | None:
        """Begin a sequence: share the longest beginning that is kept, and return its tokens.

        Rule: None, and nothing is held, where the kinds that grow with length lack pages for num_tokens in all.
        """
        chain = self._index.longest(tokens) if self._rules.is_on else []
        snapshot = chain[-1].snapshot if chain else None
        if snapshot is not None:
            self._share(sequence_id, chain, snapshot)
        if not self.can_reserve_growing(sequence_id, num_tokens):
            self.release(sequence_id)
            return None
        if snapshot is not None and not self._copy_state(sequence_id, snapshot):
            self.release(sequence_id)
            chain = []
        if self._rules.is_on:
            self._index.touch(chain)
            self._chains[sequence_id] = _Chain(
                tokens=tokens, prompt_edge=tokens.last_edge, last=chain[-1] if chain else None, num_blocks=len(chain)
            )
        return len(chain) * PAGE_TOKENS

    def reserve(self, sequence_id: int, num_tokens: int) -> tuple[PageGrant, ...] | None:
        """Make sure that positions [0, num_tokens) that are still visible have pages; None when a kind lacks pages."""
        if num_tokens <= self._covered.get(sequence_id, 0):
            return ()  # nearly every decoded token: the page is there
        if not self.can_reserve(sequence_id, num_tokens):
            return None
        held = self._held.setdefault(sequence_id, {kind.name: _Held() for kind in self.layout.kinds})
        grants = []
        for kind in self.layout.kinds:
            count = self._missing(sequence_id, kind, num_tokens)
            if count:
                entry = held[kind.name]
                grants.append(PageGrant(kind=kind.name, first_block=entry.next_block, page_ids=self._take(kind, count)))
                entry.pages.extend(grants[-1].page_ids)
        self._covered[sequence_id] = -(-num_tokens // PAGE_TOKENS) * PAGE_TOKENS
        return tuple(grants)

    def commit(self, sequence_id: int, num_tokens: int) -> None:
        """Positions [0, num_tokens) are computed: keep blocks that became full, and where one may go on from here."""
        chain = self._chains.get(sequence_id)
        if chain is None:
            return
        held = self._held[sequence_id]
        while (chain.num_blocks + 1) * PAGE_TOKENS <= num_tokens:
            if chain.last is not None and not chain.last.is_live:
                del self._chains[sequence_id]  # its beginning was evicted: nobody could reach what follows
                return
            key = chain.tokens.key(chain.num_blocks)
            block = self._index.get(key)
            if block is None:
                pages = {name: held[name].pages[chain.num_blocks] for name in self._growing}
                block = self._index.add(key, chain.last, pages)
            chain.last, chain.num_blocks = block, chain.num_blocks + 1
        if num_tokens == chain.num_blocks * PAGE_TOKENS and chain.last is not None and chain.last.is_live:
            self._pass(sequence_id, chain, chain.last)

    def trim(self, sequence_id: int, num_tokens: int) -> None:
        """Give back blocks that no token from position num_tokens on can see."""
        first_visible = max(0, num_tokens - self.layout.window + 1)
        for kind in self.layout.kinds:
            if kind.is_windowed:
                entry = self._held[sequence_id][kind.name]
                count = min(len(entry.pages), first_visible // PAGE_TOKENS - entry.first_block)
                if count > 0:
                    self._pools[kind.name].release(entry.pages[:count])
                    del entry.pages[:count]
                    entry.first_block += count

    def release(self, sequence_id: int) -> None:
        """Give back everything that a sequence holds; one that holds nothing is fine."""
        self._covered.pop(sequence_id, None)
        self._chains.pop(sequence_id, None)
        for name, entry in self._held.pop(sequence_id, {}).items():
            self._pools[name].release(entry.pages)

    def check(self) -> None:
        """Verify that every page has exactly the holders it counts. Raises: AssertionError."""
        self._index.check()
        for name, pool in self._pools.items():
            pool.check()
            pages = [page for held in self._held.values() for page in held[name].pages] + self._index.held(name)
            counted = [pool.holders(page) for page in range(pool.num_pages)]
            found = [0] * pool.num_pages
            for page in pages:
                found[page] += 1
            if found != counted:
                raise AssertionError(f"{name}: the holders {found} are counted as {counted}.")

    def _share(self, sequence_id: int, chain: list[Block], snapshot: Snapshot) -> None:
        """Hold the entries of a chain, and the window of its snapshot."""
        held = {kind.name: _Held() for kind in self.layout.kinds}
        for name in self._growing:
            held[name].pages = [block.pages[name] for block in chain]
        for kind in self.layout.kinds:
            if kind.is_windowed:
                pages = snapshot.pages[kind.name]
                held[kind.name] = _Held(len(chain) - len(pages), list(pages))
        for name, entry in held.items():
            self._pools[name].share(entry.pages)
        self._held[sequence_id] = held
        self._covered[sequence_id] = len(chain) * PAGE_TOKENS

    def _copy_state(self, sequence_id: int, snapshot: Snapshot) -> bool:
        """Give a sequence its own copy of a snapshot's state; False where there is no page for it."""
        for kind in self.layout.kinds:
            for page in snapshot.pages[kind.name] if kind.is_fixed else ():
                pool = self._pools[kind.name]
                pool.share((page,))  # so that making room spares it
                has_room = self._index.make_room(kind.name, 1)
                if has_room:
                    self._held[sequence_id][kind.name].pages = list(pool.reserve(1))
                    target = self._held[sequence_id][kind.name].pages[0]
                    self._copies.append(PageCopy(kind=kind.name, source=page, target=target))
                pool.release((page,))
                if not has_room:
                    return False
        return True

    def _pass(self, sequence_id: int, chain: _Chain, block: Block) -> None:
        """A sequence stands at a page edge: make it a place to go on from, instead of its passing one before."""
        is_new = block.snapshot is None
        if is_new and not self._snapshot(sequence_id, chain, block):
            return
        if chain.passing is not None and chain.passing.is_live:
            self._index.drop_snapshot(chain.passing)
        edge = chain.num_blocks * PAGE_TOKENS
        stays = edge == chain.prompt_edge or edge % self._rules.interval_tokens == 0
        chain.passing = block if is_new and not stays else None

    def _snapshot(self, sequence_id: int, chain: _Chain, block: Block) -> bool:
        """Keep the window before a page edge and a copy of the state; False where there is no page for it."""
        held, pages = self._held[sequence_id], dict[str, tuple[int, ...]]()
        for kind in self.layout.kinds:
            entry = held[kind.name]
            if kind.is_windowed:
                end = chain.num_blocks - entry.first_block
                pages[kind.name] = tuple(entry.pages[max(0, end - window_blocks(self.layout)) : end])
            elif kind.is_fixed:
                if not self._index.make_room(kind.name, 1):
                    return False
                pages[kind.name] = self._pools[kind.name].reserve(1)
                self._copies.append(PageCopy(kind=kind.name, source=entry.pages[0], target=pages[kind.name][0]))
        self._index.add_snapshot(block, Snapshot(pages=pages))
        for kind in self.layout.kinds:
            if kind.is_fixed:
                self._pools[kind.name].release(pages[kind.name])  # the index alone holds the copy
        return True

    def _take(self, kind: KindSpec, count: int) -> tuple[int, ...]:
        self._index.make_room(kind.name, count)
        return self._pools[kind.name].reserve(count)

    def _has_room(self, sequence_id: int, num_tokens: int, names: Sequence[str] | dict[str, PagePool]) -> bool:
        return all(
            self._missing(sequence_id, kind, num_tokens) <= self._pools[kind.name].num_available
            for kind in self.layout.kinds
            if kind.name in names
        )

    def _missing(self, sequence_id: int, kind: KindSpec, num_tokens: int) -> int:
        held = self._held.get(sequence_id)
        next_block = held[kind.name].next_block if held else 0
        wanted = 1 if kind.is_fixed else -(-num_tokens // PAGE_TOKENS)
        return max(0, wanted - next_block)


def _grows(kind: KindSpec) -> bool:
    return not kind.is_fixed and not kind.is_windowed
