"""Lint of captions: each fault and its mend by hand, then planted leaks among decoys, then the laws of undo."""

import random
from collections import Counter

import pytest

from flux_atelier.core.dataset.claims import normalize
from flux_atelier.core.dataset.lint import (
    LintRules,
    cut_to_budget,
    find_leaks,
    is_refusal,
    lint,
    mend,
    near_identical,
    without_phrase,
    without_refusal,
)
from flux_atelier.core.errors import AtelierError

RULES = LintRules(trigger="trg", allowed=("woman",), budget=30)
FILLERS_TEXT = """lamp violin bridge lantern teapot harbor castle meadow glacier canoe tulip falcon piano windmill orchard compass
lighthouse barrel saddle kettle anchor pebble ribbon mirror candle basket hammer pigeon turtle walnut cactus
igloo jacket ladder magnet napkin oyster parrot quilt rocket sandal tunnel umbrella vessel wagon yacht zebra
acorn balloon cabbage dolphin engine feather gondola helmet island jungle kimono lobster mitten"""
FILLERS = FILLERS_TEXT.split()
PHRASES = """oil painting;thick brush strokes;blonde hair;green eyes;freckles;watercolor style;soft pastel light;
scar on the cheek;film grain;leather jacket;anime style;visible canvas texture;muted palette;round face;nose piercing;
ink wash;golden hour glow;pointy chin;cel shading;braided ponytail""".replace("\n", "").split(";")


@pytest.mark.parametrize(
    ("text", "phrase", "expected"),
    [
        ("trg, oil painting, a dog", "oil painting", "trg, a dog"),
        ("an Oil_Painting of a dog", "oil painting", "a dog"),
        ("a woman with blue eyes stands in rain", "blue eye", "a woman stands in rain"),
        ("a woman with blue eyes.", "blue eye", "a woman."),
        ("trg, woman, (blue eyes), hat", "blue eye", "trg, woman, hat"),
        ("blue eyes", "blue eye", ""),
        ("blue-eyes, a hat, Blue eye", "blue eyes", "a hat"),
        ("blue, eyes", "blue eyes", "blue, eyes"),
        ("a\nblue eyes\nb", "blue eyes", "a\nb"),
        ("oil oil painting painting, a cat", "oil painting", "a cat"),
        ("a cat", "oil painting", "a cat"),
    ],
)
def test_a_phrase_is_taken_out_with_what_led_to_it(text, phrase, expected):
    assert without_phrase(text, phrase) == expected


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, I cannot describe this image.",
        "I am unable to identify people in images.",
        "Sorry, I can't assist with that.",
        "Unfortunately, I cannot view images.",
        "I apologize, but there is no image.",
        "As an AI language model, I do not see.",
        "Error: batch size greater than 1 is not supported.",
        "RuntimeError: CUDA out of memory",
        "Traceback (most recent call last):",
        "None",
        "  [N/A] ",
    ],
)
def test_refusals_are_known(text):
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        'a cat with a sign that says "I\'m sorry"',
        "a sorry dog in the rain",
        "a computer screen with the words Error: disk full",
        "an AI robot, as a language teacher",
        "none of the people look up",
        "trg, error page on a monitor",
        "I can see a tree",
        "unfortunately placed tree",
        "",
    ],
)
def test_captions_are_no_refusals(text):
    assert not is_refusal(text)


def test_what_is_not_a_refusal_stays():
    text = "I'm sorry, but I can't identify the person. However, a man in a red hat is seen. He smiles."
    assert without_refusal(text) == "a man in a red hat is seen. He smiles."
    assert without_refusal("Error: no batch") == ""


@pytest.mark.parametrize(
    ("text", "budget", "expected"),
    [
        ("one two", 3, "one two"),
        ("One two. Three four. Five six.", 6, "One two. Three four."),
        ("one two, three four, five six", 6, "one two, three four"),
        ("one two three", 3, "one two"),
        ("one", 1, ""),
    ],
)
def test_a_long_caption_is_cut_where_it_reads_well(text, budget, expected):
    assert cut_to_budget(text, LintRules(budget=budget)) == expected


def test_every_fault_by_hand():
    captions = {
        "a": "trg, a woman in a garden, oil painting",
        "b": "trg, a woman at the sea, oil paintings",
        "c": "a woman on a horse, an oil painting",
        "d": "trg, oil_painting, " + ", ".join(f"thing{i}" for i in range(30)),
        "e": "",
        "f": "I'm sorry, I can't help with that.",
        "g": "trg, oil painting, a woman at a sea",
        "h": " \n",
    }
    found = lint(captions, RULES)
    seen = [(f.kind, f.rows, f.about) for f in found]
    assert seen == [
        ("empty", ("e",), ""),
        ("empty", ("h",), ""),
        ("refusal", ("f",), ""),
        ("trigger", ("c",), "trg"),
        ("leak", ("a", "b", "c", "d", "g"), "oil painting"),
        ("overflow", ("d",), ""),
        ("alike", ("g",), "b"),
    ]
    after = {f.kind: mend(f, captions, RULES).after for f in found}
    assert after["empty"] == {"h": "trg"} and after["refusal"] == {"f": "trg"} and after["alike"] == {"g": "trg"}
    assert after["trigger"] == {"c": "trg, a woman on a horse, an oil painting"}
    assert after["leak"]["c"] == "a woman on a horse" and after["leak"]["g"] == "trg, a woman at a sea"
    assert RULES.count(after["overflow"]["d"]) <= 30 and after["overflow"]["d"].startswith("trg, oil_painting, thing0")


def test_the_difference_is_shown_and_undone():
    captions = {"x.png": "a cat\nin rain", "y.png": "trg, a dog"}
    finding = lint(captions, LintRules(trigger="trg"))[0]
    edit = mend(finding, captions, LintRules(trigger="trg"))
    assert edit.diff() == "--- a/x.png\n+++ b/x.png\n@@ -1,2 +1,2 @@\n-a cat\n+trg, a cat\n in rain"
    mended = edit.apply(captions)
    assert captions["x.png"] == "a cat\nin rain" and mended["x.png"] == "trg, a cat\nin rain"
    assert edit.undo(mended) == captions
    with pytest.raises(AtelierError, match=r"x\.png was changed since"):
        edit.undo(mended | {"x.png": "by hand"})


def test_without_a_trigger_none_is_missing_and_few_captions_have_no_leaks():
    captions = {str(i): "oil painting" for i in range(4)}
    assert {f.kind for f in lint(captions, LintRules())} == {"alike"}
    assert lint({}, LintRules()) == []


def test_a_share_outside_its_range_is_told():
    with pytest.raises(AtelierError, match="`share` is 0"):
        lint({}, LintRules(share=0))
    with pytest.raises(AtelierError, match=r"`alike` is 1\.5"):
        lint({}, LintRules(alike=1.5))


def spelt(rng, phrase):
    """A phrase as captioners write it."""
    return rng.choice((phrase, phrase.title(), phrase.replace(" ", "_"), phrase.replace(" ", "-"), "a " + phrase))


def planted(rng, n=60):
    """Captions, the phrases in 80 % of them or more, and those in 50 to 78 %."""
    chosen = rng.sample(PHRASES, 6)
    shares = {p: rng.uniform(0.8, 1) for p in chosen[:3]} | {p: rng.uniform(0.5, 0.78) for p in chosen[3:]}
    has = {p: set(rng.sample(range(n), -int(-s * n // 1))) for p, s in shares.items()}
    captions = {}
    for i in range(n):
        words = rng.sample(FILLERS, 6) + [spelt(rng, p) for p in chosen if i in has[p]]
        rng.shuffle(words)
        text = "trg, a woman, " + ", ".join(words) if i % 2 else "trg woman with " + ". There is ".join(words) + "."
        captions[f"{i}.png"] = text
    leaks = {normalize(p) for p in chosen if len(has[p]) >= 0.8 * n}
    return captions, leaks, {normalize(p) for p in chosen} - leaks


def test_planted_leaks_are_found_and_decoys_are_not():
    rng = random.Random(7)
    hits, found_all, leaks_all, decoys_all = 0, 0, 0, 0
    for _ in range(60):
        captions, leaks, decoys = planted(rng)
        found = {normalize(f.about) for f in find_leaks(captions, RULES)}
        hits, found_all, leaks_all = hits + len(found & leaks), found_all + len(found), leaks_all + len(leaks)
        decoys_all += len(decoys)
    print(f"precision {hits}/{found_all}, recall {hits}/{leaks_all}, {decoys_all} decoys")
    assert leaks_all >= 150 and decoys_all >= 150
    assert hits / found_all >= 0.95 and hits / leaks_all >= 0.95


def test_planted_faults_of_single_captions_are_found():
    rng = random.Random(8)
    refusals = ("I'm sorry, I can't describe it.", "Error: no image", "I cannot assist with this request.")
    faults = {"empty": lambda t: " ", "refusal": lambda t: rng.choice(refusals), "trigger": lambda t: t[5:]}
    faults["overflow"] = lambda t: t + ", " + ", ".join(rng.choices(FILLERS, k=40))
    captions, wrong = {}, set()
    for i in range(1000):
        text = "trg, " + ", ".join(rng.sample(FILLERS, 8))
        if rng.random() < 0.2:
            kind = rng.choice(sorted(faults))
            text = faults[kind](text)
            wrong.add((kind, str(i)))
        captions[str(i)] = text
    found = {(f.kind, row) for f in lint(captions, RULES) for row in f.rows}
    hits = len(found & wrong)
    print(f"precision {hits}/{len(found)}, recall {hits}/{len(wrong)}")
    assert len(wrong) > 150 and hits / len(found) >= 0.95 and hits / len(wrong) >= 0.95


def test_near_identical_captions_are_those_that_comparing_all_finds():
    rng = random.Random(9)
    bags = [rng.sample(FILLERS[:30], rng.randint(4, 12)) for _ in range(150)]
    bags += [b[:-1] if len(b) > 9 else b[::-1] for b in rng.sample(bags, 40)]
    captions = {str(i): ", ".join(b) for i, b in enumerate(bags)}
    stay, expected = [], set()
    for row, text in captions.items():
        own = set(text.split(", "))
        if any(len(own & s) >= 0.9 * len(own | s) for s in stay):
            expected.add(row)
        else:
            stay.append(own)
    assert {row for row, _ in near_identical(captions, LintRules())} == expected
    assert len(expected) >= 40


def test_a_mended_fault_is_gone_and_comes_back_with_undo():
    rng = random.Random(10)
    for _ in range(4):
        captions, _, _ = planted(rng)
        captions |= {"e": " ", "r": "Error: x", "t": "harbor", "o": "trg, " + " piano" * 60}
        kinds = Counter(f.kind for f in lint(captions, RULES))
        assert set(kinds) >= {"empty", "refusal", "trigger", "leak", "overflow"}
        for finding in lint(captions, RULES):
            edit = mend(finding, captions, RULES)
            mended = edit.apply(captions)
            left = [(f.kind, f.about, row) for f in lint(mended, RULES) for row in f.rows]
            assert not any((finding.kind, finding.about, row) in left for row in finding.rows), finding
            assert edit.undo(mended) == captions and list(mended) == list(captions)
            assert edit.diff().count("\n--- ") + edit.diff().startswith("--- ") == len(edit.before)
