"""Pages taken, shared, cached and given back, in any order: none is lost, and none that is shared is written to."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llama3_scratch.caches.paged import PAGE_SLOTS
from llama3_scratch.inference.engine.pages import BEGINNING_TOKENS, PagePool


def page_of(letter: int) -> list[int]:
    return [letter] * PAGE_SLOTS


class Pages(RuleBasedStateMachine):
    """Texts of a few letters, a page each but the last, which may be shorter, of sequences that hold their pages; the
    model of it is what each holds."""

    @initialize(pages=st.integers(1, 9))
    def begin(self, pages):
        self.pool = PagePool(pages)
        self.held: list[tuple[str, list[int], list[int]]] = []  # salt, letters, pages
        self.written: dict[int, tuple] = {}  # a page's content, as its first holder wrote it
        self.begun: dict[int, tuple[str, list[int]]] = {}  # salt and tokens up to the end of what was begun

    @rule(
        letters=st.lists(st.integers(0, 2), min_size=1, max_size=4),
        salt=st.sampled_from("ab"),
        more=st.integers(0, PAGE_SLOTS - 1),
    )
    def a_sequence_comes(self, letters, salt, more):
        tokens = [token for letter in letters for token in page_of(letter)]
        shared, parent = self.pool.find(tokens, salt)
        self.pool.share(shared)
        if self.pool.available < len(letters) - len(shared) + bool(more):
            self.pool.release(shared)
            return
        for number, page in enumerate(shared):
            assert self.written[page] == (salt, tuple(letters[: number + 1])), "what was found is what was written"
        pages = [*shared]
        for number in range(len(shared), len(letters)):
            page = self.pool.take()
            assert not any(page in pages for _, _, pages in self.held), "nobody else's page is written to"
            self.written[page] = (salt, tuple(letters[: number + 1]))
            self.begun[page] = (salt, tokens[: (number + 1) * PAGE_SLOTS])
            parent = self.pool.fill(page, parent, page_of(letters[number]))
            pages.append(page)
        if more:
            tokens += [letters[-1]] * more
            begins = self.pool.find_beginning(tokens[len(letters) * PAGE_SLOTS :], parent)
            assert begins is not None or more < BEGINNING_TOKENS or not self.known(salt, letters, letters[-1])
            if begins is not None:
                source, n = begins
                assert n % BEGINNING_TOKENS == 0 and 0 < n <= more
                wanted = salt, tokens[: len(letters) * PAGE_SLOTS + n]
                before = self.begun[source]
                assert (before[0], before[1][: len(wanted[1])]) == wanted, "it begins as the pool says"
            page = self.pool.take()
            assert not any(page in pages for _, _, pages in self.held)
            self.begun[page] = (salt, tokens)
            self.pool.begin(page, parent, tokens[len(letters) * PAGE_SLOTS :])
            pages.append(page)
        self.held.append((salt, letters, pages))

    def known(self, salt, letters, next_letter) -> bool:
        """Whether somebody holds these letters and behind them a page of the next one, whole or begun far enough."""
        wanted = [token for letter in letters for token in page_of(letter)] + [next_letter] * BEGINNING_TOKENS
        held = [self.begun[page] for _, _, pages in self.held for page in pages]
        return any(who == salt and tokens[: len(wanted)] == wanted for who, tokens in held)

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
            assert len(found) == len(letters) <= len(pages)


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


def test_a_page_is_known_by_its_beginning_until_it_is_written_to_anew():
    pool = PagePool(2)
    one, other = pool.take(), pool.take()
    pool.begin(one, "", [1] * 20)
    pool.begin(other, "", [1] * 10 + [2] * 30)
    assert pool.find_beginning([1] * 60, "") == (one, 16) and pool.find_beginning([1] * 10 + [2] * 7, "") == (other, 16)
    assert pool.find_beginning([1] * 15, "") == (one, 8), "the first that began so"
    assert pool.find_beginning([1] * 7, "") is None and pool.find_beginning([1] * 60, "a") is None
    pool.release([one])
    pool.release([other])
    assert (pool.free, pool.cached) == (0, 2)
    assert pool.find_beginning([1] * 60, "") == (one, 16)  # used, and so the last to go
    assert pool.take() == other and pool.find_beginning([1] * 10 + [2] * 7, "") == (one, 8)
    assert pool.take() == one and pool.find_beginning([1] * 60, "") is None
    pool.release([one, other])
    assert (pool.free, pool.cached) == (2, 0)
