"""What a format has no words for is kept beside an export, so that the way back loses nothing.

The format's own files are the truth. After an export they are read back, and only rows that do not come back equal are
written down here, with a digest of how they came back. An import puts such a row in place of what it read only if that
digest still holds, so what a person changed in the format's files counts.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ...errors import AtelierError
from ...files import digest_of, write_json
from .exchanged import Exchanged, inside

NAME = ".atelier_rest.json"  # hidden, so that trainers and loaders of folders pass it over


def write_remainder(folder: Path, rows: Sequence[Exchanged], came_back: Sequence[Exchanged], trigger: str) -> int:
    """Write down rows that did not come back equal; no file if all did.

    -> how many
    """
    back = {row.path: row for row in came_back}
    lost = [{"digest": _digest(back[r.path]), "row": asdict(r)} for r in rows if r.path in back and back[r.path] != r]
    file = Path(folder) / NAME
    if lost or trigger:
        write_json(file, {"version": 1, "trigger": trigger, "rows": lost})
    else:
        file.unlink(missing_ok=True)
    return len(lost)


def read_trigger(folder: Path) -> str:
    """The trigger word of an export, or nothing."""
    return str(_stored(folder).get("trigger", ""))


def with_remainder(folder: Path, rows: Sequence[Exchanged]) -> list[Exchanged]:
    """Rows as they were exported where a format's files still say what they said then.

    Raises AtelierError if the remainder is damaged.
    """
    try:
        kept = {item["row"]["path"]: item for item in _stored(folder).get("rows", [])}
        return [_restored(row, kept.get(row.path)) for row in rows]
    except (KeyError, TypeError, AttributeError):
        raise AtelierError(f"{Path(folder) / NAME} is damaged. Remove it to read the other files alone.") from None


def _stored(folder: Path) -> dict:
    file = Path(folder) / NAME
    try:
        stored = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError:
        stored = None
    if not isinstance(stored, dict):
        raise AtelierError(f"{file} is damaged. Remove it to read the other files alone.")
    return stored


def _restored(row: Exchanged, item: dict | None) -> Exchanged:
    if item is None or item["digest"] != _digest(row):
        return row
    told = item["row"]
    captions, tags = (tuple(str(t) for t in told[k]) for k in ("captions", "tags"))
    return Exchanged(inside(told["path"]), captions, tags, str(told["split"]), int(told["repeats"]))


def _digest(row: Exchanged) -> str:
    return digest_of(asdict(row))
