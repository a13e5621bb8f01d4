"""Copies of one picture in a dataset: found, told why, the best one kept, and taken back when asked.

Two tiers. The fast one compares hashes in eight orientations: saved again, scaled, lit otherwise, mirrored, turned. The
robust one also finds crops and pictures with a logo on them: hashes of several parts name candidates, then the two
pictures are laid on each other and 64 blocks vote whether they show the same. Neither needs weights.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from .blocks_vote import THUMB, WHOLE, Candidates, part_hashes, seem_same, vote
from .hashes import (
    ORIENTATION_NAMES,
    hash_frequencies,
    low_frequencies,
    match,
    match_oriented,
    orientation_hashes,
    reduced,
)
from .record import Dataset, Decision

NAME = "duplicates"
FAST, FARTHEST = 6, 7  # bits of 64: enough by itself; enough for a candidate
FAINTEST = 2.0  # grey levels: with less in it, a hash is chance
AGREEING = 0.65  # share of blocks
PIECE = 512  # pairs laid on each other at a time


@dataclass(frozen=True)
class Looks:
    """What the tiers compare, for N pictures.

    turned   [N, 8] uint64, hashes in all orientations
    thumbs   [N, 64, 64] uint8, grey, squeezed
    telling  [N] bool, whether there is enough in the picture for a hash
    """

    turned: np.ndarray
    thumbs: np.ndarray
    telling: np.ndarray


@dataclass(frozen=True)
class Copy:
    """What decides which copy is best: that a person kept it, a person's caption, pixels, sharpness, which came first."""

    id: str
    digest: str
    pixels: int
    sharpness: float = 0.0
    human: bool = False
    chosen: bool = False


@dataclass(frozen=True)
class Edge:
    """Two pictures, by position, that are copies, and why."""

    first: int
    second: int
    why: str


@dataclass(frozen=True)
class Group:
    """Copies of one picture: the id that stays, the ids that can go, and (id, id, why) for every link."""

    kept: str
    left_out: tuple[str, ...]
    why: tuple[tuple[str, str, str], ...]

    def reason(self, id: str) -> str:
        """Why a picture is in the group: its link to the one that stays, else its first."""
        links = [w for w in self.why if id in w[:2]]
        first, second, why = min(links, key=lambda w: self.kept not in w[:2])
        return f"{why} ({second if first == id else first})"


def look_at(greys: Iterable[Image.Image]) -> Looks:
    """Take from each picture what the tiers compare.

    greys  grey pictures of any size, such as open_grey gives; 128 pixels a side are enough
    """
    # What is kept of a picture is 4 KB, so that 50,000 take 200 MB.
    pixels = [(low_frequencies(reduced(grey)), reduced(grey, THUMB).round().astype(np.uint8)) for grey in greys]
    if not pixels:
        return Looks(np.zeros((0, 8), np.uint64), np.zeros((0, THUMB, THUMB), np.uint8), np.zeros(0, bool))
    low, thumbs = np.stack([low for low, _ in pixels]), np.stack([thumb for _, thumb in pixels])
    return Looks(orientation_hashes(low), thumbs, _contrast(low) >= FAINTEST)


def _contrast(low: np.ndarray) -> np.ndarray:
    """Standard deviation in grey levels of what the low frequencies of a 32 x 32 picture hold."""
    return np.sqrt(np.maximum((low**2).sum((-1, -2)) - low[..., 0, 0] ** 2, 0)) / 32


def same_files(copies: Sequence[Copy]) -> list[Edge]:
    """Link files with the same bytes to the first of them."""
    first: dict[str, int] = {}
    return [Edge(first[c.digest], i, "same file") for i, c in enumerate(copies) if first.setdefault(c.digest, i) != i]


def fast_edges(looks: Looks, most: int = FAST) -> list[Edge]:
    """Link pictures whose hashes differ by few bits in any of eight orientations, and whose blocks do not object.

    Pictures with equal hashes are linked to the first of them, so that a thousand copies are no million links.

    most  0..7 bits; above 6, groups begin to mix
    """
    at = np.flatnonzero(looks.telling)
    _, first, where = np.unique(looks.turned[at, 0], return_index=True, return_inverse=True)
    leaders = at[first]
    others = np.setdiff1d(at, leaders)
    found, orientation = match_oriented(looks.turned[leaders], most)
    # The orientation turns the first picture of a match, so that one is the part.
    part = np.concatenate([leaders[where[np.searchsorted(at, others)]], leaders[found.first]])
    whole = np.concatenate([others, leaders[found.second]])
    zeros = np.zeros(len(others), np.int64)
    bits, turns = np.concatenate([zeros, found.distance]), np.concatenate([zeros, orientation])
    pairs = Candidates(whole, part, np.tile(np.array(WHOLE, np.float32), (len(whole), 1)), turns)
    same = [seem_same(looks.thumbs, pairs.take(slice(i, i + PIECE)), AGREEING) for i in range(0, len(whole), PIECE)]
    chosen = np.flatnonzero(np.concatenate(same)) if same else []
    return [Edge(int(part[i]), int(whole[i]), _told(int(bits[i]), int(turns[i]))) for i in chosen]


def _told(bits: int, orientation: int) -> str:
    turned = f", {ORIENTATION_NAMES[orientation]}" if orientation else ""
    return f"hash {bits} of 64 bits apart{turned}"


def robust_edges(looks: Looks, known: Sequence[Edge] = (), agreeing: float = AGREEING) -> list[Edge]:
    """Link crops, pictures with a logo and other partial copies: hashes of parts name candidates, blocks vote.

    known     links found already; what they join is not looked at again
    agreeing  0..1, share of the blocks with something in them that must agree
    """
    waiting = _candidates(looks)
    joined = _Union(len(looks.thumbs))
    for edge in known:
        joined.join(edge.first, edge.second)
    found = []
    for at in range(0, len(waiting.whole), PIECE):
        some = waiting.take(slice(at, at + PIECE))
        apart = [joined.root(int(a)) != joined.root(int(b)) for a, b in zip(some.whole, some.part, strict=True)]
        some = some.take(np.flatnonzero(apart))
        shares, sizes = vote(looks.thumbs, some)
        for i in np.flatnonzero(shares >= agreeing):
            first, second = int(some.whole[i]), int(some.part[i])
            joined.join(first, second)
            size = " x ".join(f"{min(1, side):.0%}" for side in sizes[i])
            turned = f", {ORIENTATION_NAMES[some.orientation[i]]}" if some.orientation[i] else ""
            found.append(Edge(first, second, f"{shares[i]:.0%} of blocks agree on {size} of it{turned}"))
    return found


def _candidates(looks: Looks) -> Candidates:
    """Pairs worth laying on each other, the likeliest first, each pair with its best window and orientation."""
    at = np.flatnonzero(looks.telling)
    found, orientation = match_oriented(looks.turned[at], FARTHEST)
    full = np.tile(np.array(WHOLE, np.float32), (len(found.first), 1))
    # The orientation turns the first picture; blocks are compared with the turned part.
    lists = [(at[found.second], at[found.first], found.distance, orientation, full)]
    for window, hashes, telling, inside in _hashed_parts(looks.thumbs[at]):
        clear = np.flatnonzero(telling)
        others = hashes[clear] if inside else looks.turned[at, 0]
        near = match(hashes[clear], others, FARTHEST)
        whole, part = at[clear[near.first]], at[clear[near.second] if inside else near.second]
        keep = whole < part if inside else whole != part
        windows = np.tile(np.array(WHOLE if inside else window, np.float32), (int(keep.sum()), 1))
        lists.append((whole[keep], part[keep], near.distance[keep], np.zeros(int(keep.sum()), int), windows))
    whole, part, apart, orientation, windows = (np.concatenate(column) for column in zip(*lists, strict=True))
    order = np.argsort(apart, kind="stable")
    key = (whole * len(looks.thumbs) + part)[order]
    _, first = np.unique(key, return_index=True)
    chosen = order[np.sort(first)]
    return Candidates(whole[chosen], part[chosen], windows[chosen], orientation[chosen])


def _hashed_parts(thumbs: np.ndarray) -> Iterator[tuple[tuple[float, ...], np.ndarray, np.ndarray, bool]]:
    """Windows, the hashes [N] there, whether there is enough in each [N], and what part_hashes says of the window."""
    windows: list[tuple[tuple[float, ...], bool]] = []
    pieces = []
    for at in range(0, len(thumbs), PIECE):  # as float32, all thumbs of 50,000 pictures would take 800 MB
        parts = list(part_hashes(thumbs[at : at + PIECE].astype(np.float32)))
        windows = [(window, inside) for window, _, inside in parts]
        low = np.stack([low for _, low, _ in parts])
        pieces.append((hash_frequencies(low), _contrast(low) >= FAINTEST))
    if pieces:
        hashes, telling = (np.concatenate(column, axis=1) for column in zip(*pieces, strict=True))
        for i, (window, inside) in enumerate(windows):
            yield window, hashes[i], telling[i], inside


class _Union:
    """Disjoint sets with path halving (Tarjan and van Leeuwen 1984)."""

    def __init__(self, count: int):
        self.parents = list(range(count))

    def root(self, i: int) -> int:
        while self.parents[i] != i:
            self.parents[i] = self.parents[self.parents[i]]
            i = self.parents[i]
        return i

    def join(self, a: int, b: int) -> None:
        a, b = self.root(a), self.root(b)
        self.parents[max(a, b)] = min(a, b)


def group_edges(count: int, edges: Iterable[Edge]) -> list[list[int]]:
    """Positions 0..count-1 that links join, each group sorted, groups by their first; single ones are left out."""
    joined = _Union(count)
    for edge in edges:
        joined.join(edge.first, edge.second)
    groups: dict[int, list[int]] = {}
    for i in range(count):
        groups.setdefault(joined.root(i), []).append(i)
    return [members for members in groups.values() if len(members) > 1]


def find_duplicates(copies: Sequence[Copy], looks: Looks, robust: bool = False) -> tuple[Group, ...]:
    """Group copies of the same picture and choose the best of each group.

    copies  N rows, in the order of looks
    robust  also look for crops and logos; takes longer
    """
    edges = same_files(copies) + fast_edges(looks)
    if robust:
        edges += robust_edges(looks, edges)
    groups = []
    for members in group_edges(len(copies), edges):
        ranked = sorted(
            (copies[i] for i in members), key=lambda c: (not c.chosen, not c.human, -c.pixels, -c.sharpness)
        )
        inside = set(members)
        why = tuple((copies[e.first].id, copies[e.second].id, e.why) for e in edges if e.first in inside)
        groups.append(Group(ranked[0].id, tuple(c.id for c in ranked[1:]), why))
    return tuple(groups)


def leave_out(dataset: Dataset, groups: Iterable[Group]) -> Dataset:
    """Mark all but the best copy as left out, with the reason; what was left out before stays as it was."""
    reasons = {id: f"duplicate of {g.kept}: {g.reason(id)}" for g in groups for id in g.left_out}
    return dataset.with_rows(
        [replace(r, rejected=Decision(reasons[r.id], NAME)) if r.kept and r.id in reasons else r for r in dataset.rows]
    )


def take_back(dataset: Dataset) -> Dataset:
    """Undo leave_out: every row it marked is kept again, and no other is touched."""
    return dataset.with_rows(
        [replace(r, rejected=None) if r.rejected and r.rejected.by == NAME else r for r in dataset.rows]
    )
