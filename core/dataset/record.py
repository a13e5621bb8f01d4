"""The dataset: rows of pictures with their captions, as one frozen value on a wire.

A row is never changed, only replaced by a copy with another decision or more captions, so a picture cannot lose its
captions on the way. Pixels stay on disk until somebody asks for them.
"""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from ..errors import AtelierError
from ..files import digest_of, write_json


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
    """One picture: id from its path, digest from its bytes, size after its EXIF turn.

    `mask` says where it counts, white for yes; `control` is the picture that is to be edited into it.
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
                [r.digest, [c.text for c in r.captions], r.split, *(c.digest for c in (r.mask, r.control) if c)]
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


@dataclass(frozen=True)
class _Stored:
    """What a saved dataset file holds."""

    version: int
    dataset: dict = field(default_factory=dict)


def save_dataset(dataset: Dataset, path: Path) -> Path:
    """Write a dataset as JSON; pictures stay where they are."""
    return write_json(path, asdict(_Stored(1, asdict(dataset))))


def load_dataset(path: Path) -> Dataset:
    """Read a dataset written by save_dataset; raises AtelierError if it is none."""
    try:
        stored = json.loads(Path(path).read_text(encoding="utf-8"))
        data = stored["dataset"]
        rows = []
        for row in data["rows"]:
            captions = tuple(Caption(**c) for c in row.pop("captions"))
            rejected = row.pop("rejected")
            beside = {k: Companion(**v) for k in ("mask", "control") if (v := row.pop(k, None))}
            rows.append(Row(**row, captions=captions, rejected=Decision(**rejected) if rejected else None, **beside))
        return Dataset(data["root"], tuple(rows), tuple(Skipped(**s) for s in data["skipped"]))
    except FileNotFoundError:
        raise AtelierError(f"There is no file {path}. Load the folder first.") from None
    except (json.JSONDecodeError, KeyError, TypeError):
        raise AtelierError(f"{path} is not a saved dataset. Load the folder again to make one.") from None
