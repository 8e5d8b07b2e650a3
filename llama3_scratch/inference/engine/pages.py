"""Whose the pages of a cache are: taken, shared by prompts that begin alike, kept as long as nobody needs them.

Numbers alone, no tensors. A page that is full of tokens whose keys and values are in it is known by these tokens and
by the page before it; a prompt that begins with the same takes it instead of computing it (PagedAttention,
arXiv:2309.06180 §4.3). Only full pages are shared, so a shared page is never written to. Of a page that begins with the
same and goes on with something else the beginning can be copied.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Hashable, Sequence

from llama3_scratch.caches.paged import PAGE_SLOTS

# What the first page of a prefix follows: its salt; any other: the number that the content of the page before has.
Parent = Hashable
_Content = tuple[Parent, tuple[int, ...]]
# Beginnings of pages are known by multiples of so many tokens: a page has seven of them.
BEGINNING_TOKENS = 8


class PagePool:
    """Pages 0 … `pages` − 1, each free, held by so many sequences, or cached: held by nobody and still of use."""

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self._free = list(range(pages))[::-1]
        self._holders = [0] * pages
        self._page_of: dict[_Content, int] = {}
        self._content_of: dict[int, _Content] = {}
        self._number_of: dict[int, int] = {}  # of a page's content: never given twice
        self._numbers = itertools.count(1)
        self._beginning: dict[_Content, int] = {}  # the page that begins so
        self._beginnings_of: dict[int, list[_Content]] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()  # the least recently used first

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def cached(self) -> int:
        return len(self._cached)

    @property
    def held(self) -> int:
        return self.pages - self.free - self.cached

    @property
    def available(self) -> int:
        """How many can be taken."""
        return self.free + self.cached

    def is_cached(self, page: int) -> bool:
        """Whether it's held by nobody and still of use."""
        return page in self._cached

    def take(self) -> int:
        """A page to write to: a free one, else the one that was cached longest ago. IndexError where there is none."""
        if self._free:
            page = self._free.pop()
        else:
            if not self._cached:
                raise IndexError("all pages are held")
            page, _ = self._cached.popitem(last=False)
            self._forget(page)
        self._holders[page] = 1
        return page

    def share(self, pages: Sequence[int]) -> None:
        """Hold pages that `find` found."""
        for page in pages:
            self._cached.pop(page, None)
            self._holders[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """Hold a sequence's pages no more. The end of a prefix is forgotten before its beginning."""
        for page in reversed(pages):
            self._holders[page] -= 1
            if self._holders[page]:
                continue
            if page in self._content_of or page in self._beginnings_of:
                self._cached[page] = None
            else:
                self._free.append(page)

    def fill(self, page: int, parent: Parent, tokens: Sequence[int]) -> Parent:
        """Say that a held page is full: with these tokens, behind the content `parent`. Its content's number, which is
        the next page's parent. Where another page holds the same already, that one stays the known one.
        """
        self.begin(page, parent, tokens)
        content = (parent, tuple(tokens))
        known = self._page_of.setdefault(content, page)
        if known == page:
            self._content_of[page], self._number_of[page] = content, next(self._numbers)
        return self._number_of[known]

    def find(self, tokens: Sequence[int], salt: Parent) -> tuple[list[int], Parent]:
        """The pages that hold the beginning of these tokens, and the parent of the page behind them."""
        pages: list[int] = []
        parent = salt
        for begin in range(0, len(tokens) - PAGE_SLOTS + 1, PAGE_SLOTS):
            # The dict compares the tokens themselves, not their hash alone.
            page = self._page_of.get((parent, tuple(tokens[begin : begin + PAGE_SLOTS])))
            if page is None:
                break
            pages.append(page)
            parent = self._number_of[page]
        return pages, parent

    def begin(self, page: int, parent: Parent, tokens: Sequence[int]) -> None:
        """Say that a held page begins with these tokens, behind the content `parent`; whichever began so first stays
        the known one."""
        for n in range(BEGINNING_TOKENS, min(len(tokens), PAGE_SLOTS - 1) + 1, BEGINNING_TOKENS):
            content = (parent, tuple(tokens[:n]))
            if content not in self._beginning:
                self._beginning[content] = page
                self._beginnings_of.setdefault(page, []).append(content)

    def find_beginning(self, tokens: Sequence[int], parent: Parent) -> tuple[int, int] | None:
        """A page that begins as these tokens do, which come behind the content `parent`, and in how many of them."""
        most = min(len(tokens), PAGE_SLOTS - 1)
        for n in range(most - most % BEGINNING_TOKENS, 0, -BEGINNING_TOKENS):
            page = self._beginning.get((parent, tuple(tokens[:n])))
            if page is not None:
                if page in self._cached:
                    self._cached.move_to_end(page)
                return page, n
        return None

    def _forget(self, page: int) -> None:
        """What was in a page, which is to be written to anew."""
        content = self._content_of.pop(page, None)
        if content is not None:
            del self._page_of[content], self._number_of[page]
        for beginning in self._beginnings_of.pop(page, ()):
            del self._beginning[beginning]
