"""The dataset: rows of pictures with their captions, as one frozen value that the trainer reads.

A row is never changed, only replaced by a copy with another decision or more captions, so a picture cannot lose its
captions on the way. Pixels stay on disk until somebody asks for them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..files import digest_of


@dataclass(frozen=True)
class Caption:
    """A text for a picture; `author` is "human" or the name of what made it."""

    text: str
    author: str


@dataclass(frozen=True)
class Decision:
    """Why a picture is left out."""

    reason: str
    by: str


@dataclass(frozen=True)
class Companion:
    """A picture that belongs to another one: where it lies, and the digest of its bytes."""

    path: str
    digest: str


@dataclass(frozen=True)
class Row:
    """One picture: id from its path, digest from its bytes, size after its EXIF turn, its crop and its operations.

    `mask` says where it counts, white for yes; `control` is the picture that is to be edited into it. `crop` (x, y, w, h
    in pixels after the EXIF turn) and `ops` are done when it is opened; `repeats` is how often an epoch shows it.
    """

    id: str
    path: str
    digest: str
    width: int
    height: int
    captions: tuple[Caption, ...] = ()
    split: str = "train"
    rejected: Decision | None = None
    mask: Companion | None = None
    control: Companion | None = None
    crop: tuple[int, ...] | None = None
    ops: tuple[Mapping[str, object], ...] = ()
    repeats: int = 1

    @property
    def content(self) -> str:
        """Digest of the picture as it is opened."""
        return digest_of(self.digest, self.crop, self.ops) if self.crop or self.ops else self.digest

    @property
    def kept(self) -> bool:
        return self.rejected is None


@dataclass(frozen=True)
class Skipped:
    """A file that could not be read."""

    path: str
    reason: str


@dataclass(frozen=True)
class Dataset:
    """Pictures below one folder, in a fixed order; `root` is absolute, paths are relative to it."""

    root: str
    rows: tuple[Row, ...]
    skipped: tuple[Skipped, ...] = ()

    def file(self, row: Row | Companion) -> Path:
        return Path(self.root) / row.path

    @property
    def kept(self) -> tuple[Row, ...]:
        return tuple(r for r in self.rows if r.kept)

    def with_rows(self, rows: list[Row]) -> "Dataset":
        return replace(self, rows=tuple(rows))

    @property
    def fingerprint(self) -> str:
        """Digest of everything that a training run sees: bytes, captions, splits, decisions."""
        return digest_of(
            [
                [r.content, [c.text for c in r.captions], r.split, *(c.digest for c in (r.mask, r.control) if c)]
                + ([r.repeats] if r.repeats > 1 else [])
                for r in sorted(self.kept, key=lambda r: r.id)
            ]
        )

    def summary(self) -> str:
        """One line a person can check: how many are kept, why others are not."""
        reasons: dict[str, int] = {}
        for row in self.rows:
            if row.rejected:
                kind = row.rejected.reason.split(":")[0]
                reasons[kind] = reasons.get(kind, 0) + 1
        parts = [f"{len(self.kept)} of {len(self.rows)} pictures kept"]
        parts += [f"{count} {reason}" for reason, count in sorted(reasons.items())]
        parts += [f"{len(self.skipped)} unreadable"] if self.skipped else []
        return ", ".join(parts)
