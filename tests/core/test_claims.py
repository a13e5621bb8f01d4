"""Caption fusion: claims by hand, then planted captioners, then the laws of weights and budgets."""

import math
import random
from dataclasses import replace

import pytest

from flux_atelier.core.dataset.claims import (
    FusionPlan,
    Statement,
    estimate_tokens,
    fuse,
    implies,
    normalize,
    split_claims,
)
from flux_atelier.core.errors import AtelierError

NOUNS_TEXT = """fox owl lamp violin bridge lantern teapot harbor castle meadow glacier canoe tulip falcon piano windmill orchard
compass lighthouse barrel saddle kettle anchor pebble ribbon mirror candle basket hammer pigeon turtle walnut
cactus igloo jacket ladder magnet napkin oyster parrot quilt rocket sandal tunnel umbrella vessel wagon yacht
zebra acorn balloon cabbage dolphin engine feather gondola helmet island jungle kimono lobster mitten nectar
obelisk paddle quarry raven scarf temple urn valley walrus xylophone yoke zipper almond beacon chimney desk
easel fern garlic hedge inkwell jar kite lemon moth nest olive plum quill rake spoon tent violet wreath"""
NOUNS = NOUNS_TEXT.split()
COLOURS = ["red", "blue", "green", "golden", "silver", "wooden", "ancient", "broken", "tiny", "striped"]


def keys(caption):
    return [c.key for c in split_claims(caption)]


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("1girl, long_hair, blue eyes", ["1girl", "long hair", "blue eye"]),
        ("(masterpiece:1.2), cat \\(animal\\)", ["masterpiece", "cat", "animal"]),
        ("A woman standing in a field of tulips.", ["woman", "standing", "field of tulip"]),
        ("The image shows an old man wearing a red hat and glasses", ["old man", "red hat", "glass"]),
        ("a bright painting of a ship", ["bright painting of ship"]),
        ("a tall building", ["tall building"]),
        ("a street without any cars, no people", ["street", "no car", "no people"]),
        ("Two foxes; Two Foxes! grey sky", ["two fox", "gray sky"]),
        ("", []),
        ("..., the, and of", []),
        ("夕焼け、海。", ["夕焼け", "海"]),
    ],
)
def test_a_caption_is_split_into_its_claims(caption, expected):
    assert keys(caption) == expected


@pytest.mark.parametrize(
    ("said", "other", "expected"),
    [
        ("long blonde hair", "hair", True),
        ("long blonde hair", "blonde hair", True),
        ("hair", "blonde hair", False),
        ("hair salon", "hair", False),
        ("no hat", "hat", False),
        ("no hat", "no red hat", True),
        ("no red hat", "no hat", False),
        ("field of tulip", "tulip", False),
    ],
)
def test_a_claim_implies_what_has_the_same_head(said, other, expected):
    assert implies(said, other) is expected


def test_fusion_by_hand():
    told = [
        Statement("a", "a red fox in snow, a castle"),
        Statement("b", "fox, snow, pine trees"),
        Statement("c", "snow, fox, an owl"),
    ]
    fusion = fuse(told, FusionPlan(prefix="trg"))
    fates = {c.key: (c.support, c.fate) for c in fusion.claims}
    assert fates == {
        "fox": (3.0, "kept"),
        "snow": (3.0, "kept"),
        "red fox": (1.0, "unsupported"),
        "castle": (1.0, "unsupported"),
        "pine tree": (1.0, "unsupported"),
        "owl": (1.0, "unsupported"),
    }
    assert fusion.text == "trg, fox, snow" and fusion.tokens == math.ceil(3 * 1.3)
    assert next(c.models for c in fusion.claims if c.key == "red fox") == ("a",)


def test_what_a_kept_claim_says_already_is_not_said_again():
    told = [Statement("a", "long blonde hair"), Statement("b", "long blonde hair, hair"), Statement("c", "blonde hair")]
    fusion = fuse(told, FusionPlan())
    assert fusion.text == "long blonde hair"
    assert {c.key: c.fate for c in fusion.claims} == {
        "long blonde hair": "kept",
        "blonde hair": "implied",
        "hair": "implied",
    }


def test_of_two_claims_with_the_same_words_one_stays():
    told = [Statement(m, "big red hat, red big hat") for m in "ab"]
    assert fuse(told, FusionPlan()).text == "big red hat"


def test_synonyms_agree():
    told = [Statement("a", "an automobile"), Statement("b", "a red car")]
    assert fuse(told, FusionPlan()).text == ""
    assert fuse(told, FusionPlan(synonyms={"automobile": "cars"})).text == "automobile"


@pytest.mark.parametrize(
    ("told", "plan", "words"),
    [
        ([Statement("a", "x"), Statement("a", "y")], FusionPlan(), "speaks twice"),
        ([Statement("a", "x", -1)], FusionPlan(), "weight of a"),
        ([Statement("a", "x", math.nan)], FusionPlan(), "weight of a"),
        ([], FusionPlan(budget=1, prefix="two words"), "budget is 1"),
    ],
)
def test_wrong_input_is_told(told, plan, words):
    with pytest.raises(AtelierError, match=words):
        fuse(told, plan)


def test_nobody_says_nothing():
    fusion = fuse([], FusionPlan())
    assert (fusion.text, fusion.tokens, fusion.claims) == ("", 0, ())


def written(rng, phrases):
    """A caption that says these phrases, as tags or as prose, in the spelling of some captioner."""
    style = rng.randrange(3)
    if style == 0:
        return ", ".join(p.replace(" ", "_") for p in phrases)
    if style == 1:
        return ", ".join(rng.choice((p, p.title(), p + "s")) for p in phrases)
    joined = "The image shows a " + phrases[0]
    for phrase in phrases[1:]:
        joined += rng.choice((" and a ", " with the ", " beside a ", ". There is a ", ", next to an ")) + phrase
    return joined + "."


def planted(rng):
    """Three captions, and the keys that one model alone says and that two or three say."""
    things = [f"{rng.choice(COLOURS)} {n}" if rng.random() < 0.5 else n for n in rng.sample(NOUNS, 14)]
    alone, agreed, said = set(), set(), {m: [] for m in "abc"}
    for thing in things:
        models = rng.sample("abc", rng.choice((1, 1, 2, 3)))
        (alone if len(models) == 1 else agreed).add(normalize(thing))
        for m in models:
            said[m].append(thing)
    for phrases in said.values():
        rng.shuffle(phrases)
    return [Statement(m, written(rng, p)) for m, p in said.items() if p], alone, agreed


def test_planted_captioners_lose_what_one_says_and_keep_what_two_say():
    rng = random.Random(3)
    dropped, alone_all, kept, agreed_all = 0, 0, 0, 0
    for _ in range(200):
        told, alone, agreed = planted(rng)
        fusion = fuse(told, FusionPlan(budget=10_000))
        out = {c.key for c in split_claims(fusion.text)}
        dropped, alone_all = dropped + len(alone - out), alone_all + len(alone)
        kept, agreed_all = kept + len(agreed & out), agreed_all + len(agreed)
    print(f"dropped {dropped}/{alone_all}, kept {kept}/{agreed_all}")
    assert alone_all > 500 and agreed_all > 500
    assert dropped / alone_all >= 0.95
    assert kept / agreed_all >= 0.95


def test_more_weight_never_loses_a_model_its_claims():
    rng = random.Random(4)
    grew = 0
    for _ in range(100):
        told, _, _ = planted(rng)
        told = [replace(t, weight=rng.uniform(0, 1.5)) for t in told]
        plan = FusionPlan(threshold=rng.uniform(0.5, 2.5), budget=10_000)
        at = rng.randrange(len(told))
        more = [replace(t, weight=t.weight + rng.uniform(0.2, 2)) if i == at else t for i, t in enumerate(told)]
        before = {c.key: c for c in fuse(told, plan).claims}
        after = {c.key: c for c in fuse(more, plan).claims}
        assert before.keys() == after.keys()
        for key, claim in before.items():
            risen = after[key].support > claim.support
            assert risen == (told[at].model in claim.models)
            assert after[key].support >= claim.support
            if claim.fate in ("kept", "implied"):
                assert after[key].fate != "unsupported"
        grew += sum(c.fate == "kept" for c in after.values()) > sum(c.fate == "kept" for c in before.values())
    assert grew > 10


def test_a_higher_similarity_never_moves_a_claim_back_or_out():
    rng = random.Random(5)
    moved = 0
    for _ in range(100):
        told, _, agreed = planted(rng)
        if not agreed:
            continue
        scores = {k: rng.random() for k in agreed}
        lucky = rng.choice(sorted(agreed))
        plan = FusionPlan(budget=12, score=lambda text, s=scores: s.get(normalize(text), 0.0))
        better = scores | {lucky: scores[lucky] + 0.5}
        raised = replace(plan, score=lambda text, s=better: s.get(normalize(text), 0.0))
        before, after = fuse(told, plan).claims, fuse(told, raised).claims
        places = [[c.key for c in claims].index(lucky) for claims in (before, after)]
        assert places[1] <= places[0]
        if before[places[0]].fate == "kept":
            assert after[places[1]].fate == "kept"
        moved += places[1] < places[0]
    assert moved > 30


def letters(text):
    """A tokenizer that gives two tokens to nothing at all and one to every three signs."""
    return 2 + -(-len(text) // 3)


@pytest.mark.parametrize("count", [estimate_tokens, letters])
def test_the_budget_holds_always(count):
    rng = random.Random(6)
    cut = 0
    for _ in range(300):
        told, _, _ = planted(rng)
        plan = FusionPlan(rng.choice((1, 2)), rng.randint(4, 60), rng.choice(("", "trg")), count=count)
        fusion = fuse(told, plan)
        assert count(fusion.text) <= plan.budget and fusion.tokens == count(fusion.text)
        assert fusion.text.startswith(plan.prefix)
        over = [c for c in fusion.claims if c.fate == "over budget"]
        cut += bool(over)
    assert cut > 50


@pytest.mark.parametrize(("text", "tokens"), [("", 0), ("one", 2), ("one two three", 4), ("夕焼け", 4)])
def test_tokens_are_estimated_from_words(text, tokens):
    assert estimate_tokens(text) == tokens
