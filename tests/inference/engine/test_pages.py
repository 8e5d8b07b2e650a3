"""Pages taken, shared, cached and given back, in any order: none is lost, and none that is shared is written to."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llama3_scratch.caches.paged import PAGE_SLOTS
from llama3_scratch.inference.engine.pages import PagePool


def page_of(letter: int) -> list[int]:
    return [letter] * PAGE_SLOTS


class Pages(RuleBasedStateMachine):
    """Texts of a few letters, a page each, of sequences that hold their pages; the model of it is what each holds."""

    @initialize(pages=st.integers(1, 9))
    def begin(self, pages):
        self.pool = PagePool(pages)
        self.held: list[tuple[str, list[int], list[int]]] = []  # salt, letters, pages
        self.written: dict[int, tuple] = {}  # a page's content, as its first holder wrote it

    @rule(letters=st.lists(st.integers(0, 2), min_size=1, max_size=4), salt=st.sampled_from("ab"))
    def a_sequence_comes(self, letters, salt):
        tokens = [token for letter in letters for token in page_of(letter)]
        shared, parent = self.pool.find(tokens, salt)
        self.pool.share(shared)
        if self.pool.available < len(letters) - len(shared):
            self.pool.release(shared)
            return
        for number, page in enumerate(shared):
            assert self.written[page] == (salt, tuple(letters[: number + 1])), "what was found is what was written"
        pages = [*shared]
        for number in range(len(shared), len(letters)):
            page = self.pool.take()
            assert not any(page in pages for _, _, pages in self.held), "nobody else's page is written to"
            self.written[page] = (salt, tuple(letters[: number + 1]))
            parent = self.pool.fill(page, parent, page_of(letters[number]))
            pages.append(page)
        self.held.append((salt, letters, pages))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def a_sequence_goes(self, data):
        _, _, pages = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.pool.release(pages)

    @invariant()
    def all_pages_are_somewhere(self):
        if not hasattr(self, "pool"):
            return
        pool = self.pool
        assert pool.free + pool.cached + pool.held == pool.pages
        assert pool.held == len({page for _, _, pages in self.held for page in pages})

    @invariant()
    def what_is_held_is_found(self):
        for salt, letters, pages in getattr(self, "held", []):
            found, _ = self.pool.find([token for letter in letters for token in page_of(letter)], salt)
            assert len(found) == len(pages)


Pages.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None, derandomize=True)
TestPages = Pages.TestCase


def test_the_least_recently_used_goes_first_and_the_end_of_a_text_before_its_beginning():
    pool = PagePool(4)
    texts = {}
    for letter in (1, 2):
        first, second = pool.take(), pool.take()
        parent = pool.fill(first, "", page_of(letter))
        pool.fill(second, parent, page_of(9))
        texts[letter] = [first, second]
    pool.release(texts[2])
    pool.release(texts[1])
    assert (pool.free, pool.cached, pool.held) == (0, 4, 0)
    assert [pool.take() for _ in range(4)] == [*texts[2][::-1], *texts[1][::-1]]
    with pytest.raises(IndexError, match="all pages are held"):
        pool.take()


def test_two_that_computed_the_same_keep_one_known_page():
    pool = PagePool(3)
    one, other = pool.take(), pool.take()
    parent = pool.fill(one, "", page_of(1))
    assert pool.fill(other, "", page_of(1)) == parent
    pool.release([other])
    assert pool.find(page_of(1), "") == ([one], parent) and pool.free == 2
