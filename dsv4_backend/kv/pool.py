"""Pages of one kind: free or used, nothing else."""

from __future__ import annotations

from collections.abc import Iterable


class PagePool:
    """A free list of page ids 0 … num_pages-1. Last freed is first reused, while its rows are still warm."""

    def __init__(self, kind: str, num_pages: int) -> None:
        self.kind = kind
        self.num_pages = num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._is_used = [False] * num_pages

    @property
    def num_free(self) -> int:
        """Pages that can be reserved now."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Pages held by sequences."""
        return self.num_pages - len(self._free)

    def reserve(self, count: int) -> tuple[int, ...]:
        """Take `count` pages; the caller has checked num_free."""
        if count > len(self._free):
            raise ValueError(f"{count} {self.kind} pages asked for, {len(self._free)} are free.")
        pages = tuple(self._free.pop() for _ in range(count))
        for page in pages:
            self._is_used[page] = True
        return pages

    def release(self, pages: Iterable[int]) -> None:
        """Give pages back. Raises: ValueError for a page that is not in use (a double release)."""
        for page in pages:
            if not self._is_used[page]:
                raise ValueError(f"{self.kind} page {page} is released but not in use.")
            self._is_used[page] = False
            self._free.append(page)

    def check(self) -> None:
        """Verify that every page is either free or used, once. Raises: AssertionError."""
        free = set(self._free)
        if len(free) != len(self._free) or any(self._is_used[page] for page in free):
            raise AssertionError(f"{self.kind}: the free list holds a page twice or a used page.")
        if len(free) + sum(self._is_used) != self.num_pages:
            raise AssertionError(f"{self.kind}: {self.num_pages - len(free) - sum(self._is_used)} pages are lost.")
