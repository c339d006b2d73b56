"""Pages of one kind, with the number of holders of each. Integers only."""

from __future__ import annotations

from collections.abc import Iterable


class PagePool:
    """A free list of page ids 0 … num_pages-1. Last freed is first reused, while its rows are still warm.

    Rule: a page is free exactly if nobody holds it. Holders are sequences, and the prefix index, which `keeps` a page;
          a page that only the index holds is evictable.
    """

    def __init__(self, kind: str, num_pages: int) -> None:
        self.kind = kind
        self.num_pages = num_pages
        self.num_evictable = 0
        self._free = list(range(num_pages - 1, -1, -1))
        self._holders = [0] * num_pages
        self._num_kept = [0] * num_pages

    @property
    def num_free(self) -> int:
        """Pages that nobody holds."""
        return len(self._free)

    @property
    def num_available(self) -> int:
        """Pages that can be had, some of them by eviction."""
        return len(self._free) + self.num_evictable

    @property
    def num_used(self) -> int:
        """Pages held by sequences."""
        return self.num_pages - self.num_available

    def holders(self, page: int) -> int:
        """How many hold a page."""
        return self._holders[page]

    def is_evictable(self, page: int) -> bool:
        """Whether only the prefix index holds a page."""
        return 0 < self._num_kept[page] == self._holders[page]

    def reserve(self, count: int) -> tuple[int, ...]:
        """Take `count` pages; the caller has checked num_free."""
        if count > len(self._free):
            raise ValueError(f"{count} {self.kind} pages asked for, {len(self._free)} are free.")
        pages = tuple(self._free.pop() for _ in range(count))
        for page in pages:
            self._holders[page] = 1
        return pages

    def share(self, pages: Iterable[int]) -> None:
        """Add a holder to pages that are held. Raises: ValueError for a free page."""
        for page in pages:
            self._refuse_free(page, "shared")
            self.num_evictable -= self.is_evictable(page)
            self._holders[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """Take a holder away. Raises: ValueError for a page that is not in use (a double release)."""
        for page in pages:
            self._refuse_free(page, "released")
            if self.is_evictable(page):
                raise ValueError(f"{self.kind} page {page} is released but only the prefix index holds it.")
            self._holders[page] -= 1
            self.num_evictable += self.is_evictable(page)
            if not self._holders[page]:
                self._free.append(page)

    def keep(self, page: int) -> None:
        """The prefix index becomes a holder once more. Raises: ValueError for a free page."""
        self._refuse_free(page, "kept")
        self._holders[page] += 1
        self._num_kept[page] += 1

    def drop(self, page: int) -> None:
        """The prefix index lets a page go. Raises: ValueError if it does not hold it."""
        if not self._num_kept[page]:
            raise ValueError(f"{self.kind} page {page} is dropped but not kept.")
        self.num_evictable -= self.is_evictable(page)
        self._num_kept[page] -= 1
        self._holders[page] -= 1
        self.num_evictable += self.is_evictable(page)
        if not self._holders[page]:
            self._free.append(page)

    def check(self) -> None:
        """Verify that every page is either free or held, once. Raises: AssertionError."""
        free = set(self._free)
        if len(free) != len(self._free) or any(self._holders[page] or self._num_kept[page] for page in free):
            raise AssertionError(f"{self.kind}: the free list holds a page twice or a held page.")
        num_held = sum(count > 0 for count in self._holders)
        if len(free) + num_held != self.num_pages:
            raise AssertionError(f"{self.kind}: {self.num_pages - len(free) - num_held} pages are lost.")
        if self.num_evictable != sum(map(self.is_evictable, range(self.num_pages))):
            raise AssertionError(f"{self.kind}: num_evictable is {self.num_evictable}, which is wrong.")

    def _refuse_free(self, page: int, what: str) -> None:
        if not self._holders[page]:
            raise ValueError(f"{self.kind} page {page} is {what} but not in use.")
