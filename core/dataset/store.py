"""The store of a dataset: one SQLite file with a row for each picture, its raw scores, captions and decisions.

Thresholds are applied when rows are read, so moving one never scans again; the pictures themselves are never changed.
Every edit can be undone. A Store may be used from several threads and processes: readers do not wait for a writer.
"""

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from ..errors import AtelierError
from ..files import digest_of
from .stored import CHOSEN, FOUND, StoredRow, WrittenCaption, pack, packed, unpacked, written
from .undo import remember, values_of

VERSION = 2
OF_ROW = '"of row"'  # with a space, so that no score in a filter is called so
SCHEMA = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE rows (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, path TEXT NOT NULL, digest TEXT NOT NULL, stamp TEXT NOT NULL, beside TEXT NOT NULL,
    width INTEGER NOT NULL, height INTEGER NOT NULL, format TEXT NOT NULL, notes TEXT NOT NULL, fault TEXT,
    measured INTEGER NOT NULL, scores TEXT NOT NULL, hashes TEXT NOT NULL, companions TEXT NOT NULL,
    columns TEXT NOT NULL, split TEXT NOT NULL, repeats INTEGER NOT NULL, tags TEXT NOT NULL, boxes TEXT, crop TEXT,
    ops TEXT, stars INTEGER, decision TEXT, reason TEXT, decided_by TEXT, decided_at TEXT, parent TEXT,
    gone INTEGER NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX rows_path ON rows (path) WHERE gone = 0;
CREATE INDEX rows_digest ON rows (digest);
CREATE INDEX rows_readable ON rows (path, id) WHERE gone = 0 AND fault IS NULL;
CREATE TABLE scores ({OF_ROW} INTEGER PRIMARY KEY);
CREATE TABLE captions (
    row TEXT NOT NULL, position INTEGER NOT NULL, text TEXT NOT NULL, author TEXT NOT NULL, model TEXT NOT NULL,
    prompt TEXT NOT NULL, seed INTEGER, score REAL, origin TEXT NOT NULL, PRIMARY KEY (row, position)
) WITHOUT ROWID;
CREATE TABLE score_names (name TEXT PRIMARY KEY COLLATE NOCASE) WITHOUT ROWID;
CREATE TABLE undo (number INTEGER PRIMARY KEY AUTOINCREMENT, label TEXT, by TEXT, at TEXT, before TEXT);
INSERT INTO meta VALUES ('revision', '0');
"""
DECISIONS = ("keep", "reject", None)


def _insert_captions(db: sqlite3.Connection, own: str, captions: Iterable[WrittenCaption]) -> None:
    rows = [(own, i, *written(caption)) for i, caption in enumerate(captions)]
    db.executemany("INSERT INTO captions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)


def score_column(name: str) -> str:
    """How SQL names a score's column in the table `scores`, s where rows are asked for."""
    return '"{}"'.format(name.replace('"', '""'))


class Store:
    """An open store.

    path  the SQLite file, usually <name>/atelier.db; thumbnails lie beside it
    made  whether to make one that is not there
    Raises AtelierError if the file is no store, or one of a later version.
    """

    def __init__(self, path: Path, made: bool = True):
        self.path = Path(path)
        self._own = threading.local()
        self._all: list[sqlite3.Connection] = []
        if not made and not self.path.is_file():
            raise AtelierError(f"There is no dataset store {self.path}. Open its folder again.")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            version = self._version() or self._prepare()
        except sqlite3.DatabaseError as error:
            self.close()
            raise AtelierError(f"{self.path} is no dataset store ({error}). Choose another name for it.") from None
        if version != VERSION:
            self.close()
            raise AtelierError(
                f"{self.path} is not a dataset store of version {VERSION} (it says {version}). "
                "Update the pack, or choose another name."
            )

    def _version(self) -> int:
        return self.db.execute("PRAGMA user_version").fetchone()[0]

    def _prepare(self) -> int:
        with self._transaction() as db:
            if not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                for statement in SCHEMA.split(";"):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {VERSION}")
        return self._version()

    @property
    def db(self) -> sqlite3.Connection:
        """This thread's connection, in autocommit."""
        if getattr(self._own, "db", None) is None:
            db = sqlite3.connect(self.path, timeout=30, isolation_level=None, check_same_thread=False)
            self._all.append(db)
            db.row_factory = sqlite3.Row
            try:
                db.execute("PRAGMA journal_mode = WAL")
            except sqlite3.DatabaseError:
                db.close()
                raise
            db.execute("PRAGMA synchronous = FULL")  # a decision outlives a power cut
            self._own.db = db
        return self._own.db

    def close(self) -> None:
        """Close the connections of all threads."""
        for db in self._all:
            db.close()
        self._all.clear()
        self._own = threading.local()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        db = self.db
        db.execute("BEGIN IMMEDIATE")
        try:
            yield db
        except BaseException:
            db.execute("ROLLBACK")
            raise
        db.execute("COMMIT")

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._transaction() as db:
            yield db
            db.execute("UPDATE meta SET value = CAST(value AS INTEGER) + 1 WHERE key = 'revision'")

    @property
    def revision(self) -> int:
        """Counts the changes: equal revisions of a store mean equal contents."""
        return int(self.meta("revision"))

    def meta(self, key: str) -> str:
        """A word about the whole store, empty where it was never set."""
        found = self.db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return found["value"] if found else ""

    @property
    def edited(self) -> int:
        """Counts the edits by a human, and the undoing of such edits; what scans and nodes write does not count."""
        return int(self.meta("edited") or 0)

    def set_meta(self, key: str, value: str) -> None:
        """Set a word about the whole store, such as the root folder of its pictures."""
        if self.meta(key) != value:
            with self._writing() as db:
                db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    # --- what the scan writes ---

    def stamps(self) -> dict[str, tuple[str, str, int]]:
        """Stamp of the file, stamp of what lies beside it and version of the measures, by path."""
        rows = self.db.execute("SELECT path, stamp, beside, measured FROM rows WHERE gone = 0")
        return {r["path"]: (r["stamp"], r["beside"], r["measured"]) for r in rows}

    def put(self, rows: Iterable[StoredRow]) -> list[str]:
        """Write what a scan found, in one commit; choices and captions made in the store stay.

        A row is known by its bytes: a renamed file keeps its row. Where the bytes of a path changed, the old row goes
        and a new one inherits its human captions. The first row with some bytes has the start of their digest as id.

        -> the ids, in order
        """
        rows = list(rows)
        with self._writing() as db:
            self._name_scores(db, {name for row in rows for name in row.scores})
            return [self._put(db, row) for row in rows]

    def _name_scores(self, db: sqlite3.Connection, names: set[str]) -> None:
        """Give every score a column: from a narrow table, 50,000 are compared in a fifth of the time of their JSON."""
        for name in sorted(names):
            if db.execute("INSERT OR IGNORE INTO score_names VALUES (?)", (name,)).rowcount:
                db.execute(f"ALTER TABLE scores ADD COLUMN {score_column(name)} REAL")

    def _put(self, db: sqlite3.Connection, row: StoredRow) -> str:
        here = db.execute("SELECT id, digest FROM rows WHERE path = ? AND gone = 0", (row.path,)).fetchone()
        inherited: list[WrittenCaption] = []
        if here and here["digest"] != row.digest:
            old = self._captions(db, [here["id"]]).get(here["id"], [])
            inherited = [c for c in old if c.author == "human" and c.origin == "store"]
            db.execute("UPDATE rows SET gone = 1 WHERE id = ?", (here["id"],))
            here = None
        known = (
            here
            or db.execute(
                "SELECT id FROM rows WHERE digest = ? AND gone = 1 ORDER BY path <> ?, path", (row.digest, row.path)
            ).fetchone()
        )
        values = packed(row, FOUND)
        if known:
            names = ", ".join(f"{name} = ?" for name in FOUND)
            db.execute(f"UPDATE rows SET {names}, gone = 0 WHERE id = ?", (*values, known["id"]))
            own = known["id"]
        else:
            own = row.digest[:16]
            if db.execute("SELECT 1 FROM rows WHERE id = ?", (own,)).fetchone():
                own = digest_of(row.digest, row.path, size=8)
            names = ("id", *FOUND, *CHOSEN)
            marks = ", ".join("?" * len(names))
            db.execute(f"INSERT INTO rows ({', '.join(names)}) VALUES ({marks})", (own, *values, *packed(row, CHOSEN)))
        if known:
            self._follow_files(db, own, row.captions, inherited)
        elif row.captions or inherited:
            told = {c.text for c in inherited}
            _insert_captions(db, own, [*(c for c in row.captions if c.text not in told), *inherited])
        if known or row.scores:
            names, marks = "".join(f", {score_column(name)}" for name in row.scores), ", ?" * len(row.scores)
            query = f"INSERT OR REPLACE INTO scores ({OF_ROW}{names}) SELECT number{marks} FROM rows WHERE id = ?"
            db.execute(query, (*row.scores.values(), own))
        return own

    def follow(self, rows: list[StoredRow]) -> None:
        """Write what lies beside unchanged pictures, in one commit.

        rows  known by their paths; captions, companions, columns and the stamp of those files are taken
        """
        if not rows:
            return
        names = ("beside", "companions", "columns")
        with self._writing() as db:
            for row in rows:
                own = db.execute("SELECT id FROM rows WHERE path = ? AND gone = 0", (row.path,)).fetchone()["id"]
                marks = ", ".join(f"{name} = ?" for name in names)
                db.execute(f"UPDATE rows SET {marks} WHERE id = ?", (*packed(row, names), own))
                self._follow_files(db, own, row.captions, [])

    def _follow_files(self, db, own: str, from_files: Iterable[WrittenCaption], more: list[WrittenCaption]) -> None:
        old = self._captions(db, [own]).get(own, [])
        stay = [c for c in old if c.origin != "file"] + more
        if any(c.author == "human" and c.origin == "store" for c in stay):
            from_files = ()  # what a person wrote here stands before what the file says
        known = {c.text for c in stay}
        self._write_captions(db, own, [*(c for c in from_files if c.text not in known), *stay])

    def leave(self, paths: Iterable[str]) -> None:
        """Mark pictures whose files are no longer there; their rows come back with the files."""
        gone = [(path,) for path in paths]
        if gone:
            with self._writing() as db:
                db.executemany("UPDATE rows SET gone = 1 WHERE path = ?", gone)

    # --- reading ---

    def ids(self, where: str = "1", values: Iterable[object] = (), order: str = "r.path, r.id") -> list[str]:
        """Ids of the readable rows that are there, by a condition.

        where, order  SQL over `rows r` and `scores s`, made by view.py and never from a person's text
        values        of the question marks
        """
        both = f"rows r LEFT JOIN scores s ON s.{OF_ROW} = r.number"  # left aside by SQLite where no score is asked for
        query = f"SELECT r.id FROM {both} WHERE r.gone = 0 AND r.fault IS NULL AND ({where}) ORDER BY {order}"
        cursor = self.db.cursor()
        cursor.row_factory = None  # plain tuples: a third of the time at 50,000 rows
        return [own for (own,) in cursor.execute(query, tuple(values))]

    def rows(self, ids: Iterable[str]) -> list[StoredRow]:
        """Whole rows with their captions, in the order of the ids; ids that are not there are passed over."""
        wanted = list(ids)
        query = "SELECT r.* FROM json_each(?) j JOIN rows r ON r.id = j.value ORDER BY j.key"
        found = self.db.execute(query, (json.dumps(wanted),)).fetchall()
        captions = self._captions(self.db, wanted)
        return [replace(unpacked(row), captions=tuple(captions.get(row["id"], ()))) for row in found]

    def faults(self) -> list[tuple[str, str]]:
        """Path and reason of every file that could not be read."""
        query = "SELECT path, fault FROM rows WHERE gone = 0 AND fault IS NOT NULL ORDER BY path"
        return list(map(tuple, self.db.execute(query)))

    def rejections(self) -> dict[str, str]:
        """Why each rejected row was rejected, by id."""
        found = self.db.execute("SELECT id, coalesce(reason, 'rejected') FROM rows WHERE decision = 'reject'")
        return dict(map(tuple, found))

    def noted(self, word: str) -> list[tuple[str, str]]:
        """Path and note of every note that has a word in it."""
        query = "SELECT r.path, n.value FROM rows r, json_each(r.notes) n WHERE r.gone = 0 AND instr(n.value, ?)"
        return list(map(tuple, self.db.execute(query, (word,))))

    def score_names(self) -> list[str]:
        """Names of all scores that some row has."""
        return [row[0] for row in self.db.execute("SELECT name FROM score_names ORDER BY name")]

    def _captions(self, db: sqlite3.Connection, ids: list[str]) -> dict[str, list[WrittenCaption]]:
        query = "SELECT c.* FROM json_each(?) j JOIN captions c ON c.row = j.value ORDER BY c.row, c.position"
        found: dict[str, list[WrittenCaption]] = {}
        for row in map(tuple, db.execute(query, (json.dumps(ids),))):
            found.setdefault(row[0], []).append(WrittenCaption(*row[2:]))
        return found

    # --- what people and nodes choose ---

    def edit(
        self, changes: Mapping[str, Mapping[str, object]], by: str, label: str = "edit", undoable: bool = True
    ) -> int:
        """Change chosen columns of some rows in one commit.

        changes   by id: values by column (split, repeats, tags, boxes, crop, ops, stars, decision, reason, parent)
        by        who decided: "human" or the name of a node
        label     what undo calls it
        undoable  whether undo takes it back; what a node found is found again, and would only be in a person's way
        -> the revision after it
        Raises AtelierError for a column or decision that is not known.
        """
        for values in changes.values():
            found = next((name for name in values if name not in CHOSEN), None)
            if found or values.get("decision") not in DECISIONS:
                found = found or f"decision {values['decision']}"
                raise AtelierError(f"A row has no {found}. Use {', '.join(CHOSEN)}; decisions are keep and reject.")
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with self._writing() as db:
            written = {own: _decided(values, by, now) for own, values in changes.items()}
            if undoable:
                columns = dict.fromkeys(name for values in written.values() for name in values)
                remember(db, label, by, {"columns": list(columns), "rows": values_of(db, written, columns)})
            self._count(db, by)
            for own, values in written.items():
                names = ", ".join(f"{name} = ?" for name in values)
                db.execute(f"UPDATE rows SET {names} WHERE id = ?", (*(pack(n, v) for n, v in values.items()), own))
        return self.revision

    def decide(self, ids: Iterable[str], decision: str | None, by: str, reason: str | None = None) -> int:
        """Keep or reject rows, or take the decision back with None; returns the revision after it."""
        return self.edit({own: {"decision": decision, "reason": reason} for own in ids}, by, decision or "undecide")

    def caption(self, captions: Mapping[str, Iterable[WrittenCaption]], by: str, undoable: bool = True) -> int:
        """Set rows' captions in one commit; a model never replaces what a human wrote.

        captions  by id, in order
        by        "human", or the name of what made them
        undoable  whether undo takes it back
        -> the revision after it
        """
        with self._writing() as db:
            old = self._captions(db, list(captions))
            if undoable:
                before = {own: [written(c) for c in old.get(own, [])] for own in captions}
                remember(db, "caption", by, {"captions": before})
            self._count(db, by)
            for own, texts in captions.items():
                human = [] if by == "human" else [c for c in old.get(own, []) if c.author == "human"]
                said = {c.text for c in human}
                self._write_captions(db, own, [*human, *(c for c in texts if c.text not in said)])
        return self.revision

    def _write_captions(self, db, own: str, captions: list[WrittenCaption]) -> None:
        db.execute("DELETE FROM captions WHERE row = ?", (own,))
        _insert_captions(db, own, captions)

    # --- undo ---

    def _count(self, db: sqlite3.Connection, by: str) -> None:
        if by == "human":
            db.execute("INSERT INTO meta VALUES ('edited', '1') ON CONFLICT (key) DO UPDATE SET value = value + 1")

    def undo(self) -> str | None:
        """Take back the last undoable edit, and of its rows nothing that was changed besides.

        -> its label, or None if there is nothing to take back
        """
        with self._writing() as db:
            last = db.execute("SELECT number, label, by, before FROM undo ORDER BY number DESC LIMIT 1").fetchone()
            if last is None:
                return None
            before = json.loads(last["before"])
            names = ", ".join(f"{name} = ?" for name in before.get("columns", ()))
            for own, *values in before.get("rows", ()):
                db.execute(f"UPDATE rows SET {names} WHERE id = ?", (*values, own))
            held = before.get("captions", {})
            now = self._captions(db, list(held))
            for own, captions in held.items():
                told = [WrittenCaption(*c) for c in captions]
                if last["by"] == "human":  # what models wrote since stays
                    told = [c for c in told if c.author == "human"] + [
                        c for c in now.get(own, []) if c.author != "human"
                    ]
                self._write_captions(db, own, told)
            db.execute("DELETE FROM undo WHERE number = ?", (last["number"],))
            self._count(db, last["by"])
            return last["label"]


def _decided(values: Mapping[str, object], by: str, now: str) -> dict[str, object]:
    """Values to write: with a decision goes its reason, who made it and when."""
    if "decision" not in values:
        return dict(values)
    return {"reason": None} | dict(values) | {"decided_by": by, "decided_at": now}
