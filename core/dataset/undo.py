"""What an edit of a store changed, as it was before: remembered in the edit's own commit, so that it can be taken back."""

import json
import sqlite3
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

UNDOABLE = 500  # edits that are remembered


def values_of(db: sqlite3.Connection, ids: Iterable[str], columns: Iterable[str]) -> list[list]:
    """Some columns of some rows as they are now, each row's id first."""
    names = ", ".join(f"r.{name}" for name in ("id", *columns))
    query = f"SELECT {names} FROM json_each(?) j JOIN rows r ON r.id = j.value"
    return [list(row) for row in db.execute(query, (json.dumps(list(ids)),))]


def remember(db: sqlite3.Connection, label: str, by: str, before: Mapping[str, object]) -> None:
    """Remember an edit within its transaction; the oldest beyond 500 are forgotten.

    before  columns and rows, as values_of gives them; or captions by id
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    entry = (label, by, now, json.dumps(before))
    last = db.execute("INSERT INTO undo (label, by, at, before) VALUES (?, ?, ?, ?)", entry).lastrowid
    db.execute("DELETE FROM undo WHERE number <= ?", ((last or 0) - UNDOABLE,))
