"""What the captions of a dataset say: words and phrases and how often, what nearly all say, and what none says.

Words are counted by captions that have them, not by how often they stand there. All captions together become one array
of numbers, so that 50,000 of them are counted in seconds.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import AtelierError
from .captions import with_trigger
from .claims import estimate_tokens, normalize, singular
from .diversity import evenness
from .lint import FEWEST, STOPS, WORD
from .stored import StoredRow, counting_places

LONGEST_PHRASE = 4  # words
RAREST = 0.02  # share of captions below which phrases are not looked for
NESTED = 0.9  # a phrase within a longer one is told by itself if the longer one has less than this share of it

# What a caption can say of a picture, by axis and value; phrases in lower case, the longest that fits wins.
# Edit it for another subject: an axis that matters, in the words of its captions.
AXES: Mapping[str, Mapping[str, str]] = {
    "shot size": {
        "close-up": "close up; closeup; macro; face shot; headshot; head shot; extreme close up; detail shot",
        "medium": "medium shot; waist up; upper body; half body; half length; bust; cowboy shot; medium close up",
        "full": "full body; full length; full shot; whole body; head to toe",
        "wide": "wide shot; long shot; wide angle; establishing shot; panorama; panoramic; aerial view; distant view",
    },
    "angle": {
        "front": "front view; from the front; frontal; facing the viewer; facing viewer; looking at viewer; facing the camera; "
        "looking at the camera; looking at camera",
        "side": "side view; from the side; from side; in profile; profile view; side profile; three quarter view",
        "back": "back view; from behind; rear view; seen from behind; from the back",
        "high": "from above; high angle; bird's eye view; top down; overhead view; overhead shot",
        "low": "from below; low angle; worm's eye view",
    },
    "light": {
        "daylight": "daylight; sunlight; sunlit; sunny; natural light; natural lighting; daytime; midday; overcast",
        "golden hour": "golden hour; sunset; sunrise; dawn; dusk; twilight; warm light; evening light",
        "night": "night; nighttime; moonlight; moonlit; neon; starry; streetlights; dark",
        "studio": "studio lighting; studio light; softbox; rim light; backlit; backlighting; spotlight; candlelight",
    },
    "place": {
        "indoors": "indoors; indoor; room; kitchen; bedroom; studio; office; interior; living room; cafe; hall",
        "city": "city; street; urban; town; building; buildings; market; bridge; village; alley",
        "nature": "forest; beach; mountain; mountains; field; garden; park; sea; ocean; river; lake; desert; sky; "
        "landscape; outdoors; outdoor; countryside; meadow; woods",
        "plain": "white background; plain background; simple background; grey background; gray background; "
        "black background; solid background; blank background",
    },
    "people": {
        "none": "no people; no humans; no one; nobody; without people; empty street; still life; deserted",
        "one": "man; woman; boy; girl; person; child; lady; 1girl; 1boy; solo; portrait of a; one person; a figure",
        "two": "two people; two women; two men; two girls; two boys; couple; 2girls; 2boys; two children; two figures; "
        "two persons; pair of",
        "several": "people; women; men; girls; boys; children; crowd; group of; persons; figures; family; "
        "three people; three women; three men; three girls; 3girls; multiple girls",
    },
    "medium": {
        "photograph": "photo; photograph; photography; photorealistic; dslr; film grain; polaroid; 35mm",
        "painting": "painting; oil painting; watercolor; watercolour; acrylic; gouache; fresco; brush strokes; impasto",
        "drawing": "drawing; sketch; ink; pencil; charcoal; line art; lineart; pastel; engraving; etching; woodcut",
        "digital": "digital art; illustration; 3d; 3d render; render; cgi; vector; pixel art; concept art; digital painting",
        "anime": "anime; manga; cartoon; comic; cel shading; cel shaded",
    },
}  # fmt: skip


@dataclass(frozen=True)
class Said:
    """A word or phrase, and in how many captions it is, as a number and as a share."""

    text: str
    count: int
    share: float


@dataclass(frozen=True)
class Axis:
    """What captions say on one axis: captions by value, and the share that says nothing on it."""

    name: str
    counts: Mapping[str, int]
    silent: float

    @property
    def missing(self) -> tuple[str, ...]:
        return tuple(value for value, count in self.counts.items() if not count)

    @property
    def evenness(self) -> float:
        return evenness(list(self.counts.values()))


@dataclass(frozen=True)
class WordRules:
    """How captions are read.

    trigger    the trigger word; empty for none
    share      share of captions from which a phrase is in nearly all, in (0, 1]
    budget     tokens of a caption that are read
    most       words told, and phrases
    preferred  models whose captions stand before others, the first first
    """

    trigger: str = ""
    share: float = 0.8
    budget: int = 512
    most: int = 40
    preferred: tuple[str, ...] = ()


@dataclass(frozen=True)
class Words:
    """What the captions say.

    captions    pictures with a caption; `without` those that have none
    authors     captions by who wrote them, all captions of a picture counted
    vocabulary  different words, singular
    lengths     words of each caption; tokens, of each caption, about
    over        captions with more tokens than are read
    triggered   share of captions with the trigger; None without one
    common      words and phrases in at least the rules' share of captions, the trigger aside
    """

    captions: int
    without: int
    authors: Mapping[str, int]
    vocabulary: int
    lengths: tuple[int, ...]
    tokens: tuple[int, ...]
    over: int
    triggered: float | None
    words: tuple[Said, ...]
    phrases: tuple[Said, ...]
    common: tuple[Said, ...]
    axes: tuple[Axis, ...]


def caption_of(row: StoredRow, preferred: Sequence[str] = ()) -> str:
    """The caption that stands for a picture, chosen as a view does: a human's, else a preferred model's, else the last model's.

    preferred  names of models, the first that has a caption wins
    ->         the first caption of whoever was chosen; empty if there is none
    """
    texts = [c for c in row.captions if c.text.strip()]
    return next((texts[place].text for place in counting_places(texts, preferred)), "")


def read_words(rows: Sequence[StoredRow], rules: WordRules, axes: Mapping[str, Mapping[str, str]] = AXES) -> Words:
    """Read the captions of a dataset.

    rows  pictures; of each one caption counts, see caption_of
    axes  axis -> value -> phrases parted by semicolons
    Raises AtelierError if the share is not within (0, 1].
    """
    if not 0 < rules.share <= 1:
        raise AtelierError(f"`share` is {rules.share}. Use more than 0 and at most 1.")
    texts = [text for row in rows if (text := caption_of(row, rules.preferred))]
    tokens = tuple(estimate_tokens(text) for text in texts)
    split = [
        [[w.casefold().replace("’", "'") for w in WORD.findall(part)] for part in _clauses(text)] for text in texts
    ]
    corpus = _Corpus.read(split)
    said = corpus.frequent(max(1, round(RAREST * len(texts))))
    known = {g: n for g, n in said.items() if g[0] not in STOPS and g[-1] not in STOPS}
    return Words(
        captions=len(texts),
        without=len(rows) - len(texts),
        authors=dict(sorted(Counter(_author(c) for row in rows for c in row.captions).items())),
        vocabulary=len(corpus.words),
        lengths=tuple(sum(map(len, clauses)) for clauses in split),
        tokens=tokens,
        over=sum(count > rules.budget for count in tokens),
        triggered=_triggered(texts, rules.trigger),
        words=_ranked({g: n for g, n in known.items() if len(g) == 1}, len(texts), rules.most),
        phrases=_ranked(_whole({g: n for g, n in known.items() if len(g) > 1}), len(texts), rules.most),
        common=_common(known, len(texts), rules),
        axes=read_axes(split, axes),
    )


def _clauses(text: str) -> list[str]:
    """A caption's parts between signs that are no space, underscore or hyphen, in lower case."""
    return text.casefold().replace("’", "'").translate(BREAKS).split("\n")


BREAKS = {ord(sign): "\n" for sign in '.,;:!?…|()[]{}"“”\r/<>=+*。、，；：！？（）'} | {ord("_"): " ", ord("-"): " "}


def _author(caption) -> str:
    return "human" if caption.author == "human" else caption.model or caption.author


def _triggered(texts: Sequence[str], trigger: str) -> float | None:
    if not trigger or not texts:
        return None
    return sum(with_trigger(text, trigger) == text for text in texts) / len(texts)


@dataclass(frozen=True)
class _Corpus:
    """All words of all captions in one line: numbers of words, the caption each stands in, and the clause."""

    words: tuple[str, ...]
    ids: np.ndarray
    caption: np.ndarray
    clause: np.ndarray

    @classmethod
    def read(cls, split: Sequence[Sequence[Sequence[str]]]) -> "_Corpus":
        numbers: dict[str, int] = {}
        ids: list[int] = []
        sizes: list[int] = []
        owners: list[int] = []
        for caption, clauses in enumerate(split):
            for clause in clauses:
                ids += [numbers.setdefault(singular(word), len(numbers)) for word in clause]
                sizes.append(len(clause))
                owners.append(caption)
        clause = np.repeat(np.arange(len(sizes)), sizes)
        return cls(tuple(numbers), np.array(ids, np.int64), np.repeat(np.array(owners, np.int64), sizes), clause)

    def frequent(self, least: int) -> dict[tuple[str, ...], int]:
        """Words and phrases of up to 4 words in at least so many captions, with that number.

        A phrase is in no more captions than its beginning or its end, so others are not counted (Agrawal & Srikant 1994).
        """
        found: dict[tuple[str, ...], int] = {}
        at, gram = np.arange(len(self.ids)), self.ids
        captions = int(self.caption[-1]) + 1 if at.size else 0
        for size in range(1, LONGEST_PHRASE + 1):
            if not at.size:
                break
            kinds, first, gram = np.unique(gram, return_index=True, return_inverse=True)
            once = np.unique(gram * captions + self.caption[at])
            counts = np.bincount(once // captions, minlength=len(kinds))
            for kind in np.flatnonzero(counts >= least):
                start = at[first[kind]]
                found[tuple(self.words[i] for i in self.ids[start : start + size])] = int(counts[kind])
            keep = counts[gram] >= least
            at, gram = at[keep], gram[keep]
            # Both parts of the next longer phrase are frequent, and lie in one clause.
            lined = np.full(len(self.ids) + 1, -1, np.int64)
            lined[at] = gram
            last = at + size
            inside = last < len(self.ids)
            inside[inside] &= self.clause[last[inside]] == self.clause[at[inside]]
            keep = inside & (lined[at + 1] >= 0)
            at, gram = at[keep], gram[keep] * len(self.words) + self.ids[at[keep] + size]
        return found


def _ranked(said: Mapping[tuple[str, ...], int], captions: int, most: int) -> tuple[Said, ...]:
    order = sorted(said, key=lambda gram: (-said[gram], -len(gram), gram))[:most]
    return tuple(Said(" ".join(gram), said[gram], said[gram] / captions) for gram in order)


def _within(gram: tuple[str, ...], other: tuple[str, ...]) -> bool:
    return any(other[at : at + len(gram)] == gram for at in range(len(other) - len(gram) + 1))


def _whole(said: Mapping[tuple[str, ...], int]) -> dict[tuple[str, ...], int]:
    """Phrases but for those that nearly always stand in a longer one."""
    nested: dict[tuple[str, ...], int] = {}
    for gram, count in said.items():
        for size in range(1, len(gram)):
            for at in range(len(gram) - size + 1):
                part = gram[at : at + size]
                nested[part] = max(nested.get(part, 0), count)
    return {gram: count for gram, count in said.items() if nested.get(gram, 0) < NESTED * count}


def _common(said: Mapping[tuple[str, ...], int], captions: int, rules: WordRules) -> tuple[Said, ...]:
    """Words and phrases in nearly all captions, of nested ones the longest; few captions have none."""
    if captions < FEWEST:
        return ()
    trigger = tuple(normalize(rules.trigger.replace("-", " ")).split())
    often = {g: n for g, n in said.items() if n >= rules.share * captions - 1e-9}
    free = {g: n for g, n in often.items() if not trigger or not (_within(trigger, g) or _within(g, trigger))}
    longest = {g: n for g, n in free.items() if not any(len(o) > len(g) and _within(g, o) for o in free)}
    return _ranked(longest, captions, rules.most)


def read_axes(split: Sequence[Sequence[Sequence[str]]], axes: Mapping[str, Mapping[str, str]]) -> tuple[Axis, ...]:
    """Count what captions say on each axis.

    split  captions of clauses of words, lower case
    """
    starts: dict[str, list[tuple[tuple[str, ...], list[tuple[str, str]]]]] = {}
    meant: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for axis, values in axes.items():
        for value, phrases in values.items():
            for phrase in phrases.split(";"):
                meant.setdefault(tuple(phrase.replace("-", " ").split()), []).append((axis, value))
    for phrase in sorted(meant, key=lambda p: (-len(p), p)):
        starts.setdefault(phrase[0], []).append((phrase, meant[phrase]))
    tally: Counter[tuple[str, str]] = Counter()
    spoken: Counter[str] = Counter()
    for clauses in split:
        said = {pair for clause in clauses for pair in _meant(clause, starts)}
        tally.update(said)
        spoken.update({axis for axis, _ in said})
    count = max(1, len(split))
    return tuple(
        Axis(axis, {value: tally[axis, value] for value in values}, 1 - spoken[axis] / count)
        for axis, values in axes.items()
    )


def _meant(clause: Sequence[str], starts: Mapping[str, list]) -> set[tuple[str, str]]:
    """(axis, value) of every phrase in a clause; at each place the longest one on an axis, which covers its words."""
    found: set[tuple[str, str]] = set()
    covered: dict[str, int] = {}
    for at, word in enumerate(clause):
        for phrase, pairs in starts.get(word, ()):
            if tuple(clause[at : at + len(phrase)]) != phrase:
                continue
            for axis, value in pairs:
                if covered.get(axis, 0) <= at:
                    found.add((axis, value))
                    covered[axis] = at + len(phrase)
    return found
