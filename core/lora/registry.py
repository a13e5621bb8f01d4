"""The registry: one SQLite table of a person's LoRAs, one row a file, that any program can open.

The files are the truth: what a row says of its file is read again whenever the file has changed. What only the registry
knows (scores, notes, parents that no header names) belongs to a LoRA's identity, not to its file, so it goes along when
a file is renamed, copied, converted or given another header. Several processes may write at once; each change is one
transaction. A word index (FTS5) beside the table finds parts of words; where SQLite has none, LIKE finds the same.
"""

import json
import logging
import math
import sqlite3
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

from ..errors import AtelierError
from .provenance import TAGS

log = logging.getLogger("flux_atelier")

SCHEMA = 1
BUSY_SECONDS = 30.0  # how long a change waits for those of other processes
BROKEN = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

TABLE = """
CREATE TABLE IF NOT EXISTS loras (
    path TEXT PRIMARY KEY,
    hash TEXT NOT NULL, sha256 TEXT NOT NULL, tensors_sha256 TEXT NOT NULL,
    size INTEGER NOT NULL, modified INTEGER NOT NULL,
    base TEXT NOT NULL, layout TEXT NOT NULL, kinds TEXT NOT NULL,
    rank INTEGER NOT NULL, alpha REAL, layers INTEGER NOT NULL, dtype TEXT NOT NULL,
    title TEXT NOT NULL, triggers TEXT NOT NULL, comment TEXT NOT NULL, tags TEXT NOT NULL, provenance TEXT NOT NULL,
    parents TEXT NOT NULL, aliases TEXT NOT NULL, scores TEXT NOT NULL, notes TEXT NOT NULL,
    problem TEXT NOT NULL, words TEXT NOT NULL,
    first_seen REAL NOT NULL, last_seen REAL NOT NULL, noted REAL NOT NULL, missing INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS loras_hash ON loras (hash);
CREATE INDEX IF NOT EXISTS loras_modified ON loras (modified);
"""
INDEX = """
CREATE VIRTUAL TABLE IF NOT EXISTS loras_words USING fts5 (words, content = 'loras', tokenize = 'trigram');
CREATE TRIGGER loras_added AFTER INSERT ON loras BEGIN
    INSERT INTO loras_words (rowid, words) VALUES (new.rowid, new.words);
END;
CREATE TRIGGER loras_removed AFTER DELETE ON loras BEGIN
    INSERT INTO loras_words (loras_words, rowid, words) VALUES ('delete', old.rowid, old.words);
END;
CREATE TRIGGER loras_changed AFTER UPDATE OF words ON loras BEGIN
    INSERT INTO loras_words (loras_words, rowid, words) VALUES ('delete', old.rowid, old.words);
    INSERT INTO loras_words (rowid, words) VALUES (new.rowid, new.words);
END;
INSERT INTO loras_words (loras_words) VALUES ('rebuild');
"""
TRIGGERS = ("loras_added", "loras_removed", "loras_changed")
JSON = ("kinds", "triggers", "tags", "provenance", "parents", "aliases", "scores")


@dataclass(frozen=True)
class Parent:
    """A LoRA that another one was made of: its identity, or "" where only the name is known, and its name."""

    hash: str
    name: str


@dataclass(frozen=True)
class Entry:
    """One LoRA file as the registry knows it.

    path       where it lies
    hash       identity of what it changes (identity.py); "" where the layers could not be read
    sha256     of the file; tensors_sha256 of what follows its header
    modified   the file's time, in ns; first_seen, last_seen, noted (last score or note) in s since 1970
    alpha      of every layer, or None where they differ
    parents    what it was made of
    aliases    identities it had on wires before its file was written in a lower precision
    scores     figures by name
    problem    why its layers could not be read, or ""
    """

    path: str
    hash: str = ""
    sha256: str = ""
    tensors_sha256: str = ""
    size: int = 0
    modified: int = 0
    base: str = ""
    layout: str = ""
    kinds: tuple[str, ...] = ()
    rank: int = 0
    alpha: float | None = None
    layers: int = 0
    dtype: str = ""
    title: str = ""
    triggers: tuple[str, ...] = ()
    comment: str = ""
    tags: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)
    parents: tuple[Parent, ...] = ()
    aliases: tuple[str, ...] = ()
    scores: dict[str, float] = field(default_factory=dict)
    notes: str = ""
    problem: str = ""
    first_seen: float = 0.0
    last_seen: float = 0.0
    noted: float = 0.0
    missing: bool = False

    @property
    def name(self) -> str:
        return Path(self.path).stem


COLUMNS = tuple(f.name for f in fields(Entry))


class Registry:
    """An open registry; close it, or use it in a with statement. `told` says if a damaged one was set aside."""

    def __init__(self, path: Path, db: sqlite3.Connection, indexed: bool, told: str = ""):
        self.path, self.db, self.indexed, self.told = path, db, indexed, told

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        self.db.close()

    @contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all of it happens, or nothing; waits for other processes.

        Raises AtelierError if the file cannot be written.
        """
        with told_of(self.path):
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield self.db
                self.db.execute("COMMIT")
            except BaseException:
                if self.db.in_transaction:
                    self.db.execute("ROLLBACK")
                raise

    def rows(self, sql: str, values: Sequence[object] = ()) -> list[sqlite3.Row]:
        """What a SELECT gives; raises AtelierError if the file cannot be read."""
        with told_of(self.path):
            return self.db.execute(sql, values).fetchall()


@contextmanager
def told_of(path: Path) -> Iterator[None]:
    """Raise AtelierError for what SQLite says of a registry's file."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        mend = "Close what holds it, or make room on the disk, and try again."
        if broken(error):
            mend = "Run again: it is then set aside, and a whole one is made from the files."
        raise AtelierError(f"The registry {path} could not be used ({error}). {mend}") from None


def broken(error: sqlite3.DatabaseError) -> bool:
    """Whether an error says that a database's file is damaged, rather than busy or out of reach."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in BROKEN


def open_registry(path: Path) -> Registry:
    """Open a registry, making it where there is none; a damaged one is set aside, never removed.

    path  the SQLite file
    Raises AtelierError if it cannot be written, or is of a later version of this pack.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with told_of(path), _alone(path):
            try:
                return _opened(path)
            except sqlite3.DatabaseError as error:
                if not broken(error):
                    raise
                told = _set_aside(path, error)
            log.warning(told)
            return _opened(path, told)
    except OSError as error:
        raise AtelierError(
            f"The registry {path} cannot be made ({error}). Choose a folder that can be written."
        ) from None


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let one process at a time open a registry, on a lock of SQLite's that ends with its process.

    Whoever looked at a damaged file while another one renames it would take the fresh one's journal for its own.
    """
    db = sqlite3.connect(path.with_name(f"{path.stem}.lock"), timeout=BUSY_SECONDS, isolation_level=None)
    try:
        db.execute("BEGIN EXCLUSIVE")
        yield
    finally:
        db.close()


def _opened(path: Path, told: str = "") -> Registry:
    db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        db.row_factory = sqlite3.Row
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA:
            raise AtelierError(f"The registry {path} is of a later version of this pack. Update the pack.")
        bad = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if bad != "ok":
            error = sqlite3.DatabaseError(bad)
            error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise error
        # With a write-ahead log a reader waits for no writer, and a kill leaves the last whole transaction.
        if db.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        return Registry(path, db, _prepared(db, version), told)
    except BaseException:
        db.close()
        raise


def _prepared(db: sqlite3.Connection, version: int) -> bool:
    """Make the table and its word index where they are missing; whether there is an index."""
    possible = can_index(db)
    there = db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'loras_changed'").fetchone()[0] == 1
    if version == SCHEMA and possible == there:
        return possible
    db.execute("BEGIN IMMEDIATE")  # two processes may be here at once; the second finds all done
    there = db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'loras_changed'").fetchone()[0] == 1
    for statement in statements(TABLE):
        db.execute(statement)
    if possible and not there:
        for statement in statements(INDEX):
            db.execute(statement)
    if there and not possible:  # made where SQLite had FTS5; its triggers would stop every change here
        for name in TRIGGERS:
            db.execute(f"DROP TRIGGER {name}")
    db.execute(f"PRAGMA user_version = {SCHEMA}")
    db.execute("COMMIT")
    return possible


def statements(script: str) -> Iterator[str]:
    """The statements of a script, whole; sqlite3's own executescript would end the transaction."""
    text = ""
    for line in script.strip().splitlines():
        text += line + "\n"
        if sqlite3.complete_statement(text):
            yield text
            text = ""


def can_index(db: sqlite3.Connection) -> bool:
    """Whether this SQLite has FTS5 with trigrams (3.34)."""
    known = db.execute("SELECT count(*) FROM pragma_module_list WHERE name = 'fts5'").fetchone()[0]
    return bool(known) and sqlite3.sqlite_version_info >= (3, 34)


def _set_aside(path: Path, error: sqlite3.DatabaseError) -> str:
    """Rename a damaged registry and its log; gives the sentences that say so."""
    aside = path.with_name(
        f"{path.stem}.damaged-{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**6:06d}{path.suffix}"
    )
    for ending in ("-wal", "-shm", ""):  # the log first, so that a fresh registry never meets it
        part = path.with_name(path.name + ending)
        if part.exists():
            part.rename(aside.with_name(aside.name + ending))
    return (
        f"The registry {path} was damaged ({error}) and is now {aside.name}, with the notes and scores that were in it. "
        "A fresh one takes its place; scan the folders to fill it from the files."
    )


def entry_of(row: sqlite3.Row) -> Entry:
    """A row of the table as an Entry."""
    values: dict[str, Any] = {name: row[name] for name in COLUMNS}
    for name in JSON:
        values[name] = json.loads(values[name])
    for name in ("kinds", "triggers", "tags", "aliases"):
        values[name] = tuple(values[name])
    values["parents"] = tuple(Parent(**p) for p in values["parents"])
    values["missing"] = bool(values["missing"])
    return Entry(**values)


def put(db: sqlite3.Connection, entry: Entry) -> None:
    """Write an Entry's row inside a transaction."""
    values = {name: getattr(entry, name) for name in COLUMNS}
    values["parents"] = [vars(p) for p in entry.parents]
    for name in JSON:
        values[name] = json.dumps(values[name], ensure_ascii=False)
    values |= {"missing": int(entry.missing), "words": words_of(entry)}
    names = list(values)
    db.execute(
        f"INSERT INTO loras ({', '.join(names)}) VALUES ({', '.join('?' * len(names))}) "
        f"ON CONFLICT (path) DO UPDATE SET {', '.join(f'{n} = excluded.{n}' for n in names if n != 'path')}",
        [values[name] for name in names],
    )


def words_of(entry: Entry) -> str:
    """All that a search looks through, folded."""
    place = Path(entry.path)
    said = [place.parent.name, place.name, entry.title, *entry.triggers, *entry.tags, entry.comment, entry.notes]
    said += [*entry.kinds, entry.base, entry.layout, entry.hash, entry.sha256, *(p.name for p in entry.parents)]
    said += [str(entry.provenance.get(key, "")) for key in ("modelspec.author", "modelspec.description")]
    said += entry.provenance.get(TAGS, {})  # the captions' tags
    return folded("\n".join(said))


def folded(text: str) -> str:
    """A text without the difference of cases and of composed and decomposed letters."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def add_score(registry: Registry, identity: str, name: str, value: float) -> int:
    """Keep a figure of a LoRA under a name, in place of an older one of that name; gives how many files have it.

    identity  whole, as an Entry's hash
    Raises AtelierError if no file has that identity, or the value is not finite.
    """
    name = name.strip()
    if not name or not math.isfinite(value):
        raise AtelierError(f"The score {name!r} is {value}. Give it a name and a finite number.")
    return _note(registry, identity, lambda entry: {"scores": entry.scores | {name: float(value)}})


def annotate(registry: Registry, identity: str, notes: str) -> int:
    """Keep a person's notes on a LoRA, in place of older ones; as add_score."""
    return _note(registry, identity, lambda _: {"notes": notes})


def _note(registry: Registry, identity: str, change: Callable[[Entry], dict[str, Any]]) -> int:
    with registry.change() as db:
        rows = db.execute("SELECT * FROM loras WHERE hash = ? AND hash != ''", [identity]).fetchall()
        if not rows:
            raise AtelierError(f"The registry has no LoRA {identity}. Scan the folder it lies in.")
        for entry in map(entry_of, rows):
            put(db, replace(entry, **change(entry), noted=time.time()))
    return len(rows)


def forget_missing(registry: Registry) -> list[str]:
    """Remove the rows of files that are gone, with the notes and scores that no copy has; gives their paths."""
    with registry.change() as db:
        gone = [row["path"] for row in db.execute("SELECT path FROM loras WHERE missing = 1 ORDER BY path")]
        db.execute("DELETE FROM loras WHERE missing = 1")
    return gone
