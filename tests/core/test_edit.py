"""Edits of captions by hand, beside `re`, and against searches that never end."""

import random
import re

import pytest

from flux_atelier.core.dataset.edit import (
    Search,
    dedupe_tags,
    order_tags,
    replace_all,
    shuffle_tags,
    split_tags,
    with_ends,
)
from flux_atelier.core.errors import AtelierError


@pytest.mark.parametrize(
    ("text", "search", "expected"),
    [
        ("a cat, a catalog", Search("cat", "dog"), "a dog, a dogalog"),
        ("a cat, a catalog", Search("cat", "dog", whole_words=True), "a dog, a catalog"),
        ("Cat cat", Search("cat", "dog"), "Cat dog"),
        ("Cat cat", Search("cat", "dog", same_case=False), "dog dog"),
        ("a.b a+b", Search("a.b", "x"), "x a+b"),
        ("a.b", Search("a.b", r"\1"), r"\1"),
        ("a.b a+b", Search("a.b", "x", regex=True), "x x"),
        ("red hat", Search(r"(\w+) (?P<what>\w+)", r"\g<what> of \1", regex=True), "hat of red"),
        ("cat dog bird", Search("cat|dog", "x", regex=True, whole_words=True), "x x bird"),
        ("夕焼け\nCAT", Search("cat", "🦊", regex=True, same_case=False), "夕焼け\n🦊"),
        ("a\x00\u2028b", Search(r"\s", "_", regex=True), "a\x00_b"),
    ],
)
def test_find_and_replace(text, search, expected):
    assert replace_all([text], search) == (expected,)


def test_regular_expressions_do_as_re_does():
    rng = random.Random(0)
    texts = ["".join(rng.choices("ab, c1\n", k=30)) for _ in range(200)]
    for pattern, put in ((r"a+b?", r"<\g<0>>"), (r"(?m)^\s*(\w)", r"\1\1"), (r"[,\s]+$", ""), (r"(a)|b", r"[\1]")):
        got = replace_all(texts, Search(pattern, put, regex=True))
        assert got == tuple(re.sub(pattern, put, t) for t in texts)


@pytest.mark.parametrize("pattern", [r"(a+)+b", r"(a|aa)+$", r"(a|a?)+b", r"(.*a){25}$"])
def test_a_search_that_never_ends_is_ended(pattern):
    with pytest.raises(AtelierError, match=r"took more than 0\.5 seconds"):
        replace_all(["a" * 60 + "c"], Search(pattern, "", regex=True, seconds=0.5))


@pytest.mark.parametrize(
    ("search", "words"),
    [
        (Search(""), "has 0 characters"),
        (Search("a" * 1001), "has 1001 characters"),
        (Search("(", regex=True), "failed"),
        (Search("a", r"\2", regex=True), "failed"),
        (Search(r"(?=(a*))", r"\1" * 400, regex=True), "too long"),
    ],
)
def test_a_wrong_search_is_told(search, words):
    with pytest.raises(AtelierError, match=words):
        replace_all(["a" * 3000], search)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a, b", "trg, a, b, x"),
        ("trg, a, x", "trg, a, x"),
        ("trg", "trg, x"),
        ("", "trg, x"),
        ("trgs, a", "trg, trgs, a, x"),
    ],
)
def test_ends_are_put_once(text, expected):
    once = with_ends(text, "trg", "x")
    assert once == expected and with_ends(once, "trg", "x") == expected


@pytest.mark.parametrize(
    ("text", "tags"),
    [
        (" a,b ,, c ", ["a", "b", "c"]),
        ("(a, b:1.2), c", ["(a, b:1.2)", "c"]),
        (":(, a", [":(", "a"]),
        (">:), a, (b, c)", [">:)", "a", "(b", "c)"]),
        (r"\(, a, b", [r"\(", "a", "b"]),
        ("", []),
    ],
)
def test_tags_are_split_at_commas_outside_brackets(text, tags):
    assert split_tags(text) == tags


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cat, long_hair, Cat, long hair", "cat, long_hair"),
        ("(cat:1.2), cat, ((cat))", "(cat:1.2)"),
        (r"saber \(fate\), saber", r"saber \(fate\), saber"),
    ],
)
def test_the_first_of_equal_tags_stays(text, expected):
    assert dedupe_tags(text) == expected == dedupe_tags(expected)


def test_shuffling_keeps_the_first_and_loses_nothing():
    text = ", ".join(f"t{i}" for i in range(20))
    orders = {shuffle_tags(text, 3, random.Random(seed)) for seed in range(10)}
    assert len(orders) == 10
    for order in orders:
        assert order.startswith("t0, t1, t2, ")
        assert sorted(split_tags(order)) == sorted(split_tags(text))
    assert shuffle_tags(text, 3, random.Random(1)) == shuffle_tags(text, 3, random.Random(1))
    assert shuffle_tags(text, 99, random.Random(1)) == text


def test_named_tags_come_first_in_their_order():
    assert order_tags("x, blue eyes, y, 1girl, solo", ["1girl", "Blue_Eyes", "cat"]) == "1girl, blue eyes, x, y, solo"
    assert order_tags("b, a", []) == "b, a"
