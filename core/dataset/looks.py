"""What the duplicate tiers compare, taken from each thumbnail once and kept beside the store by the picture's bytes."""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import AtelierError
from .duplicates import Copy, Looks, look_at
from .scan import open_any, thumb_path, write_thumb
from .stored import StoredRow

MADE = 1  # version of what look_at takes
BATCH = 256  # pictures of one commit
SIDE = 64  # pixels of a look's thumbnail


def copies_of(rows: Sequence[StoredRow]) -> list[Copy]:
    """What decides which copy is best, for each row."""
    return [
        Copy(
            row.id, row.digest, row.width * row.height, row.scores.get("sharpness", 0.0),
            any(c.author == "human" for c in row.captions), row.decision == "keep",
        )
        for row in rows
    ]  # fmt: skip


def look_at_rows(store: Path, root: Path, rows: Sequence[StoredRow]) -> Iterator[Looks | int]:
    """Take from each row's picture what the duplicate tiers compare; what was taken before is read.

    store  the store's file; what is taken is kept in `looks.db` beside it
    root   of the pictures, for those that have no thumbnail
    rows   N rows
    ->     the number of pictures done, now and then, and at last the Looks of all N
    Raises AtelierError if a picture without a thumbnail cannot be opened.
    """
    with _opened(Path(store).parent / "looks.db") as db:
        known = {digest for (digest,) in db.execute("SELECT digest FROM looks WHERE made = ?", (MADE,))}
        missing = list({row.digest: row for row in rows if row.digest not in known}.values())
        for start in range(0, len(missing), BATCH):
            batch = missing[start : start + BATCH]
            looks = look_at(_thumb(Path(store).parent / "thumbs", root, row) for row in batch)
            with db:
                db.executemany(
                    "INSERT OR REPLACE INTO looks VALUES (?, ?, ?, ?, ?)",
                    [
                        (row.digest, MADE, looks.turned[i].tobytes(), looks.thumbs[i].tobytes(), int(looks.telling[i]))
                        for i, row in enumerate(batch)
                    ],
                )
            yield start + len(batch)
        yield _read(db, [row.digest for row in rows])


def _read(db: sqlite3.Connection, digests: list[str]) -> Looks:
    turned = np.zeros((len(digests), 8), np.uint64)
    thumbs = np.zeros((len(digests), SIDE, SIDE), np.uint8)
    telling = np.zeros(len(digests), bool)
    places: dict[str, list[int]] = {}
    for i, digest in enumerate(digests):
        places.setdefault(digest, []).append(i)
    query = "SELECT digest, turned, thumb, telling FROM looks WHERE made = ?"
    for digest, hashes, pixels, tells in db.execute(query, (MADE,)):
        for i in places.get(digest, ()):
            turned[i] = np.frombuffer(hashes, np.uint64)
            thumbs[i] = np.frombuffer(pixels, np.uint8).reshape(SIDE, SIDE)
            telling[i] = tells
    return Looks(turned, thumbs, telling)


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, timeout=30)) as db:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute(
                "CREATE TABLE IF NOT EXISTS looks (digest TEXT PRIMARY KEY, made INTEGER NOT NULL, "
                "turned BLOB NOT NULL, thumb BLOB NOT NULL, telling INTEGER NOT NULL)"
            )
        except sqlite3.DatabaseError as error:
            raise AtelierError(f"{path} is damaged ({error}). Remove it: it is made again.") from None
        yield db


def _thumb(thumbs: Path, root: Path, row: StoredRow) -> Image.Image:
    """A row's thumbnail in grey, made where it is missing."""
    path = thumb_path(thumbs, row.digest)
    if not path.is_file():
        file = Path(root) / row.path
        try:
            write_thumb(path, open_any(file.read_bytes()).image)
        except OSError as error:
            raise AtelierError(f"{file} cannot be read ({error}). Load the folder anew.") from None
    with Image.open(path) as picture:
        return picture.convert("L")
