"""The report on a dataset: what its pictures and captions are like, what is repeated, what is missing, what to do.

It reads stored rows and thumbnails, never the pictures themselves, so that 50,000 rows take seconds. The pictures and
the page are drawn from it in evaluation/dataset_plots.py and dataset_page.py.

    found = report(view.rows(), store.path.parent / "thumbs", ReportOptions())
    print("\\n".join(found.lines()))
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from pydantic import Field

from ..errors import AtelierError
from ..options import Options
from .advice import Figures, Known, Suggestion, advise, not_measured
from .buckets import Bucket, make_buckets
from .diversity import (
    LOOKS,
    TOLD,
    Diversity,
    Effective,
    Spread,
    describe_thumbs,
    diversity_of,
    effective_size,
    listed,
    spread_of,
    tally,
    typicality,
)
from .duplicates import Group
from .scan import thumb_path
from .stored import StoredRow
from .words import WordRules, Words, read_words

BINS, SHOWN = 24, 8  # of a histogram; pictures of an example
PIECE = 8192
# name: title, unit, lowest and highest value of the histogram; None: as far as the values go
MEASURES: Mapping[str, tuple[str, str, float, float | None]] = {
    "shorter": ("Resolution", "pixels, shorter side", 0, None),
    "megapixels": ("Megapixels", "million pixels", 0, None),
    "aspect": ("Aspect", "width over height", -2, 2),
    "sharpness": ("Sharpness", "detail lost in one more blur", 0, 1),
    "sharp_tile": ("Edges", "Laplacian of sharp tiles", 0, None),
    "noise": ("Noise", "grey levels", 0, None),
    "exposure": ("Exposure", "mean brightness", 0, 1),
    "contrast": ("Contrast", "1st to 99th percentile", 0, 1),
    "clipped_low": ("Black", "share cut off at black", 0, 1),
    "clipped_high": ("White", "share cut off at white", 0, 1),
    "letterbox": ("Bars", "share in bars at the edges", 0, 1),
    "entropy": ("Detail", "bits a pixel", 0, 8),
    "resolution": ("Real resolution", "share of the finest detail there could be", 0, 1),
    "colourfulness": ("Colourfulness", "Hasler and Suesstrunk", 0, None),
    "hue": ("Hue", "degrees, of pictures with a colour", 0, 360),
}
DERIVED = ("shorter", "megapixels", "aspect", "hue")
EXTREMES = (
    ("Least sharp", "sharpness", 1), ("Noisiest", "noise", -1), ("Darkest", "exposure", 1), ("Brightest", "exposure", -1),
    ("Smallest", "shorter", 1),
)  # fmt: skip


class ReportOptions(Options):
    """What a report looks for."""

    trigger: str = Field("", max_length=200, description="The trigger word of the captions; empty for none.")
    common: float = Field(
        0.8, gt=0, le=1, description="Share of captions from which a word or phrase is told as being in nearly all."
    )
    resolution: int = Field(
        1024, ge=64, le=2048, multiple_of=16, description="Pixels, side of the square as large as the buckets."
    )
    columns: str = Field(
        "artist, genre, style",
        max_length=500,
        description="Names of further columns whose spread is told, with commas.",
    )
    budget: int = Field(512, ge=8, le=4096, description="Tokens of a caption that are read: 512 by T5, 77 by CLIP.")
    sample: int = Field(
        2000, ge=10, le=50000, description="Most thumbnails that are opened to measure diversity without embeddings."
    )


@dataclass(frozen=True)
class Found:
    """What else is known of a dataset.

    embeddings  [N, D], a row for each row of the report; None to measure looks from thumbnails
    by          what made the embeddings
    groups      copies, from find_duplicates; None if nothing looked for them
    faults      (path, reason) of files that are not among the rows
    splits      split by id, instead of the rows' own
    captions    models whose captions stand before others, the first first
    """

    embeddings: np.ndarray | None = None
    by: str = ""
    groups: Sequence[Group] | None = None
    faults: Sequence[tuple[str, str]] = ()
    splits: Mapping[str, str] = field(default_factory=dict)
    captions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Distribution:
    """A histogram: counts between edges; the outer ones hold what lies beyond. Quantiles are of the values themselves, 0 without any."""

    name: str
    title: str
    unit: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    measured: int
    missing: int
    low: float  # 5th percentile
    median: float
    high: float  # 95th percentile

    @property
    def circular(self) -> bool:
        """Whether the ends meet, as of hues; then there is no median."""
        return self.name == "hue"

    def told(self, value: float) -> str:
        """A value as a person reads it; aspects are kept as logarithms, so that 2:1 is as far from 1 as 1:2."""
        shown = 2**value if self.name == "aspect" else value
        return f"{shown:.0f}" if abs(shown) >= 100 else f"{shown:.3g}"


@dataclass(frozen=True)
class Example:
    """Pictures that show a figure: path in the dataset and thumbnail of each."""

    title: str
    pictures: tuple[tuple[str, Path], ...]


@dataclass(frozen=True)
class DatasetReport:
    """The figures of a dataset; distributions, words and all that follows are of the kept pictures.

    buckets  by the nearest aspect; `small` pictures are narrower or lower than theirs
    colour   mean red, green and blue in 0..1; None where nothing was measured
    """

    rows: int
    kept: int
    faults: tuple[tuple[str, str], ...]
    decisions: Mapping[str, int]
    reasons: Mapping[str, int]
    splits: Mapping[str, int]
    formats: Mapping[str, int]
    notes: Mapping[str, int]
    distributions: tuple[Distribution, ...]
    colour: tuple[float, float, float] | None
    buckets: tuple[tuple[Bucket, int], ...]
    small: int
    effective: Effective
    duplicates: int | None
    diversity: Diversity | None
    measured_on: str
    words: Words
    columns: tuple[Spread, ...]
    advice: tuple[Suggestion, ...]
    not_measured: tuple[str, ...]
    examples: tuple[Example, ...]

    def lines(self) -> list[str]:
        """The report in sentences, the same for the same figures."""
        shown = [d for d in self.distributions if d.measured and not d.circular]
        return [
            f"{self.kept} of {self.rows} pictures are kept ({listed(self.splits)}); {len(self.faults)} cannot be opened.",
            f"Decisions: {listed(self.decisions)}.",
            *(f"{d.title} ({d.unit}): {d.told(d.median)}, mostly {d.told(d.low)} to {d.told(d.high)}." for d in shown),
            f"Buckets: {listed({f'{b.width} x {b.height}:': n for b, n in self.buckets})}; {self.small} pictures are "
            "smaller than theirs.",
            *self._copy_lines(),
            *self._caption_lines(),
            *(
                f"{c.name}: {c.values} values, {c.entropy:.2f} bits; {c.share:.0%} are {c.top}."
                for c in self.columns
                if c.filled
            ),
            *(f"Suggested {s.name}: {s.value}. {s.reason}" for s in self.advice),
            *(f"Not measured: {text}" for text in self.not_measured),
        ]

    def _copy_lines(self) -> list[str]:
        e, d = self.effective, self.diversity
        told = f"{self.duplicates} in {e.groups} groups" if self.duplicates is not None else "not looked for"
        lines = [f"Copies: {told}; {e.distinct} distinct pictures, {e.by_weight:.1f} by weight."]
        if d is not None:
            last = "" if d.last_tenth is None else f"; the last tenth of them brought {d.last_tenth:.1%}"
            lines.append(
                f"Diversity of {d.pictures} pictures, measured on {self.measured_on}: Vendi score {d.vendi:.1f}, "
                f"mean similarity {d.similarity:.2f}{last}."
            )
        return lines

    def _caption_lines(self) -> list[str]:
        w = self.words
        said = f"{w.captions} ({listed(w.authors)}), {w.vocabulary} different words"
        lines = [f"Captions: {said}; {w.without} pictures have none, {w.over} captions are too long."]
        if w.triggered is not None:
            lines.append(f"The trigger is in {w.triggered:.0%} of the captions.")
        lines += [
            f'"{s.text}" is in {s.share:.0%} of the captions, so it may be learnt with everything.' for s in w.common
        ]
        return lines + [f"{a.name}: {listed(a.counts)}; {a.silent:.0%} say nothing." for a in w.axes if w.captions]


def report(
    rows: Sequence[StoredRow], thumbs: Path | None, options: ReportOptions, found: Found | None = None
) -> DatasetReport:
    """Make the report on a dataset.

    rows    all its pictures; those with a fault or a rejection are counted, and left out of the figures
    thumbs  folder of the thumbnails; None if there are none
    Raises AtelierError if embeddings do not fit the rows.
    """
    found = found or Found()
    vectors = None if found.embeddings is None else np.asarray(found.embeddings)
    if vectors is not None and (vectors.ndim != 2 or len(vectors) != len(rows)):
        raise AtelierError(
            f"The embeddings have shape {list(vectors.shape)}, and there are {len(rows)} pictures. Embed these pictures anew."
        )
    rows = [replace(r, split=found.splits.get(r.id, r.split)) for r in rows] if found.splits else rows
    at = [i for i, row in enumerate(rows) if row.fault is None and row.decision != "reject"]
    kept = [rows[i] for i in at]
    values = _values(kept)
    places, looks, unread = _looks(kept, thumbs, options.sample, None if vectors is None else vectors[at])
    diversity = diversity_of(looks) if places else None
    effective = _effective(kept, found.groups)
    rules = WordRules(options.trigger, options.common, options.budget, preferred=found.captions)
    words = read_words(kept, rules)
    train = [row for row in kept if row.split == "train"]
    figures = Figures(
        len(train), _effective(train, found.groups).by_weight, diversity and diversity.last_tenth, vectors is None
    )
    buckets, small = count_buckets(kept, options.resolution)
    faults = {(r.path, r.fault) for r in rows if r.fault is not None} | {(path, why) for path, why in found.faults}
    return DatasetReport(
        rows=len(rows),
        kept=len(kept),
        faults=tuple(sorted(faults)),
        decisions=tally(row.decision or "undecided" for row in rows if row.fault is None),
        reasons=tally((row.reason or "no reason given" for row in rows if row.decision == "reject"), TOLD),
        splits=tally(row.split for row in kept),
        formats=tally(row.format or "unknown" for row in kept),
        notes=tally((note for row in kept for note in row.notes), TOLD),
        distributions=tuple(_distribution(name, values[name]) for name in MEASURES),
        colour=_mean_colour(values),
        buckets=buckets,
        small=small,
        effective=effective,
        duplicates=None if found.groups is None else effective.pictures - effective.distinct,
        diversity=diversity,
        measured_on=(found.by or "the embeddings given") if vectors is not None else LOOKS,
        words=words,
        columns=tuple(spread_of(n, (r.columns.get(n) for r in kept)) for n in _names(options.columns)),
        advice=advise(figures),
        not_measured=not_measured(_known(kept, thumbs, found, words, unread), LOOKS),
        examples=_examples(kept, thumbs, _ends(values, places, looks), found.groups),
    )  # fmt: skip


def _names(columns: str) -> list[str]:
    return list(dict.fromkeys(name for name in (part.strip() for part in columns.split(",")) if name))


def _sizes(rows: Sequence[StoredRow]) -> np.ndarray:
    """[N, 2] width and height after a crop."""
    sizes = [row.crop[2:4] if row.crop else (row.width, row.height) for row in rows]
    return np.array(sizes, dtype=np.float64).reshape(-1, 2)


def _values(rows: Sequence[StoredRow]) -> dict[str, np.ndarray]:
    """[N] of every measure, NaN where a row lacks it."""
    names = [name for name in MEASURES if name not in DERIVED] + ["mean_red", "mean_green", "mean_blue"]
    raw = np.array([[row.scores.get(name, np.nan) for name in names] for row in rows], dtype=np.float64)
    values = dict(zip(names, raw.reshape(-1, len(names)).T, strict=True))
    sizes = _sizes(rows)
    sizes[(sizes <= 0).any(1)] = np.nan
    values["shorter"], values["megapixels"] = sizes.min(1), sizes.prod(1) / 1e6
    values["aspect"] = np.log2(sizes[:, 0] / sizes[:, 1])
    values["hue"] = _hue(np.stack([values[f"mean_{c}"] for c in ("red", "green", "blue")], axis=1))
    return values


def _hue(colors: np.ndarray) -> np.ndarray:
    """[N] hue of [N, 3] mean colours in degrees; NaN for those that are nearly grey."""
    red, green, blue = colors.T
    turn = np.degrees(np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue)) % 360
    with np.errstate(invalid="ignore"):
        return np.where(colors.max(1) - colors.min(1) > 0.03, turn, np.nan)


def _distribution(name: str, values: np.ndarray) -> Distribution:
    title, unit, low, high = MEASURES[name]
    known = values[np.isfinite(values)]
    if high is None:
        # The few highest must not press all others into one bar.
        high = float(np.quantile(known, 0.99)) * 1.02 if known.size else 1.0
        high = max(high, low + 1e-6)
    counts, edges = np.histogram(np.clip(known, low, high), BINS, (low, high))
    quantiles = np.quantile(known, (0.05, 0.5, 0.95)) if known.size else np.zeros(3)
    p5, middle, p95 = (float(q) for q in quantiles)
    return Distribution(
        name, title, unit, tuple(map(float, edges)), tuple(map(int, counts)), len(known), len(values) - len(known),
        p5, middle, p95,
    )  # fmt: skip


def _mean_colour(values: Mapping[str, np.ndarray]) -> tuple[float, float, float] | None:
    known = [values[f"mean_{c}"] for c in ("red", "green", "blue")]
    if not all(np.isfinite(v).any() for v in known):
        return None
    red, green, blue = (float(np.nanmean(v)) for v in known)
    return red, green, blue


def count_buckets(rows: Sequence[StoredRow], resolution: int) -> tuple[tuple[tuple[Bucket, int], ...], int]:
    """Count pictures by the bucket that choose_bucket gives, many at a time.

    resolution  pixels, a multiple of 16
    ->          buckets with pictures, the fullest first; and how many pictures are smaller than theirs
    """
    sizes = _sizes(rows)
    sizes = sizes[(sizes > 0).all(1)]
    buckets = sorted(make_buckets(resolution), key=lambda b: -b.width * b.height)
    ratios = np.log([b.width / b.height for b in buckets])
    own = np.log(sizes[:, 0] / sizes[:, 1])
    chosen = np.zeros(len(own), np.int64)
    for start in range(0, len(own), PIECE):
        apart = np.abs(own[start : start + PIECE, None] - ratios)
        chosen[start : start + PIECE] = apart.round(9).argmin(1)
    sides = np.array(buckets, dtype=np.float64)[chosen].reshape(-1, 2)
    counts = np.bincount(chosen, minlength=len(buckets))
    filled = [(buckets[i], int(counts[i])) for i in np.flatnonzero(counts)]
    filled.sort(key=lambda pair: (-pair[1], pair[0]))
    return tuple(filled), int((sizes < sides).any(1).sum())


def _effective(rows: Sequence[StoredRow], groups: Sequence[Group] | None) -> Effective:
    weights = {row.id: row.repeats for row in rows}
    clusters = [[own for own in (g.kept, *g.left_out) if own in weights] for g in groups or ()]
    clusters = [c for c in clusters if len(c) > 1]
    grouped = {own for cluster in clusters for own in cluster}
    singles = [weight for own, weight in weights.items() if own not in grouped]
    return effective_size([[weights[own] for own in c] for c in clusters], singles)


def _looks(
    rows: Sequence[StoredRow], thumbs: Path | None, most: int, embeddings: np.ndarray | None
) -> tuple[list[int], np.ndarray, int]:
    """Places of the rows that diversity is measured on, their embeddings, and how many thumbnails could not be opened."""
    if embeddings is not None:
        return list(range(len(rows))), embeddings, 0
    if thumbs is None:
        return [], np.zeros((0, 1), np.float32), 0
    return describe_thumbs([row.id for row in rows], [thumb_path(thumbs, row.digest) for row in rows], most)


def _known(rows: Sequence[StoredRow], thumbs: Path | None, found: Found, words: Words, unread: int) -> Known:
    unscored, unlooked = sum(not row.scores for row in rows), sum(row.boxes is None for row in rows)
    embedded, compared = found.embeddings is not None, found.groups is not None
    return Known(len(rows), words.captions, embedded, thumbs is not None, unread, unscored, unlooked, compared)


def _ends(values: Mapping[str, np.ndarray], places: Sequence[int], looks: np.ndarray) -> list[tuple[str, list[int]]]:
    """Titles and places of the pictures at both ends of what was measured."""
    ends: list[tuple[str, list[int]]] = []
    if len(places) > SHOWN:
        order = [places[i] for i in np.argsort(typicality(looks), kind="stable")]
        ends += [("Most unlike the others", order[:SHOWN]), ("Most like the others", order[::-1][:SHOWN])]
    for title, name, sign in EXTREMES:
        known = np.flatnonzero(np.isfinite(values[name]))
        if len(known) > SHOWN:
            ends.append((title, known[np.argsort(sign * values[name][known], kind="stable")][:SHOWN].tolist()))
    return ends


def _examples(
    rows: Sequence[StoredRow], thumbs: Path | None, ends: list[tuple[str, list[int]]], groups: Sequence[Group] | None
) -> tuple[Example, ...]:
    """Pictures at the ends of what was measured, and the largest groups of copies; none without thumbnails."""
    if thumbs is None:
        return ()
    place = {row.id: i for i, row in enumerate(rows)}
    largest = sorted(groups or (), key=lambda g: (-len(g.left_out), g.kept))[:3]
    copies = [[place[own] for own in (g.kept, *g.left_out) if own in place][:SHOWN] for g in largest]
    sets = ends + [(f"Copies, group {n}", members) for n, members in enumerate(copies, 1) if len(members) > 1]
    return tuple(
        Example(t, tuple((rows[i].path, thumb_path(thumbs, rows[i].digest)) for i in some)) for t, some in sets
    )
