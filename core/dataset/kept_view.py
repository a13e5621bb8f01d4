"""Views kept as files beside their store, so that a browser comes back to one after a reload or a restart.

A view of 50,000 rows is half a megabyte here; its rows stay in the store, so a kept view shows what they are now.
"""

import gzip
import json
import re
import zlib
from pathlib import Path

from ..errors import AtelierError
from ..files import digest_of, write_whole
from .view import View
from .view_file import values_of, view_of

NEWEST = 20  # views that stay beside a store
KEY = re.compile(r"[0-9a-f]{16}")
ENDING = ".json.gz"


class Absent(AtelierError):
    """Something was asked for by its name, and it is not there."""


def keep_view(view: View) -> str:
    """Write a view beside its store, where `open_view` finds it; the newest views stay, older ones go.

    -> its key, 16 hex digits: the same for the same rows with the same values laid on them
    """
    held = values_of(view)
    revision = held.pop("revision")
    key = digest_of(held, size=8)
    held |= {"store": view.store.name, "revision": revision}
    data = gzip.compress(json.dumps(held, ensure_ascii=False).encode(), 1, mtime=0)
    path = write_whole(_folder(view.store.parent) / f"{key}{ENDING}", lambda part: part.write_bytes(data))
    _remove_old(path)
    return key


def open_view(folder: Path, key: str) -> View:
    """Read a kept view.

    folder  the store's
    key     from `keep_view`
    Raises Absent if there is no such view, AtelierError if its file is damaged.
    """
    path = _folder(folder) / f"{key}{ENDING}"
    if not KEY.fullmatch(key) or not path.is_file():
        raise Absent(f"There is no view {key[:40]!r}. Queue the Review Dataset node again.")
    try:
        held = json.loads(gzip.decompress(path.read_bytes()))
        if Path(held["store"]).name != held["store"]:
            raise ValueError(f"its store is {held['store']!r}")
        return view_of(Path(folder) / held["store"], held)
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AtelierError(f"The view {key} is damaged ({error}). Queue the Review Dataset node again.") from None


def kept_file(folder: Path, key: str) -> Path:
    """Where a view of a store's folder is kept."""
    return _folder(folder) / f"{key}{ENDING}"


def _folder(store_folder: Path) -> Path:
    return Path(store_folder) / "views"


def _remove_old(newest: Path) -> None:
    found = {path: path.stat().st_mtime_ns for path in newest.parent.glob(f"*{ENDING}")}
    old = sorted(found, key=lambda path: (path != newest, -found[path], path.name))[NEWEST:]
    for path in old:
        path.unlink(missing_ok=True)
