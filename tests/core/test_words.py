"""Words of captions: counts by hand, a planted bias among random words, axes by the vocabulary, then a slow reference."""

import random
from collections import Counter

import pytest

from flux_atelier.core.dataset.claims import singular
from flux_atelier.core.dataset.lint import STOPS, WORD
from flux_atelier.core.dataset.stored import StoredRow, WrittenCaption
from flux_atelier.core.dataset.words import AXES, WordRules, caption_of, read_words
from flux_atelier.core.errors import AtelierError

NOUNS = [f"{a}{b}" for a in ("lamp", "boat", "stone", "bird", "tower") for b in ("ed", "ish", "let", "ly", "or", "um")]


def row(number: int, *captions: WrittenCaption | str) -> StoredRow:
    written = tuple(c if isinstance(c, WrittenCaption) else WrittenCaption(c) for c in captions)
    return StoredRow(f"{number}.png", f"d{number}", id=f"r{number}", captions=written)


def rows_of(*texts: str) -> list[StoredRow]:
    return [row(i, text) if text else row(i) for i, text in enumerate(texts)]


def counts(said) -> dict[str, int]:
    return {s.text: s.count for s in said}


def test_a_word_counts_once_a_caption():
    found = read_words(rows_of("red fox, red snow", "Two foxes in snow", "a RED hat"), WordRules())
    told = counts(found.words)
    assert (told["red"], told["snow"], told["hat"], told["two"]) == (2, 2, 1, 1)
    assert told["fox"] == 2  # singular and plural
    assert "a" not in told and "in" not in told
    assert found.words[0].share == pytest.approx(2 / 3)
    assert found.captions == 3 and found.lengths == (4, 4, 3) and found.vocabulary == 7


def test_phrases_do_not_go_over_a_comma_nor_end_with_an_article():
    texts = ["golden hour light, oil painting", "oil painting of the golden hour light", "hour, light"]
    phrases = counts(read_words(rows_of(*texts), WordRules()).phrases)
    assert phrases["golden hour light"] == 2 and phrases["oil painting"] == 2
    assert "hour light" not in phrases  # it only stands in the longer one
    assert not any("light oil" in p or p.endswith((" of", " the")) for p in phrases)


def test_phrases_are_those_of_a_slow_count():
    rng = random.Random(5)
    texts = [
        ", ".join(" ".join(rng.choice([*NOUNS[:6], "of", "the"]) for _ in range(rng.randint(1, 7))) for _ in range(3))
        for _ in range(40)
    ]
    said: Counter[str] = Counter()
    for text in texts:
        grams = set()
        for clause in text.split(","):
            words = [singular(w) for w in WORD.findall(clause)]
            grams |= {tuple(words[i : i + n]) for n in (1, 2, 3, 4) for i in range(len(words) - n + 1)}
        said.update(" ".join(g) for g in grams if g[0] not in STOPS and g[-1] not in STOPS)
    found = read_words(rows_of(*texts), WordRules(most=10_000))
    told = counts(found.words) | counts(found.phrases)
    assert told and all(said[text] == count for text, count in told.items())
    assert counts(found.words) == {text: count for text, count in said.items() if " " not in text}


@pytest.mark.parametrize("seed", range(5))
def test_a_planted_bias_is_found_and_nothing_else(seed):
    rng = random.Random(seed)
    texts = []
    for i in range(60):
        words = [rng.choice(NOUNS) for _ in range(6)]
        planted = ["thick brush strokes"] if i % 10 else []  # in 90 %
        texts.append("trg, " + ", ".join(rng.sample(words + planted, len(words + planted))))
    found = read_words(rows_of(*texts), WordRules(trigger="trg"))
    assert [(s.text, s.count) for s in found.common] == [("thick brush stroke", 54)]
    assert found.triggered == 1


def test_few_captions_have_no_bias():
    assert not read_words(rows_of(*["a red fox"] * 4), WordRules()).common
    assert read_words(rows_of(*["a red fox"] * 5), WordRules()).common[0].text == "red fox"


def test_the_trigger_may_have_a_hyphen():
    found = read_words(rows_of(*["by my-style, a cat", "by my-style, fog"] * 4), WordRules(trigger="my-style"))
    assert not found.common and found.triggered == 1


def test_pictures_without_a_caption_and_captions_too_long_are_counted():
    found = read_words(rows_of("fox", "", " ", "fox " * 30), WordRules(trigger="trg", budget=20))
    assert (found.captions, found.without, found.over, found.triggered) == (2, 2, 1, 0)
    assert found.tokens == (2, 39)


def test_which_caption_stands_for_a_picture():
    human, joy = WrittenCaption("by hand"), WrittenCaption("by joy", "model", "joy")
    florence, again = WrittenCaption("by florence", "model", "florence"), WrittenCaption("more", "model", "florence")
    assert caption_of(row(0, joy, human)) == "by hand"
    assert caption_of(row(0, joy, florence, again)) == "by florence"
    assert caption_of(row(0, joy, florence), ("wd14", "joy")) == "by joy"
    assert caption_of(row(0, WrittenCaption("  "), joy)) == "by joy"
    assert caption_of(row(0)) == ""
    assert read_words([row(0, joy, human), row(1, joy)], WordRules()).authors == {"human": 1, "joy": 2}


@pytest.mark.parametrize(
    ("text", "axis", "values"),
    [
        ("a close-up of a cat", "shot size", {"close-up"}),
        ("medium close-up", "shot size", {"medium"}),
        ("medium shot, wide_shot", "shot size", {"medium", "wide"}),
        ("seen from behind, bird’s eye view", "angle", {"back", "high"}),
        ("no people, a street", "people", {"none"}),
        ("a group of people", "people", {"several"}),
        ("1girl, solo", "people", {"one"}),
        ("two women on a beach", "people", {"two"}),
        ("two women on a beach", "place", {"nature"}),
        ("cats, dogs", "people", set()),
        ("Golden Hour", "light", {"golden hour"}),
        ("an oil painting", "medium", {"painting"}),
    ],
)
def test_axes(text, axis, values):
    found = next(a for a in read_words(rows_of(text), WordRules()).axes if a.name == axis)
    assert {value for value, count in found.counts.items() if count} == values
    assert found.silent == (0 if values else 1)
    assert set(found.missing) == set(found.counts) - values


def test_axes_count_captions_and_can_be_other_ones():
    axes = {"hat": {"top": "top hat; topper", "cap": "cap; baseball cap"}}
    found = read_words(rows_of("top hat, topper", "a cap", "baseball cap", "hat"), WordRules(), axes).axes
    assert [(a.name, dict(a.counts), a.silent) for a in found] == [("hat", {"top": 1, "cap": 2}, 0.25)]
    assert found[0].evenness == pytest.approx(0.918, abs=1e-3)


def test_every_phrase_of_the_vocabulary_leads_to_one_value_of_its_axis():
    for axis, values in AXES.items():
        phrases = [phrase.strip() for listed in values.values() for phrase in listed.split(";")]
        assert len(phrases) == len(set(phrases)), axis
        for value, listed in values.items():
            for phrase in listed.split(";"):
                found = next(a for a in read_words(rows_of(phrase), WordRules()).axes if a.name == axis)
                assert found.counts[value] == 1, phrase


def test_nothing_to_read():
    found = read_words([], WordRules(trigger="trg"))
    assert (found.captions, found.without, found.triggered, found.words, found.common) == (0, 0, None, (), ())
    assert read_words(rows_of("...", "!"), WordRules()).words == ()


def test_a_share_out_of_range_is_refused():
    with pytest.raises(AtelierError, match="share"):
        read_words([], WordRules(share=0))
