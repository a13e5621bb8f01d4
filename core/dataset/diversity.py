"""How different the pictures of a dataset are: Vendi score, mean similarity, coverage, and samples that count once.

All of it takes embeddings, whoever made them. Where there are none, a descriptor of colours and gradients over the
picture serves, which needs no weights; it tells pictures that look alike, not pictures that mean the same.

    diversity_of(describe(thumbnails))
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import AtelierError

LOOKS = "colours and layout, not on meaning"  # what `describe` measures on
SIDE, PLACES, CELLS, TURNS = 64, 6, 4, 8  # pixels; colours 6 x 6; gradients 4 x 4 of 8 orientations
TOLD, READERS = 20, 2  # values of a column; threads that open thumbnails
PIECE = 4096  # rows widened to float64 at a time
POINTS, ORDERS = 10, 3  # of the coverage curve
COSTLY = 2e10  # multiplications of one order from which one order has to do
# Brightness, red against green, yellow against blue; each within -1..1 of a picture's colours.
OPPONENT = np.array([[2 / 3, 1, 0.5], [2 / 3, -1, 0.5], [2 / 3, 0, -1]], dtype=np.float32)


@dataclass(frozen=True)
class Diversity:
    """What embeddings tell of N pictures.

    vendi       1..N, how many wholly different pictures would be as diverse
    similarity  -1..1, mean cosine of all pairs
    curve       (pictures, Vendi score) for growing parts, in a shuffled order
    last_tenth  share of the Vendi score that the last tenth of the pictures brought; None below 10 pictures
    """

    pictures: int
    vendi: float
    similarity: float
    curve: tuple[tuple[int, float], ...]
    last_tenth: float | None


@dataclass(frozen=True)
class Effective:
    """How many pictures count when copies do not: all, distinct ones, groups of copies, the largest, and by weight."""

    pictures: int
    distinct: int
    groups: int
    largest: int
    by_weight: float


def unit(embeddings: np.ndarray) -> np.ndarray:
    """Embeddings of length 1; those of length 0 become equal to each other and orthogonal to all others.

    embeddings  [N, D], any real dtype
    ->          [N, D], or [N, D + 1] where there are such, float32
    Raises AtelierError if the shape is another or a value is not finite.
    """
    found = np.asarray(embeddings, dtype=np.float32)
    if found.ndim != 2 or not len(found):
        raise AtelierError(f"The embeddings have shape {list(found.shape)}. Give one row a picture, [N, D].")
    if not np.isfinite(found).all():
        raise AtelierError("An embedding has a value that is not finite. Make the embeddings again.")
    high = np.abs(found).max(1, keepdims=True)  # first to 1, so that squares neither overflow nor vanish
    scaled = found / np.where(high > 0, high, 1)
    norms = np.linalg.norm(scaled, axis=1, keepdims=True)
    empty = norms[:, 0] == 0
    rows = scaled / np.where(norms > 0, norms, 1)
    return np.hstack([rows, empty[:, None].astype(np.float32)]) if empty.any() else rows


def vendi_score(embeddings: np.ndarray) -> float:
    """Vendi score: exponential of the entropy of the eigenvalues of K / N, K the cosines (Friedman and Dieng 2023).

    The smaller of the two Gram matrices is taken; both have the same eigenvalues but for zeros.

    embeddings  [N, D]
    ->          1 for clones .. N for orthogonal ones
    """
    rows = unit(embeddings)
    return _vendi(rows.astype(np.float64) @ rows.T.astype(np.float64) if len(rows) <= rows.shape[1] else _gram(rows))


def _gram(rows: np.ndarray) -> np.ndarray:
    """[D, D] float64, sum of the rows' outer products."""
    total = np.zeros((rows.shape[1], rows.shape[1]))
    for at in range(0, len(rows), PIECE):
        piece = rows[at : at + PIECE].astype(np.float64)
        total += piece.T @ piece
    return total


def _vendi(gram: np.ndarray) -> float:
    values = np.linalg.eigvalsh(gram)
    shares = values[values > 1e-12 * values[-1]]
    shares = shares / shares.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def mean_similarity(embeddings: np.ndarray) -> float:
    """Mean cosine over all pairs of different pictures, from the length of their sum; 1 for a single picture."""
    rows = unit(embeddings)
    count = len(rows)
    if count < 2:
        return 1.0
    length = float((rows.sum(0, dtype=np.float64) ** 2).sum())
    own = float((rows.astype(np.float64) ** 2).sum())
    return float(np.clip((length - own) / (count * (count - 1)), -1, 1))


def coverage(embeddings: np.ndarray, parts: int = POINTS, seed: int = 0) -> tuple[tuple[int, float], ...]:
    """Vendi score of growing parts of a dataset: a curve that has become flat says that more of the same adds little.

    Pictures come in a shuffled order, since a folder's neighbours are alike; the mean of three orders is taken, or one
    order where there is much to compute.

    parts  points of the curve, evenly spaced
    ->     (pictures, score), the last with all pictures
    """
    rows = unit(embeddings)
    count, width = rows.shape
    ends = sorted({max(1, round(count * part / parts)) for part in range(1, parts + 1)})
    random = np.random.default_rng(seed)
    orders = [random.permutation(count) for _ in range(ORDERS if count * width**2 < COSTLY else 1)]
    scores = np.mean([_growing(rows[order], ends) for order in orders], axis=0)
    return tuple((end, float(score)) for end, score in zip(ends, scores, strict=True))


def _growing(rows: np.ndarray, ends: Sequence[int]) -> list[float]:
    total, start, scores = np.zeros((rows.shape[1],) * 2), 0, []
    for end in ends:
        if end <= rows.shape[1]:
            scores.append(vendi_score(rows[:end]))
            continue
        total += _gram(rows[start:end])
        start = end
        scores.append(_vendi(total))
    return scores


def diversity_of(embeddings: np.ndarray) -> Diversity:
    """Measure the diversity of pictures.

    embeddings  [N, D]
    """
    curve = coverage(embeddings)
    count, last = curve[-1]
    gained = 1 - curve[-2][1] / last if count >= POINTS else None
    return Diversity(count, last, mean_similarity(embeddings), curve, gained)


def typicality(embeddings: np.ndarray) -> np.ndarray:
    """Cosine of each picture with the mean direction of all, [N] in -1..1; the lowest are the unusual ones."""
    rows = unit(embeddings)
    middle = rows.mean(0, dtype=np.float64)
    return rows @ (middle / max(float(np.linalg.norm(middle)), 1e-12)).astype(np.float32)


def describe(pictures: Iterable[Image.Image]) -> np.ndarray:
    """Describe pictures by colours (6 x 6 places) and gradients (4 x 4 places of 8 orientations, after Dalal and Triggs 2005).

    Both parts count alike. Values are taken from mid-grey and from an even spread of orientations, so that pictures
    with nothing in common have a cosine of about 0.

    pictures  of any size and mode; squeezed to 64 x 64
    ->        [N, 236] float32
    """
    small = [np.asarray(p.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)) for p in pictures]
    batches = [np.stack(small[at : at + 256]).astype(np.float32) for at in range(0, len(small), 256)]
    width = 3 * PLACES**2 + TURNS * CELLS**2
    return np.concatenate([_described(b) for b in batches]) if batches else np.zeros((0, width), np.float32)


def _described(pixels: np.ndarray) -> np.ndarray:
    count = len(pixels)
    edges = np.linspace(0, SIDE, PLACES + 1).astype(int)
    means = np.add.reduceat(np.add.reduceat(pixels, edges[:-1], 1), edges[:-1], 2)
    sizes = np.diff(edges)
    colors = (means / (sizes[:, None] * sizes)[..., None] / 255 - 0.5) @ OPPONENT
    parts = [colors.reshape(count, -1), _orientations(pixels.mean(-1))]
    # A part without anything in it, such as the colours of an even grey, stays faint.
    return np.hstack([p / np.maximum(np.linalg.norm(p, axis=1, keepdims=True), 1e-3) for p in parts])


def _orientations(grey: np.ndarray) -> np.ndarray:
    """[N, 128] square roots of the shares of gradient by place and orientation, from an even spread."""
    count = len(grey)
    across = np.gradient(grey, axis=2)
    down = np.gradient(grey, axis=1)
    turn = ((np.arctan2(down, across) / np.pi) % 1 * TURNS).astype(np.int64) % TURNS
    place = np.arange(SIDE) * CELLS // SIDE
    bins = CELLS * CELLS * TURNS
    at = np.arange(count)[:, None, None] * bins + (place[:, None] * CELLS + place) * TURNS + turn
    strength = np.hypot(across, down)
    sums = np.bincount(at.ravel(), strength.ravel(), count * bins).reshape(count, bins)
    total = sums.sum(1, keepdims=True)
    shares = np.where(total > 0, sums / np.maximum(total, 1e-12), 1 / bins)
    return (np.sqrt(shares) - np.sqrt(1 / bins)).astype(np.float32)


def effective_size(clusters: Sequence[Sequence[float]], singles: Sequence[float]) -> Effective:
    """How many pictures count when copies of one picture count as one, and by weight (Kish 1965).

    The weight of a picture is how often it is seen; (sum of weights)^2 / (sum of their squares) over distinct pictures
    is below their number where a few of them are seen far more often than the others.

    clusters  repeats of every copy, a list a group of copies
    singles   repeats of pictures without a copy
    """
    weights = np.array([sum(c) for c in clusters] + list(singles), dtype=np.float64)
    weights = weights[weights > 0]
    by_weight = float(weights.sum() ** 2 / (weights**2).sum()) if weights.size else 0.0
    sizes = [len(c) for c in clusters]
    return Effective(sum(sizes) + len(singles), len(sizes) + len(singles), len(sizes), max(sizes, default=0), by_weight)


def entropy(counts: Sequence[float]) -> float:
    """Entropy of a division in bits (Shannon 1948); 0 where there is nothing."""
    held = np.array([c for c in counts if c > 0], dtype=np.float64)
    shares = held / held.sum() if held.size else held
    return float(abs(-(shares * np.log2(shares)).sum()))


def evenness(counts: Sequence[float]) -> float:
    """Entropy over the highest that so many values could have (Pielou 1966): 0 one value has all, 1 all have the same."""
    return entropy(counts) / float(np.log2(len(counts))) if len(counts) > 1 else 0.0


@dataclass(frozen=True)
class Spread:
    """How a column's values are spread: pictures that have one, different values, the commonest, entropy in bits."""

    name: str
    filled: int
    values: int
    top: str
    share: float  # of the commonest among those that have one
    entropy: float
    evenness: float
    counts: tuple[tuple[str, int], ...]


def spread_of(name: str, values: Iterable[object], most: int = TOLD) -> Spread:
    """Measure how evenly a column's values are spread; empty ones do not count.

    most  values told, the commonest first
    """
    counts = tally(str(value) for value in values if value not in (None, ""))
    filled, sizes = sum(counts.values()), list(counts.values())
    top = next(iter(counts), "")
    share = counts[top] / filled if filled else 0.0
    told = tuple(counts.items())[:most]
    return Spread(name, filled, len(counts), top, share, entropy(sizes), evenness(sizes), told)


def tally(values: Iterable[str], most: int | None = None) -> dict[str, int]:
    """Count values, the commonest first, equals by name."""
    return dict(sorted(Counter(values).items(), key=lambda item: (-item[1], item[0]))[:most])


def listed(counts: Mapping[str, int], most: int = 8) -> str:
    """Counts in words, the first ones where there are many."""
    parts = [f"{name} {count}" for name, count in counts.items()]
    return ", ".join(parts[:most] + [f"{len(parts) - most} more"] * (len(parts) > most)) or "none"


def describe_thumbs(ids: Sequence[str], paths: Sequence[Path], most: int) -> tuple[list[int], np.ndarray, int]:
    """Describe pictures by their thumbnails; of more than `most` a sample, nearly the same one when some are added.

    ids, paths  [N] of the pictures and of their thumbnails
    ->          places of those described, their embeddings, and how many thumbnails could not be opened
    """
    drawn = sorted(range(len(ids)), key=lambda i: hashlib.blake2b(ids[i].encode(), digest_size=8).digest())
    order = sorted(drawn[:most])
    with ThreadPoolExecutor(READERS) as pool:
        opened = list(pool.map(open_thumb, (paths[i] for i in order)))
    there = [(i, picture) for i, picture in zip(order, opened, strict=True) if picture is not None]
    return [i for i, _ in there], describe(picture for _, picture in there), len(order) - len(there)


def open_thumb(path: Path) -> Image.Image | None:
    """A thumbnail squeezed to 64 x 64, or None if it is missing or damaged: the folder is a cache."""
    try:
        with Image.open(path) as picture:
            picture.draft("RGB", (SIDE, SIDE))
            return picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
    except (OSError, SyntaxError, ValueError):
        return None
