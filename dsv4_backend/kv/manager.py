"""Which pages each sequence holds, over all kinds: reserved together or not at all."""

from __future__ import annotations

from dataclasses import dataclass, field

from dsv4_backend.config import ServingConfig
from dsv4_backend.config.model import PAGE_TOKENS
from dsv4_backend.kv.layout import CacheLayout, KindSpec
from dsv4_backend.kv.pool import PagePool
from dsv4_backend.records import PageGrant


def page_counts(layout: CacheLayout, config: ServingConfig) -> dict[str, int]:
    """Pages per kind for the configured capacity.

    Rule: entries hold cache_tokens in all; a window needs two pages per sequence, one more where a step straddles a
          page edge, and the pages of the step itself; fixed state is one page per sequence.
    """
    counts = {}
    for kind in layout.kinds:
        if kind.is_fixed:
            counts[kind.name] = config.max_sequences
        elif kind.is_windowed:
            counts[kind.name] = 3 * config.max_sequences + config.max_step_tokens // PAGE_TOKENS
        else:
            counts[kind.name] = config.cache_tokens // PAGE_TOKENS
    return counts


@dataclass(slots=True)
class _Held:
    """Pages of one sequence and kind: `pages[i]` is block first_block + i."""

    first_block: int = 0
    pages: list[int] = field(default_factory=list)

    @property
    def next_block(self) -> int:
        return self.first_block + len(self.pages)


class CacheManager:
    """Reserves, trims and releases the pages of sequences."""

    def __init__(self, layout: CacheLayout, counts: dict[str, int]) -> None:
        self.layout = layout
        self._counts = counts
        self._pools: dict[str, PagePool] = {}
        self._held: dict[int, dict[str, _Held]] = {}
        self._covered: dict[int, int] = {}  # tokens for which every kind has pages, by sequence
        self.clear()

    def clear(self) -> None:
        """Free every page."""
        self._pools = {kind.name: PagePool(kind.name, self._counts[kind.name]) for kind in self.layout.kinds}
        self._held = {}
        self._covered = {}

    @property
    def capacity_tokens(self) -> int:
        """Tokens that one sequence can hold when it is alone."""
        pages = [self._pools[kind.name].num_pages for kind in self.layout.kinds if _grows(kind)]
        return min(pages, default=2**40) * PAGE_TOKENS

    def usage(self) -> dict[str, tuple[int, int]]:
        """Kind → (used, total) pages."""
        return {name: (pool.num_used, pool.num_pages) for name, pool in self._pools.items()}

    def can_reserve(self, sequence_id: int, num_tokens: int) -> bool:
        """Whether `reserve` with these arguments would succeed."""
        return all(
            self._missing(sequence_id, kind, num_tokens) <= self._pools[kind.name].num_free
            for kind in self.layout.kinds
        )

    def can_reserve_growing(self, sequence_id: int, num_tokens: int) -> bool:
        """Whether the kinds that grow with length have pages for a whole sequence of num_tokens."""
        return all(
            self._missing(sequence_id, kind, num_tokens) <= self._pools[kind.name].num_free
            for kind in self.layout.kinds
            if _grows(kind)
        )

    def grants(self, sequence_id: int) -> tuple[PageGrant, ...]:
        """Everything that a sequence holds, for a rank that does not know it yet."""
        return tuple(
            PageGrant(kind=name, first_block=entry.first_block, page_ids=tuple(entry.pages))
            for name, entry in self._held.get(sequence_id, {}).items()
            if entry.pages
        )

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
                pages = self._pools[kind.name].reserve(count)
                grants.append(PageGrant(kind=kind.name, first_block=entry.next_block, page_ids=pages))
                entry.pages.extend(pages)
        self._covered[sequence_id] = -(-num_tokens // PAGE_TOKENS) * PAGE_TOKENS
        return tuple(grants)

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
        for name, entry in self._held.pop(sequence_id, {}).items():
            self._pools[name].release(entry.pages)

    def check(self) -> None:
        """Verify that pages are held by exactly one sequence or free. Raises: AssertionError."""
        for name, pool in self._pools.items():
            pool.check()
            pages = [page for held in self._held.values() for page in held[name].pages]
            if len(set(pages)) != len(pages) or len(pages) != pool.num_used:
                raise AssertionError(f"{name}: {pool.num_used} pages are used, sequences hold {len(pages)}.")

    def _missing(self, sequence_id: int, kind: KindSpec, num_tokens: int) -> int:
        held = self._held.get(sequence_id)
        next_block = held[kind.name].next_block if held else 0
        wanted = 1 if kind.is_fixed else -(-num_tokens // PAGE_TOKENS)
        return max(0, wanted - next_block)


def _grows(kind: KindSpec) -> bool:
    return not kind.is_fixed and not kind.is_windowed
