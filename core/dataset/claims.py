"""Several captions of one picture become one: what models agree on stays, what only one of them says goes.

A caption is split by rule into claims, which are tags or simple noun phrases. Rules rather than a parser: they are free,
the same everywhere, and an error costs a claim, never a picture.

    fuse([Statement("joy", "a red fox in snow"), Statement("wd14", "fox, snow, no humans")], FusionPlan())
"""

import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from ..errors import AtelierError

WORDS_PER_TOKEN = 1.3  # tokens of CLIP and T5 for a word of English, about
ESCAPED = re.compile(r"\\([()\[\]{}])")
WEIGHTED = re.compile(r"[(\[{]+\s*([^()\[\]{}:]+?)\s*:\s*\d*\.?\d+\s*[)\]}]+")  # (tag:1.2)
ENDS = re.compile(r"[.,;:!?…|()\[\]{}\"“”\n。、，；：！？]+")
WORD = re.compile(r"\w+(?:['’\-]\w+)*")
WIDE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")  # scripts in which a sign is about a word

DETERMINERS_TEXT = """
a an the this that these those his her its their some several many few any each both my your our another
"""
DETERMINERS = frozenset(DETERMINERS_TEXT.split())
NEGATIONS = frozenset({"no", "without", "not", "never"})
# Words between noun phrases; the verbs that captions link them with are among them.
LINKS_TEXT = """
and or but with in on at by to from into onto over under above below behind beside between near next against
around across through along among inside outside upon within for as while which who whose where when there is
are was were be been being has have had having wearing wears holding holds showing shows shown depicting depicts
depicted featuring features containing contains surrounded set made seen appears appear appearing looks seems it
he she they also very quite rather likely probably possibly can could may might image picture scene view
"""
LINKS = frozenset(LINKS_TEXT.split())
# Nouns and adjectives that end like a participle.
NOT_DOING_TEXT = """
building painting drawing clothing lighting evening morning ceiling string ring king wing spring wedding earring
railing thing something anything nothing everything being swing sling sting viking pudding stocking engraving
etching rendering string shading setting duckling sapling sterling wrapping legging awning
"""
NOT_DOING = frozenset(NOT_DOING_TEXT.split())


@dataclass(frozen=True)
class Claim:
    """One thing that a caption says: its words as written, and the key under which captions agree."""

    text: str
    key: str


@dataclass(frozen=True)
class Statement:
    """One model's caption of a picture, and how much it counts."""

    model: str
    caption: str
    weight: float = 1.0


@dataclass(frozen=True)
class Supported:
    """A claim with its support, who made it, its saliency, and its fate: kept, unsupported, implied or over budget."""

    text: str
    key: str
    support: float
    models: tuple[str, ...]
    saliency: float
    fate: str


@dataclass(frozen=True)
class Fusion:
    """The fused caption, its length in tokens, and every claim in the order of saliency."""

    text: str
    tokens: int
    claims: tuple[Supported, ...]


def estimate_tokens(text: str) -> int:
    """Tokens of a text where no tokenizer is at hand: 1.3 a word, rounded up; a Chinese, Japanese or Korean sign is one."""
    wide = len(WIDE.findall(text))
    return math.ceil(WORDS_PER_TOKEN * (wide + len(WIDE.sub(" ", text).split())))


@dataclass(frozen=True)
class FusionPlan:
    """How captions are fused.

    threshold  sum of weights that a claim needs; 2 is two models of weight 1
    budget     most tokens of the fused caption
    prefix     text that stands first in any case, such as the trigger word
    score      similarity of a claim to the picture, such as CLIP's cosine; None for no re-ranking
    pull       how much a similarity of 1 counts beside full support
    synonyms   word or phrase -> the one to compare it as
    count      tokens of a text
    """

    threshold: float = 2.0
    budget: int = 77
    prefix: str = ""
    score: Callable[[str], float] | None = None
    pull: float = 1.0
    synonyms: Mapping[str, str] = field(default_factory=dict)
    count: Callable[[str], int] = estimate_tokens


def split_claims(caption: str) -> tuple[Claim, ...]:
    """Split a caption into tags or simple noun phrases, each once, in the order in which they are said."""
    plain = WEIGHTED.sub(r"\1", ESCAPED.sub(r"\1", unicodedata.normalize("NFKC", caption)))
    claims: dict[str, Claim] = {}
    for part in ENDS.split(plain.replace("_", " ")):
        for phrase in _phrases(WORD.findall(part)):
            text = " ".join(phrase)
            key = normalize(text)
            if key:
                claims.setdefault(key, Claim(text, key))
    return tuple(claims.values())


def _phrases(words: list[str]) -> list[list[str]]:
    """Noun phrases of one clause: a link or determiner ends one, a negation stays with the phrase after it."""
    phrases: list[list[str]] = [[]]
    for word in words:
        low = word.casefold()
        if low in NEGATIONS:
            phrases.append(["no"])
        elif low == "of" and phrases[-1]:
            phrases[-1].append(word)
        elif low in DETERMINERS and (phrases[-1][-1:] or ["no"])[0] in ("no", "of"):
            continue
        elif low in DETERMINERS or low in LINKS or low == "of":
            phrases.append([])
        else:
            phrases[-1].append(word)
    return [piece for phrase in phrases for piece in _without_doing(phrase)]


def _without_doing(phrase: list[str]) -> list[list[str]]:
    """A phrase without "of" at its end, and a participle there as a claim of its own: "woman", "standing"."""
    while phrase and phrase[-1].casefold() == "of":
        phrase = phrase[:-1]
    if len(phrase) > 1 and phrase[0] != "no":
        last = phrase[-1].casefold()
        if last.endswith("ing") and len(last) > 4 and last not in NOT_DOING:
            return [phrase[:-1], phrase[-1:]]
    return [phrase] if phrase and phrase != ["no"] else []


def normalize(text: str) -> str:
    """The form in which phrases are compared: lower case, singular, without accents of typography, one spelling."""
    folded = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    words = re.findall(r"\w+(?:'\w+)*", folded.replace("_", " "))
    return " ".join(singular(word) for word in words)


@lru_cache(maxsize=1 << 16)
def singular(word: str) -> str:
    """An English word without its plural ending, by rule; also "gray" for "grey"."""
    if word.endswith("'s"):
        word = word[:-2]
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("sses", "shes", "ches", "xes", "zes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is", "as")):
        return word[:-1]
    return "gray" if word == "grey" else word


def implies(said: str, other: str) -> bool:
    """Whether a claim's key says another's as well: the same head, and all its words, as "long blonde hair" says "hair".

    A negation says nothing about what it denies. "X of Y" is compared by its words only where both have the same.
    """
    if said == other:
        return True
    a, b = said.split(), other.split()
    if (a[0] == "no") != (b[0] == "no") or "of" in a or "of" in b:
        return False
    return a[-1] == b[-1] and (set(b) <= set(a) if a[0] != "no" else set(a) <= set(b))


def fuse(statements: Sequence[Statement], plan: FusionPlan) -> Fusion:
    """Keep the claims with enough support, order them by saliency and fit them into the token budget.

    Support is the sum of the weights of the models that make a claim or one that implies it. Saliency is support as a
    share of all weights + pull x similarity + half of how early it is said, so it rises with each of them.

    Raises AtelierError if a weight is negative, a model speaks twice, or the prefix alone is over the budget.
    """
    _check(statements, plan)
    said = {t.model: _keyed(split_claims(t.caption), plan.synonyms) for t in statements}
    weights = {t.model: t.weight for t in statements}
    found: dict[str, Supported] = {}
    for claims in said.values():
        for key, text in claims.items():
            if key not in found:
                found[key] = _weigh(Claim(text, key), said, weights, plan)
    ordered = sorted(found.values(), key=lambda c: (-c.saliency, c.key))
    return _fit(_imply(ordered, plan.threshold), plan)


def _check(statements: Sequence[Statement], plan: FusionPlan) -> None:
    models = [t.model for t in statements]
    twice = next((m for m in models if models.count(m) > 1), None)
    if twice:
        raise AtelierError(f"{twice} speaks twice about one picture. Give each model one caption.")
    wrong = next((t for t in statements if not 0 <= t.weight < math.inf), None)
    if wrong:
        raise AtelierError(f"The weight of {wrong.model} is {wrong.weight}. Use 0 or more.")
    if plan.count(plan.prefix) > plan.budget:
        raise AtelierError(
            f'The prefix "{plan.prefix}" has {plan.count(plan.prefix)} tokens and the budget is {plan.budget}. '
            "Raise the budget or shorten the prefix."
        )


def _keyed(claims: tuple[Claim, ...], synonyms: Mapping[str, str]) -> dict[str, str]:
    """Text by key, after synonyms: a whole phrase first, then word by word."""
    same = {normalize(a): normalize(b) for a, b in synonyms.items()}
    keyed: dict[str, str] = {}
    for claim in claims:
        key = same.get(claim.key) or " ".join(same.get(w, w) for w in claim.key.split())
        keyed.setdefault(key, claim.text)
    return keyed


def _weigh(claim: Claim, said: dict[str, dict[str, str]], weights: dict[str, float], plan: FusionPlan) -> Supported:
    models = tuple(m for m, keys in said.items() if any(implies(k, claim.key) for k in keys))
    support = math.fsum(weights[m] for m in models)
    whole = math.fsum(weights.values())
    early = max(1 - list(keys).index(claim.key) / len(keys) for keys in said.values() if claim.key in keys)
    similarity = plan.score(claim.text) if plan.score else 0.0
    saliency = (support / whole if whole else 0.0) + plan.pull * similarity + early / 2
    return Supported(claim.text, claim.key, support, models, saliency, "kept")


def _imply(claims: list[Supported], threshold: float) -> list[Supported]:
    """Mark what has too little support, and what another supported claim says already."""
    # The tolerance is for sums of weights such as 0.1 + 0.2.
    enough = {c.key for c in claims if c.support >= threshold - 1e-9 and c.support > 0}
    marked = []
    for claim in claims:
        fate = claim.fate
        if claim.key not in enough:
            fate = "unsupported"
        elif any(k != claim.key and implies(k, claim.key) and not _twins(k, claim.key) for k in enough):
            fate = "implied"
        marked.append(replace(claim, fate=fate))
    return marked


def _twins(a: str, b: str) -> bool:
    """Whether two keys imply each other, so that only the order of their words differs; the lesser key stays."""
    return implies(b, a) and b < a


def _fit(claims: list[Supported], plan: FusionPlan) -> Fusion:
    """Take claims by saliency while the text, counted whole each time, stays within the budget."""
    text, fitted = plan.prefix, []
    there = {claim.key for claim in split_claims(plan.prefix)}
    for claim in claims:
        fate = "implied" if claim.key in there and claim.fate == "kept" else claim.fate
        if fate == "kept":
            longer = f"{text}, {claim.text}" if text else claim.text
            if plan.count(longer) <= plan.budget:
                text = longer
            else:
                fate = "over budget"
        fitted.append(replace(claim, fate=fate))
    return Fusion(text, plan.count(text), tuple(fitted))
