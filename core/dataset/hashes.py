"""Perceptual hashes: 64 bits that stay nearly the same when a picture is saved again, scaled or lit otherwise.

The hash is the sign pattern of a picture's lowest cosine frequencies, so a mirrored or turned picture needs no second
decode: its frequencies are the same ones with other signs, or transposed. Matching looks up shared bands of bits
instead of comparing everything with everything.
"""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import AtelierError

SIDE, LOW = 32, 8  # pixels a picture is reduced to; frequencies kept per axis
DRAFT = 128  # pixels: a JPEG is decoded no larger than this needs
BANDS, BAND_BITS = 4, 16
EXACT = 2 * BANDS - 1  # with more bits apart, every band may differ by two and a pair may be missed
# Flip left-right, flip up-down, transpose: in this order, first to last.
ORIENTATIONS = tuple((h, v, t) for t in (False, True) for v in (False, True) for h in (False, True))
ORIENTATION_NAMES = (
    "upright",
    "mirrored",
    "mirrored top to bottom",
    "turned by 180 degrees",
    "mirrored along the diagonal",
    "turned left",
    "turned right",
    "mirrored along the other diagonal",
)


class Matches(NamedTuple):
    """Pairs of positions in what was matched, and the bits in which each pair differs."""

    first: np.ndarray
    second: np.ndarray
    distance: np.ndarray


def open_grey(file: Path, side: int = DRAFT) -> Image.Image:
    """Open a picture as grey, turned as its EXIF says; a JPEG is decoded as small as `side` allows and without colour.

    Raises AtelierError that names the file.
    """
    try:
        with Image.open(file) as picture:
            picture.draft("L", (side, side))
            turned = ImageOps.exif_transpose(picture)
            if turned.mode in ("RGBA", "LA", "PA") or "transparency" in turned.info:
                turned = turned.convert("RGBA")
                turned = Image.alpha_composite(Image.new("RGBA", turned.size, "white"), turned)
            elif turned.mode.startswith("I") or turned.mode == "F":
                turned = turned.point(lambda v: v / 256)
            return turned.convert("L")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise AtelierError(f"{file} cannot be read ({error}). Remove it or save it again, then load anew.") from None


def reduced(grey: Image.Image, side: int = SIDE) -> np.ndarray:
    """A grey picture squeezed into a square, [side, side] float32 in 0..255."""
    return np.asarray(grey.convert("L").resize((side, side), Image.Resampling.BOX), dtype=np.float32)


@cache
def cosines(side: int, count: int) -> np.ndarray:
    """The first rows of the orthonormal DCT-II, [count, side]."""
    angle = np.pi * (np.arange(side) + 0.5) * np.arange(count)[:, None] / side
    rows = np.cos(angle) * np.sqrt(2 / side)
    rows[0] /= np.sqrt(2)
    return rows.astype(np.float32)


def low_frequencies(pixels: np.ndarray) -> np.ndarray:
    """The lowest 8 x 8 cosine frequencies of square pictures.

    pixels  [..., S, S] float
    ->      [..., 8, 8] float32, rows vertical
    """
    basis = cosines(pixels.shape[-1], LOW)
    return basis @ pixels.astype(np.float32) @ basis.T


def hash_frequencies(low: np.ndarray) -> np.ndarray:
    """One bit per frequency: above the picture's median or not (Zauner 2010, pHash).

    low  [..., 8, 8]
    ->   [...] uint64; bit 0 is the lowest frequency, rows first
    """
    flat = low.reshape(*low.shape[:-2], LOW * LOW)
    bits = flat > np.median(flat, axis=-1, keepdims=True)
    packed = np.packbits(bits, axis=-1, bitorder="little")
    return np.ascontiguousarray(packed).view("<u8")[..., 0].astype(np.uint64)


def dct_hashes(pixels: np.ndarray) -> np.ndarray:
    """Hashes of square pictures, [N, S, S] float -> [N] uint64."""
    return hash_frequencies(low_frequencies(pixels))


def dct_hash(gray: Image.Image) -> int:
    """The 64-bit DCT hash of a picture (Zauner 2010, pHash); a plain number that fits a database."""
    return int(dct_hashes(reduced(gray)[None])[0])


def oriented(low: np.ndarray, orientation: int) -> np.ndarray:
    """Frequencies of the pictures in another orientation: a mirror negates the odd ones, a transpose swaps the axes."""
    across, down, swapped = ORIENTATIONS[orientation]
    signs = np.where(np.arange(LOW) % 2, -1, 1).astype(np.float32)
    turned = low * signs if across else low
    turned = turned * signs[:, None] if down else turned
    return np.swapaxes(turned, -1, -2) if swapped else turned


def orient(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels [..., S, S] in the orientation that `oriented` gives to their frequencies."""
    across, down, swapped = ORIENTATIONS[orientation]
    turned = pixels[..., :, ::-1] if across else pixels
    turned = turned[..., ::-1, :] if down else turned
    return np.swapaxes(turned, -1, -2) if swapped else turned


def orientation_hashes(low: np.ndarray) -> np.ndarray:
    """Hashes of pictures in all eight orientations, without another decode.

    low  [N, 8, 8] from low_frequencies
    ->   [N, 8] uint64, the picture as it is first, in the order of ORIENTATIONS
    """
    return np.stack([hash_frequencies(oriented(low, o)) for o in range(len(ORIENTATIONS))], axis=-1)


@cache
def _ones() -> np.ndarray:
    """Set bits of every 16-bit number: numpy has its own count from version 2 on only."""
    return np.array([int(i).bit_count() for i in range(1 << 16)], dtype=np.uint8)


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Bits in which hashes differ, 0..64; uint64 arrays that broadcast."""
    apart = np.asarray(np.bitwise_xor(a, b), dtype=np.uint64)
    if hasattr(np, "bitwise_count"):
        return np.bitwise_count(apart)
    halves = np.ascontiguousarray(apart).reshape(-1).view(np.uint16).reshape(-1, 4)
    return _ones()[halves].sum(1, dtype=np.uint8).reshape(apart.shape)


def match(queries: np.ndarray, hashes: np.ndarray, most: int) -> Matches:
    """Every query and hash that are at most so many bits apart (multi-index hashing, Norouzi et al. 2012).

    Exact: of four bands of 16 bits at least one differs by no more than one bit when the whole differs by at most 7.

    queries, hashes  [Q], [N] uint64
    most             0..7 bits
    ->               each pair once, ordered by query, then by hash
    Raises AtelierError for a distance that the bands cannot promise.
    """
    if not 0 <= most <= EXACT:
        raise AtelierError(f"A distance of {most} bits was asked for. The search by bands is exact for 0 to {EXACT}.")
    flips = [0] + ([1 << bit for bit in range(BAND_BITS)] if most >= BANDS else [])
    found = []
    for band in range(BANDS):
        shift = np.uint64(band * BAND_BITS)
        wanted = ((queries >> shift) & np.uint64(0xFFFF)).astype(np.int64)
        keys = ((hashes >> shift) & np.uint64(0xFFFF)).astype(np.int64)
        order = np.argsort(keys, kind="stable")
        starts = np.concatenate([[0], np.cumsum(np.bincount(keys, minlength=1 << BAND_BITS))])
        for flip in flips:
            found.append(_near(queries, hashes[order], order, starts, wanted ^ flip, most))
    if not found:
        return Matches(*(np.zeros(0, np.int64) for _ in range(3)))
    pairs = np.unique(np.concatenate(found))
    first, second = np.divmod(pairs, max(1, len(hashes)))
    return Matches(first, second, distance(queries[first], hashes[second]))


def _near(queries, ordered, order, starts, wanted, most) -> np.ndarray:
    """Pairs in the buckets that `wanted` names, as query * N + hash; cut into pieces so that memory stays small."""
    found, piece = [], 1 << 16
    for at in range(0, len(queries), piece):
        begin, end = starts[wanted[at : at + piece]], starts[wanted[at : at + piece] + 1]
        counts = end - begin
        query = np.repeat(np.arange(at, at + len(counts)), counts)
        within = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
        place = np.repeat(begin, counts) + within
        close = distance(queries[query], ordered[place]) <= most
        found.append(query[close] * len(order) + order[place[close]])
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def match_oriented(turned: np.ndarray, most: int) -> tuple[Matches, np.ndarray]:
    """Every two pictures that are at most so many bits apart in any orientation.

    turned  [N, 8] uint64 from orientation_hashes
    most    0..7 bits
    ->      pairs i < j, each once with its least distance; the orientation of i that is like j, [P] in 0..7
    """
    count = len(turned)
    found = match(turned.T.reshape(-1), turned[:, 0], most)
    orientation, first = np.divmod(found.first, max(1, count))
    # The transposing hash of j may find i where that of i misses j: medians of mirrored frequencies differ a little.
    swap = first > found.second
    low, high = np.where(swap, found.second, first), np.where(swap, first, found.second)
    orientation = np.where(swap, np.array(_INVERSE)[orientation], orientation)
    ranked = np.lexsort((orientation, found.distance, high, low))
    low, high, apart, orientation = low[ranked], high[ranked], found.distance[ranked], orientation[ranked]
    keep = low < high
    keep[1:] &= (low[1:] != low[:-1]) | (high[1:] != high[:-1])
    return Matches(low[keep], high[keep], apart[keep]), orientation[keep]


def _inverse(orientation: int) -> int:
    across, down, swapped = ORIENTATIONS[orientation]
    return ORIENTATIONS.index((down, across, True) if swapped else (across, down, False))


_INVERSE = [_inverse(o) for o in range(len(ORIENTATIONS))]
