"""Faults of captions, each with the edit that mends it, the difference it makes and the way back.

A concept is bound to the trigger word only if captions do not say it: a phrase in nearly every caption takes up what the
trigger should learn. So such phrases are leaks, and the mend is to take them out.

    for finding in lint(captions, LintRules(trigger="trg")):
        edit = mend(finding, captions, rules)
"""

import difflib
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..errors import AtelierError
from .captions import with_trigger
from .claims import DETERMINERS, LINKS, NEGATIONS, estimate_tokens, normalize, singular

LONGEST_PHRASE = 5  # words
FEWEST = 5  # captions below which "nearly all" says nothing
WORD = re.compile(r"\w+(?:['’]\w+)*")
STOPS = (DETERMINERS | LINKS | NEGATIONS | {"of"}) - {"image", "picture", "scene", "view", "wearing", "holding"}
REFUSAL = re.compile(
    r"""^\W*(?:
    (?:i['’]?m|i\s+am)\s+(?:really\s+|very\s+|so\s+)?(?:sorry|afraid)\b
    | (?:sorry|apologies|my\s+apologies|i\s+apologi[sz]e|unfortunately),?\s+(?:but\s+|for\b|i\b)
    | (?:sorry,?\s+)?i\s*(?:can['’]?t|can\s?not|won['’]?t|['’]m\s+(?:not\s+able|unable)|am\s+(?:not\s+able|unable)|don['’]t\s+feel)
      \s+(?:to\s+)?(?:\w+\s+)?(?:assist|help|describe|identify|provide|view|see|fulfil|fulfill|comply|process|create|generate|comfortable|do\s+that)
    | as\s+an?\s+(?:ai|(?:large\s+)?language\s+model)\b
    | (?:\w*error|exception)\s*:
    | traceback\s+\(most\s+recent
    | \[?(?:n/a|null|none|undefined|nan)\]?\W*$
    )""",
    re.IGNORECASE | re.VERBOSE,
)
SENTENCE = re.compile(r"[^.!?\n]*(?:[.!?]+|\n|$)\s*")


@dataclass(frozen=True)
class LintRules:
    """What captions are held to.

    trigger  the trigger word; empty for none
    allowed  phrases that may be in every caption, such as the class word
    share    share of captions from which a phrase is a leak, in (0, 1]
    budget   most tokens of a caption
    alike    share of common words from which two captions are near-identical, in (0, 1]
    count    tokens of a text
    """

    trigger: str = ""
    allowed: tuple[str, ...] = ()
    share: float = 0.8
    budget: int = 512
    alike: float = 0.9
    count: Callable[[str], int] = estimate_tokens


@dataclass(frozen=True)
class Finding:
    """A fault: its kind, the rows that have it, the phrase or row it is about, and a sentence for a person."""

    kind: str
    rows: tuple[str, ...]
    about: str
    says: str


@dataclass(frozen=True)
class Edit:
    """Captions by row before and after a mend; only those that change."""

    before: Mapping[str, str]
    after: Mapping[str, str]

    def apply(self, captions: Mapping[str, str]) -> dict[str, str]:
        """The captions after the edit; raises AtelierError if one of them was changed meanwhile."""
        return _exchange(captions, self.before, self.after)

    def undo(self, captions: Mapping[str, str]) -> dict[str, str]:
        """The captions before the edit; raises AtelierError if one of them was changed meanwhile."""
        return _exchange(captions, self.after, self.before)

    def diff(self) -> str:
        """The edit as a unified diff, one file a row."""
        lines: list[str] = []
        for row, text in self.before.items():
            old, new = (t.split("\n") if t else [] for t in (text, self.after[row]))
            lines += difflib.unified_diff(old, new, f"a/{row}", f"b/{row}", lineterm="")
        return "\n".join(lines)


def _exchange(captions: Mapping[str, str], old: Mapping[str, str], new: Mapping[str, str]) -> dict[str, str]:
    changed = next((row for row, text in old.items() if captions.get(row) != text), None)
    if changed is not None:
        raise AtelierError(f"The caption of {changed} was changed since. Check the captions again.")
    return dict(captions) | dict(new)


def lint(captions: Mapping[str, str], rules: LintRules) -> list[Finding]:
    """Find every fault of some captions.

    captions  text by row id
    ->        one finding per leaked phrase, and one per row for what is the row's own; the gravest kinds first
    Raises AtelierError if a share is not within (0, 1].
    """
    for name, share in (("share", rules.share), ("alike", rules.alike)):
        if not 0 < share <= 1:
            raise AtelierError(f"`{name}` is {share}. Use more than 0 and at most 1.")
    empty = [row for row, text in captions.items() if not text.strip()]
    refused = [row for row, text in captions.items() if is_refusal(text)]
    sound = {row: text for row, text in captions.items() if row not in {*empty, *refused}}
    found = [Finding("empty", (row,), "", "The caption is empty.") for row in empty]
    found += [Finding("refusal", (row,), "", "The caption is a refusal or an error message.") for row in refused]
    found += [Finding("trigger", (r,), rules.trigger, f"{rules.trigger} is missing.") for r in _without(sound, rules)]
    found += find_leaks(sound, rules)
    for row, text in sound.items():
        if (tokens := rules.count(text)) > rules.budget:
            found.append(Finding("overflow", (row,), "", f"{tokens} tokens; {rules.budget} are read."))
    pairs = near_identical(sound, rules)
    return found + [Finding("alike", (row,), twin, f"Nearly the same as the caption of {twin}.") for row, twin in pairs]


def _without(captions: Mapping[str, str], rules: LintRules) -> list[str]:
    return [row for row, text in captions.items() if with_trigger(text, rules.trigger) != text]


def is_refusal(text: str) -> bool:
    """Whether a caption begins with an apology, a refusal or an error message of its captioner."""
    return bool(REFUSAL.match(text))


def find_leaks(captions: Mapping[str, str], rules: LintRules) -> list[Finding]:
    """Find phrases of up to 5 words that are in at least `share` of the captions; of nested ones the longest.

    Fewer than 5 captions have no leaks.
    """
    if len(captions) < FEWEST:
        return []
    least = math.ceil(rules.share * len(captions) - 1e-9)
    # A phrase is in no more captions than its rarest word, so the others need not be counted (Agrawal & Srikant 1994).
    clauses = {row: [[word for word, _, _ in c] for c in _clauses(text)] for row, text in captions.items()}
    often = Counter(word for of_row in clauses.values() for word in {w for c in of_row for w in c})
    words = {word for word, n in often.items() if n >= least}
    grams = {row: _grams(of_row, words) for row, of_row in clauses.items()}
    said = Counter(gram for of_row in grams.values() for gram in of_row)
    free = {tuple(normalize(p).split()) for p in (rules.trigger, *rules.allowed)}
    common = [g for g, n in said.items() if n >= least and not _is_free(g, free)]
    whole = [g for g in common if not any(len(o) > len(g) and _within(g, o) for o in common)]
    findings = []
    for gram in sorted(whole, key=lambda g: (-said[g], g)):
        rows = tuple(row for row, of_row in grams.items() if gram in of_row)
        phrase = " ".join(gram)
        says = f'"{phrase}" is in {len(rows)} of {len(captions)} captions, so the trigger will not learn it.'
        findings.append(Finding("leak", rows, phrase, says))
    return findings


def _clauses(text: str) -> list[list[tuple[str, int, int]]]:
    """Words with their places, normalised; a new list after each sign that is not a space, underscore or hyphen."""
    clauses: list[list[tuple[str, int, int]]] = [[]]
    end = 0
    spaced = text.replace("_", " ")
    for match in WORD.finditer(spaced):
        if re.search(r"[^\s\-]|\n", spaced[end : match.start()]):
            clauses.append([])
        clauses[-1].append((singular(match[0].casefold().replace("’", "'")), match.start(), match.end()))
        end = match.end()
    return clauses


def _grams(clauses: list[list[str]], known: set[str]) -> set[tuple[str, ...]]:
    """Phrases of known words in a caption that neither begin nor end with one that means nothing by itself."""
    grams = set()
    for words in clauses:
        for at, first in enumerate(words):
            if first not in known or first in STOPS:
                continue
            for end in range(at + 1, min(at + LONGEST_PHRASE, len(words)) + 1):
                last = words[end - 1]
                if last not in known:
                    break
                if last not in STOPS:
                    grams.add(tuple(words[at:end]))
    return grams


def _within(gram: tuple[str, ...], other: tuple[str, ...]) -> bool:
    return any(other[at : at + len(gram)] == gram for at in range(len(other) - len(gram) + 1))


def _is_free(gram: tuple[str, ...], free: set[tuple[str, ...]]) -> bool:
    """Whether a phrase is an allowed one, or has the trigger or an allowed one in it or around it."""
    return any(f and (_within(f, gram) or _within(gram, f)) for f in free)


def _places(text: str, gram: tuple[str, ...]) -> list[tuple[int, int]]:
    places, size = [], len(gram)
    for clause in _clauses(text):
        at = 0
        while at <= len(clause) - size:
            if tuple(word for word, _, _ in clause[at : at + size]) == gram:
                places.append((_reach_back(clause, at), clause[at + size - 1][2]))
                at += size
            else:
                at += 1
    return places


def _reach_back(clause: list[tuple[str, int, int]], at: int) -> int:
    """Where a phrase begins together with the article and the link before it, which would be left hanging."""
    begin = clause[at][1]
    for words in (DETERMINERS, LINKS | {"of"}):
        if at > 0 and clause[at - 1][0] in words:
            at -= 1
            begin = clause[at][1]
    return begin


def near_identical(captions: Mapping[str, str], rules: LintRules) -> list[tuple[str, str]]:
    """Pairs of a row and an earlier one whose words are the same but for a few (Jaccard index of their sets).

    Compares only captions that share one of their rarest words (prefix filter, Bayardo et al. 2007), which are far
    fewer than all pairs. The trigger and allowed phrases do not count.
    """
    ignored = {w for p in (rules.trigger, *rules.allowed) for w in normalize(p).split()} | STOPS
    bags = {row: set(normalize(text).split()) - ignored for row, text in captions.items()}
    often = Counter(word for bag in bags.values() for word in bag)
    holders: dict[str, list[str]] = {}
    pairs = []
    for row, bag in bags.items():
        rare = sorted(bag, key=lambda w: (often[w], w))
        prefix = rare[: len(rare) - math.ceil(rules.alike * len(rare) - 1e-9) + 1]
        # A dict, not a set, so that the first of several twins is the same each time.
        near = dict.fromkeys(other for word in prefix for other in holders.get(word, ()))
        twin = next((o for o in near if len(bag & bags[o]) >= rules.alike * len(bag | bags[o]) - 1e-9), None)
        if twin:
            pairs.append((row, twin))
            continue
        for word in prefix:
            holders.setdefault(word, []).append(row)
    return pairs


def mend(finding: Finding, captions: Mapping[str, str], rules: LintRules) -> Edit:
    """The edit that mends a finding; it changes nothing where there is nothing to put in place.

    leak: without the phrase. trigger: with the word in front. overflow: cut after the last sentence, part or word that
    fits. empty, refusal, alike: what is left without the refusal, else the trigger alone, so that it is captioned anew.
    """
    texts = {row: captions[row] for row in finding.rows if row in captions}
    mended = {row: _mended(finding, text, rules) for row, text in texts.items()}
    changed = [row for row in texts if mended[row] != texts[row]]
    return Edit({row: texts[row] for row in changed}, {row: mended[row] for row in changed})


def _mended(finding: Finding, text: str, rules: LintRules) -> str:
    if finding.kind == "leak":
        return without_phrase(text, finding.about)
    if finding.kind == "trigger":
        return with_trigger(text, rules.trigger)
    if finding.kind == "overflow":
        return cut_to_budget(text, rules)
    left = without_refusal(text) if finding.kind == "refusal" else ""
    return with_trigger(left, rules.trigger)


def without_phrase(text: str, phrase: str) -> str:
    """Take a phrase out of a caption wherever it is, in any case, number and spelling, with the words that led to it."""
    gram = tuple(normalize(phrase).split())
    # Taking one out can bring the words of another together.
    while places := _places(text, gram):
        for begin, end in reversed(places):
            text = text[:begin] + "\0" + text[end:]
        text = _tidy(text)
    return text


def _tidy(text: str) -> str:
    """A caption without the punctuation and links that a hole, marked by a null, leaves around it."""
    text = re.sub(r"[ \t]*\0[ \t]*", " ", text)
    text = re.sub(r"\(\s*\)|\[\s*\]", " ", text)
    text = re.sub(r"[ \t]+([,.;:!?])", r"\1", text)
    text = re.sub(r"[,;:]+(?=[,.;:!?])", "", text)
    text = re.sub(r"(?m)^[\s,.;:]+|[ \t,;:]+$", "", re.sub(r"[ \t]{2,}", " ", text))
    # What begins with a link now, as "of a woman" after "oil painting", begins with what it linked to.
    return re.sub(r"^(?:of|and|with|by|in)\s+", "", text).strip()


def without_refusal(text: str) -> str:
    """Take the sentences of refusal out of a caption."""
    sentences = [s for s in SENTENCE.findall(text) if s.strip()]
    left = "".join(s for s in sentences if not is_refusal(s)).strip()
    return re.sub(r"^(?:however|but|that said|instead),?\s+", "", left, flags=re.IGNORECASE)


def cut_to_budget(text: str, rules: LintRules) -> str:
    """Cut a caption after the last sentence that fits the budget, else the last part, else the last word, else nothing."""
    if rules.count(text) <= rules.budget:
        return text
    for ends in (r"[.!?](?=\s)|\n", r"(?=[,;])", r"(?=\s)"):
        for place in reversed([m.end() for m in re.finditer(ends, text)]):
            short = text[:place].strip()
            if short and rules.count(short) <= rules.budget:
                return short
    return ""
