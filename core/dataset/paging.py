"""Questions that a browser asks of a view: pages, counts, pictures alike, duplicate groups; answered from open stores.

A gallery asks often and of one store, so stores stay open, and what takes long is kept for as long as it is true. A
decision changes neither scores nor paths; orders that depend on nothing else outlive it.
"""

import json
import os
import re
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import AtelierError
from .curate import duplicates
from .duplicates import Group
from .expression import NAMES, PREFIXES
from .hashes import distance, low_frequencies, orientation_hashes, reduced
from .kept_view import Absent, kept_file, open_view
from .opening import STORE, thumb_of
from .scan import open_any, write_thumb
from .store import Store
from .stored import StoredRow
from .view import LeftOut, View, base_of

MOST_ROWS = 500  # of a page
OPEN, KEPT = 4, 24  # stores that stay open; answers kept for each
# What people cannot change: an order or filter of these words and of scores outlives their edits.
FIXED = {
    "width", "height", "path", "id", "format", "shorter", "longer", "megapixels", "aspect", "note", "and", "or", "not",
}  # fmt: skip
WORD = re.compile(r"[^\W\d][\w.]*")
PRESENT = "SELECT r.id FROM json_each(?) j JOIN rows r ON r.id = j.value"
ALL, LEFT, GROUPS = "all", "left_out", "groups"


@dataclass(frozen=True)
class Asked:
    """A page: from where, how many rows, of which rows, in which order."""

    offset: int = 0
    limit: int = 200
    filter: str = ""
    order: str = "path"
    group: str = ALL


@dataclass(frozen=True)
class Page:
    """Rows of a page, how many there are in all, the store's revision, and by id why nodes left rows out."""

    rows: list[StoredRow]
    total: int
    revision: int
    left_out: dict[str, LeftOut]


@dataclass(frozen=True)
class Pending:
    """An answer that is being worked out: pictures done, of how many."""

    done: int
    total: int


class _Answer:
    """Something that is worked out once, and again when the store is in another state."""

    def __init__(self):
        self.lock, self.value = threading.Lock(), None
        self.state: tuple[Hashable] | None = None


class OpenStore:
    """A store that stays open, and the answers that are still true; made by `Stores`.

    `lock` is held by whoever reads a row, works out its new values and writes them.
    """

    def __init__(self, folder: Path, readable: Callable[[Path], bool] = Path.is_absolute):
        self.folder, self.readable, self.lock = Path(folder), readable, threading.RLock()
        self.file = _identity(self.folder / STORE)
        if self.file is None:
            raise Absent(f"There is no dataset {self.folder.name[:40]!r}. Queue the Review Dataset node again.")
        self.store = Store(self.folder / STORE, made=False)
        self.users = 0
        self._kept: OrderedDict[Hashable, _Answer] = OrderedDict()
        self._guard = threading.Lock()
        self._search: _Search | None = None

    def close(self) -> None:
        """Close the store, and end what is worked out in the background."""
        if self._search:
            self._search.stopped = True
        self.store.close()

    def _once(self, name: Hashable, state: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` gives in a state, kept under a name; asked for by several, it is made once, and others do not wait."""
        with self._guard:
            answer = self._kept.setdefault(name, _Answer())
            self._kept.move_to_end(name)
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        with answer.lock:
            if answer.state != (state,):
                answer.value = make()
                answer.state = (state,)
            return answer.value

    def _state(self, *texts: str) -> tuple[str, int]:
        """A number that stays while answers to filters and orders stay as they are."""
        words = {word.lower() for text in texts for word in WORD.findall(text)}
        # In one statement: an edit between two would make a number that was another state's.
        both = dict(self._tuples("SELECT key, CAST(value AS INTEGER) FROM meta WHERE key IN ('revision', 'edited')"))
        revision, edited = both["revision"], both.get("edited", 0)
        lasting = words <= FIXED | {name.lower() for name in self.store.score_names()} - NAMES.keys() - PREFIXES.keys()
        return ("found", revision - edited) if lasting else ("all", revision)

    def view(self, key: str) -> View:
        """A kept view; raises Absent if there is none of that key."""
        view = self._once(("view", key), _identity(kept_file(self.folder, key)), lambda: open_view(self.folder, key))
        if view.store.name != STORE:
            raise Absent(f"The view {key} is not of {STORE}. Queue the Review Dataset node again.")
        return view

    def ids(self, key: str, asked: Asked) -> tuple[str, ...]:
        """Ids of a view's rows that are there and that a filter selects, in an order.

        Raises AtelierError for a filter, order or group that is not known.
        """
        if asked.group not in (ALL, LEFT):
            raise AtelierError(f"There is no group {asked.group[:40]!r}. Use {ALL}, {LEFT} or {GROUPS}.")
        view = self.view(key)
        if asked.group == LEFT:
            view = replace(view, ids=tuple(dict.fromkeys(one.id for one in view.left_out)), left_out=())
        order = asked.order or "path"
        name, by, only = (key, asked.group), self._state(order), self._state(asked.filter)
        sorted_ids = self._once((*name, "order", order), by, lambda: view.sort(order).ids)
        if not asked.filter.strip():
            return sorted_ids
        chosen = self._once((*name, "filter", asked.filter), only, lambda: frozenset(view.matching(asked.filter)))
        both = (*name, asked.filter, order)
        return self._once(both, (by, only), lambda: tuple(own for own in sorted_ids if own in chosen))

    def page(self, key: str, asked: Asked) -> Page | Pending:
        """Some rows of a view; Pending for duplicate groups that are still looked for.

        Raises AtelierError as `ids` does, and for an offset or limit out of range.
        """
        if asked.offset < 0 or not 0 < asked.limit <= MOST_ROWS:
            raise AtelierError(
                f"The page has the offset {asked.offset} and the limit {asked.limit}. "
                f"Ask for 1 to {MOST_ROWS} rows from 0 on."
            )
        revision = self.store.revision
        if asked.group == GROUPS:
            groups = self.groups(key)
            if isinstance(groups, Pending):
                return groups
            chosen = set(self.ids(key, replace(asked, group=ALL)))
            ids = [own for group in groups for own in (group.kept, *group.left_out) if own in chosen]
        else:
            ids = self.ids(key, asked)
        view = self.view(key)
        rows = self.rows(key, ids[asked.offset : asked.offset + asked.limit])
        left = {one.id: one for one in view.left_out} if asked.group == LEFT else {}
        return Page(rows, len(ids), revision, {row.id: left[row.id] for row in rows if row.id in left})

    def rows(self, key: str, ids: Iterable[str]) -> list[StoredRow]:
        """Rows as a view sees them, but a person's captions and crop are seen at once, before the nodes run again."""
        wanted, view = list(ids), self.view(key)
        found = {row.id: row for row in self.store.rows(dict.fromkeys(map(base_of, wanted)))}
        return [seen(view, found[base_of(own)], own) for own in wanted if base_of(own) in found]

    def counts(self, key: str) -> tuple[dict[str, int], dict[str, int]]:
        """How many rows of a view are decided on (keep, reject, undecided) and left_out, and how many each split has."""
        ids, view, state = self.ids(key, Asked()), self.view(key), self._state()
        bases = self._once((key, "bases"), state, lambda: Counter(map(base_of, ids)))
        query = "SELECT id, decision FROM rows WHERE gone = 0 AND decision IS NOT NULL"
        decided = Counter(keep=0, reject=0)
        for own, decision in self._once("decided", self.store.revision, lambda: self._tuples(query)):
            decided[decision] += bases[own]
        left = len(self.ids(key, Asked(group=LEFT))) if view.left_out else 0
        counts = {**decided, "undecided": len(ids) - decided.total(), "left_out": left}
        # No edit of a person's changes a split.
        return counts, self._once((key, "splits"), state, lambda: dict(self._splits(view, ids)))

    def _splits(self, view: View, ids: Iterable[str]) -> Counter[str]:
        stored = dict(self._tuples("SELECT id, split FROM rows WHERE gone = 0"))
        return Counter(str(view.laid.get(own, {}).get("split") or stored.get(base_of(own), "")) for own in ids)

    def _tuples(self, query: str, values: Iterable[object] = ()) -> list[tuple]:
        cursor = self.store.db.cursor()
        cursor.row_factory = None  # plain tuples: a third of the time at 50,000 rows
        return cursor.execute(query, tuple(values)).fetchall()

    def row(self, id: str) -> StoredRow:
        """A stored row by its id or by that of a variant; raises Absent if it is not in the store."""
        found = self.store.rows([base_of(id)])
        if not found:
            raise Absent(f"There is no picture {id[:40]!r} in this dataset. Load the gallery anew.")
        return found[0]

    def known(self, ids: Iterable[str]) -> list[str]:
        """Rows of ids, variants counted as their rows, each once; raises Absent for one that is not in the store."""
        wanted = list(dict.fromkeys(map(base_of, ids)))
        there = {own for (own,) in self._tuples(PRESENT, (json.dumps(wanted),))}
        missing = next((own for own in wanted if own not in there), None)
        if missing is not None:
            raise Absent(f"There is no picture {missing[:40]!r} in this dataset. Load the gallery anew.")
        return wanted

    def thumb(self, row: StoredRow) -> Path:
        """A row's thumbnail, made of its picture where it is missing; raises Absent if that cannot be read."""
        path = thumb_of(self.store.path, row)
        if not path.is_file():
            write_thumb(path, open_any(self.source(row).read_bytes()).image)
        return path

    def source(self, row: StoredRow) -> Path:
        """A row's picture file; raises Absent if it is gone or does not lie below the dataset's folder."""
        root = self.root()
        path = _inside(root, row.path)
        if path is None or _identity(path) is None:
            raise Absent(
                f"There is no file {row.path} in {root}. Look whether its disk is there, then queue Load Dataset."
            )
        return path

    def root(self) -> Path:
        """The folder of the pictures; raises Absent if it may not be read."""
        root = Path(self.store.meta("root"))
        if not root.is_absolute() or not self.readable(root):
            raise Absent(
                f"The pictures' folder {root} may not be read. Put it below ComfyUI's input or datasets folder."
            )
        return root

    def alike(self, key: str, id: str, count: int) -> list[tuple[StoredRow, int]]:
        """Rows of a view most like a picture, in any of eight orientations, with the bits of 64 in which they differ.

        count  at most so many, the most alike first, the picture itself left away
        Raises Absent if the picture is not in the store.
        """
        row = self.row(id)
        with Image.open(self.thumb(row)) as thumb:
            own = orientation_hashes(low_frequencies(reduced(thumb)[None]))[0]
        if "dct" in row.hashes:  # the thumbnail is a lossy copy: a picture's twin is no bit away
            own[0] = int(row.hashes["dct"], 16)
        rows, hashes = self._once((key, "hashes"), self._state(), lambda: self._hashes(key))
        apart = distance(hashes[:, None], own).min(1).astype(np.int64) if len(hashes) else np.zeros(0, np.int64)
        nearest = [i for i in np.argsort(apart, kind="stable")[: count + 1] if rows[i] != base_of(id)][:count]
        found = {row.id: row for row in self.rows(key, [rows[i] for i in nearest])}
        return [(found[rows[i]], int(apart[i])) for i in nearest if rows[i] in found]

    def _hashes(self, key: str) -> tuple[list[str], np.ndarray]:
        mine = set(self.view(key).ids)
        query = "SELECT id, json_extract(hashes, '$.dct') FROM rows WHERE gone = 0 AND fault IS NULL ORDER BY path"
        found = [(own, text) for own, text in self._tuples(query) if text and own in mine]
        return [own for own, _ in found], np.array([int(text, 16) for _, text in found], dtype=np.uint64)

    def groups(self, key: str) -> tuple[Group, ...] | Pending:
        """Duplicate groups of a view by the fast tier, looked for in the background; Pending until they are found.

        Raises AtelierError if they could not be looked for.
        """
        wanted = (key, self._state())
        with self.lock:
            search = self._search
            if search is None or search.wanted != wanted:
                if search:
                    search.stopped = True
                search = self._search = _Search(wanted, self.view(key), self.root())
        return search.answer()


class _Search(threading.Thread):
    """One search for duplicates, in a thread that ends with the process."""

    def __init__(self, wanted: tuple, view: View, root: Path):
        super().__init__(daemon=True, name="flux_atelier duplicates")
        self.wanted, self.view, self.root = wanted, view, root
        self.stopped, self.done, self.error = False, 0, ""
        self.found: tuple[Group, ...] | None = None
        self.start()

    def run(self) -> None:
        try:
            rows = [row for row in self.view.rows() if _inside(self.root, row.path)]
            steps = duplicates(self.view, rows, robust=False)
            while not self.stopped:
                self.done = next(steps)
        except StopIteration as end:
            self.found = end.value
        except AtelierError as error:
            self.error = str(error)

    def answer(self) -> tuple[Group, ...] | Pending:
        if self.found is not None:
            return self.found
        if self.error or (not self.is_alive() and self.found is None):
            raise AtelierError(self.error or "Duplicates could not be looked for. The log of the server says why.")
        return Pending(self.done, len(self.view))


class Stores:
    """Stores that stay open between requests, the last used ones; each is closed when it is put out and nobody uses it.

    most      so many stay open
    readable  whether pictures of a dataset with this root may be read
    """

    def __init__(self, most: int = OPEN, readable: Callable[[Path], bool] = Path.is_absolute):
        self.most, self.readable = most, readable
        self._open: OrderedDict[Path, OpenStore] = OrderedDict()
        self._lock = threading.Lock()

    @contextmanager
    def use(self, folder: Path) -> Iterator[OpenStore]:
        """Open the store of a folder, or take the open one, for as long as the context lasts.

        Raises Absent if there is none.
        """
        folder = Path(folder).absolute()
        with self._lock:
            held = self._open.get(folder)
            if held and held.file != _identity(folder / STORE):  # removed, or made again under the same name
                self._put_out(folder)
                held = None
            held = held or OpenStore(folder, self.readable)
            self._open[folder] = held
            self._open.move_to_end(folder)
            held.users += 1
            while len(self._open) > self.most:
                self._put_out(next(iter(self._open)))
        try:
            yield held
        finally:
            with self._lock:
                held.users -= 1
                if not held.users and self._open.get(folder) is not held:
                    held.close()

    def _put_out(self, folder: Path) -> None:
        held = self._open.pop(folder)
        if not held.users:
            held.close()

    def close(self) -> None:
        """Put all stores out."""
        with self._lock:
            for folder in list(self._open):
                self._put_out(folder)


def seen(view: View, row: StoredRow, id: str) -> StoredRow:
    """A stored row, or a variant of it, as a view sees it; what was written or cropped in the store shows on a row at once."""
    laid = view.overlay(row, id)
    if id != row.id:
        return laid
    if any(caption.author == "human" and caption.origin == "store" for caption in row.captions):
        laid = replace(laid, captions=row.captions)
    return replace(laid, crop=row.crop) if row.crop else laid


def words_of(scores: Iterable[str]) -> list[str]:
    """Words that a filter knows: names, scores, and prefixes with their colon."""
    return [*NAMES, *scores, *(f"{prefix}:" for prefix in PREFIXES)]


def _inside(root: Path, name: str) -> Path | None:
    """A path below a root, .. worked out by names alone; None for one that leads out of it."""
    path = Path(os.path.abspath(root / name))
    return path if path.is_relative_to(os.path.abspath(root)) else None


def _identity(file: Path) -> tuple[int, int, int] | None:
    """Tells a file from another one that was later made under its name."""
    try:
        found = file.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino, found.st_ctime_ns if file.suffix == ".gz" else 0
