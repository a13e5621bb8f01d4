"""A view: which rows of a store, in which order, with what nodes decided about them; a frozen value on a wire.

What a node works out from thresholds is laid on the view and never written into the store, so two branches of a graph
do not overwrite each other. What a person decides, and what took long to find, is in the store.
"""

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..errors import AtelierError
from ..files import digest_of
from .expression import LAID, NAMES, Condition, compile_filter, overlaid
from .mirroring import MIRRORED, mirrored_words
from .record import Caption, Companion, Dataset, Decision, Row, Skipped
from .replay import replayed_size
from .store import Store, score_column
from .stored import StoredRow, WrittenCaption, counting_places, pack

OVERLAID = (*LAID, "ops", "captions", "parent", MIRRORED)
INHERITED = ("split", "repeats", "tags", "captions", "boxes")  # that a variant has of its row


@dataclass(frozen=True)
class Op:
    """An operation that is done to every picture of a view when it is opened: its name, and its settings as pairs."""

    name: str
    settings: tuple[tuple[str, object], ...] = ()

    @property
    def recorded(self) -> dict[str, object]:
        """As rows record it, and replay does it."""
        return {"name": self.name, **dict(self.settings)}


@dataclass(frozen=True)
class LeftOut:
    """A row that a node left out of a view, and why."""

    id: str
    reason: str
    by: str


def base_of(id: str) -> str:
    """The row of an id: a variant's id is its row's with a plus and a number."""
    return id.partition("+")[0]


@dataclass(frozen=True)
class View:
    """Rows of a store in an order; nothing is read from the store before it is asked for.

    revision  the store's when the view was made; `current` says whether it still is
    ids       rows, and variants of rows, whose ids are a row's with a plus and a number
    ops       done to every picture when it is opened, after its own
    laid      by id: values that stand before the stored ones (split, repeats, crop, ops, tags, boxes, captions)
    left_out  rows that nodes left out, each with its reason
    captions  names of models whose captions are preferred, the first first; a person's stand before all
    """

    store: Path
    revision: int
    ids: tuple[str, ...]
    ops: tuple[Op, ...] = ()
    laid: Mapping[str, Mapping[str, object]] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    left_out: tuple[LeftOut, ...] = ()
    captions: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(cls, store: Store, expression: str = "", order: str = "path") -> "View":
        """All readable rows of a store that an expression selects, in the order of a name (`-sharpness` for falling)."""
        revision = store.revision
        return cls(store.path, revision, tuple(_select(store, expression, order, {})))

    def _with_store(self, read: Callable):
        with Store(self.store, made=False) as store:
            return read(store)

    @property
    def current(self) -> bool:
        """Whether the store is as it was when the view was made."""
        return self._with_store(lambda store: store.revision) == self.revision

    @property
    def fingerprint(self) -> str:
        """Digest of what the view holds, for a cache: the store's revision, the rows and all that is laid on them."""
        ops = [op.recorded for op in self.ops]
        left = [[one.id, one.reason, one.by] for one in self.left_out]
        laid = [[id, {n: _plain(v) for n, v in self.laid[id].items()}] for id in sorted(self.laid)]
        return digest_of(str(self.store), self.revision, self.ids, ops, laid, left, self.captions)

    def filter(self, expression: str) -> "View":
        """The rows that an expression selects, in this view's order; variants go with their rows."""
        return self.only(self.matching(expression))

    def matching(self, expression: str) -> list[str]:
        """Ids of this view that an expression selects."""
        found = set(self._with_store(lambda store: _select(store, expression, "", self.laid)))
        return [own for own in self.ids if base_of(own) in found]

    def sort(self, order: str) -> "View":
        """The same rows in the order of a name or score, falling with a minus before it; ties by path."""
        place = {own: i for i, own in enumerate(self._with_store(lambda s: _select(s, "", order, self.laid)))}
        return self.only(sorted((own for own in self.ids if base_of(own) in place), key=lambda i: place[base_of(i)]))

    def only(self, ids: Iterable[str]) -> "View":
        """Some rows of this view, in the order given; raises AtelierError for one that it does not have."""
        chosen, mine = tuple(dict.fromkeys(ids)), set(self.ids)
        foreign = next((own for own in chosen if own not in mine), None)
        if foreign is not None:
            raise AtelierError(f"The view has no row {foreign}. Choose rows of this view.")
        return replace(self, ids=chosen)

    def without(self, reasons: Mapping[str, str], by: str) -> "View":
        """This view with some rows left out, and why; their variants go with them.

        reasons  by id
        by       the node that decides
        """
        gone = [LeftOut(own, reasons[own], by) for own in self.ids if own in reasons]
        kept = tuple(own for own in self.ids if own not in reasons and base_of(own) not in reasons)
        return replace(self, ids=kept, left_out=(*self.left_out, *gone))

    def lay(self, values: Mapping[str, Mapping[str, object]]) -> "View":
        """This view with values that stand before the stored ones, by id.

        Raises AtelierError for a value that cannot be laid, or a row that the view does not have.
        """
        mine = set(self.ids)
        for own, named in values.items():
            unknown = [name for name in named if name not in OVERLAID]
            if unknown or own not in mine:
                what = f"row {own}" if own not in mine else unknown[0]
                raise AtelierError(f"The view has no {what}. Lay {', '.join(OVERLAID)} on rows of this view.")
        laid = dict(self.laid) | {own: {**self.laid.get(own, {}), **named} for own, named in values.items()}
        return replace(self, laid=MappingProxyType(laid))

    def with_variants(self, variants: Mapping[str, Sequence[Mapping[str, object]]]) -> "View":
        """This view with more pictures made of its rows: each variant stands after its row.

        variants  by a row's id: the values of each of its variants, such as ops
        """
        ids: list[str] = []
        laid: dict[str, Mapping[str, object]] = {}
        taken = set(self.ids)
        for own in self.ids:
            ids.append(own)
            number = 0
            for values in variants.get(own, ()):
                number = next(n for n in range(number + 1, len(taken) + 2) if f"{base_of(own)}+{n}" not in taken)
                id = f"{base_of(own)}+{number}"
                taken.add(id)
                ids.append(id)
                # The crop is the row's as it is now, since the variant's operations were made for it.
                held = {name: value for name, value in self.laid.get(own, {}).items() if name not in INHERITED}
                laid[id] = {**held, **values, "parent": base_of(own)}
        return replace(self, ids=tuple(ids)).lay(laid)

    def preferring(self, model: str) -> "View":
        """This view with one model's captions before all others but a person's."""
        return replace(self, captions=(model, *(name for name in self.captions if name != model)))

    def renewed(self) -> "View":
        """The rows that are still there, at the store's present revision."""
        revision, there = self._with_store(lambda store: (store.revision, set(store.ids())))
        return replace(self, revision=revision, ids=tuple(own for own in self.ids if base_of(own) in there))

    def then(self, op: Op) -> "View":
        """This view with one more operation to do when its pictures are opened."""
        return replace(self, ops=(*self.ops, op))

    def rows(self, start: int = 0, stop: int | None = None) -> list[StoredRow]:
        """Whole rows from one place in the order to another, as the store holds them now, with what is laid on them."""
        return self._with_store(lambda store: self.rows_in(store, self.ids[start:stop]))

    def kept_rows(self) -> list[StoredRow]:
        """The rows that nobody rejected."""
        return [row for row in self.rows() if row.decision != "reject"]

    def rows_in(self, store: Store, ids: Iterable[str]) -> list[StoredRow]:
        """The same for some ids, from a store that is open."""
        wanted = list(ids)
        found = {row.id: row for row in store.rows(dict.fromkeys(map(base_of, wanted)))}
        return [self.overlay(found[base_of(own)], own) for own in wanted if base_of(own) in found]

    def shown(self, most: int) -> list[tuple[StoredRow, str | None]]:
        """Rows for a person to look at, in the order of their paths: why each is left out, None where it is not.

        most  how many; those left out go before others
        """
        gone = {one.id: one.reason for one in self.left_out}
        with Store(self.store, made=False) as store:
            rows = self.rows_in(store, [*gone, *self.ids])
        reasons = [
            (row, gone.get(row.id) or (row.reason or "rejected" if row.decision == "reject" else None)) for row in rows
        ]
        first = sorted(reasons, key=lambda pair: pair[1] is None)[:most]
        return sorted(first, key=lambda pair: (pair[0].path, pair[0].id))

    def summary(self) -> str:
        """One line a person can check: how many are kept, why others are not."""
        with Store(self.store, made=False) as store:
            reasoned, faults = store.rejections(), len(store.faults())
        rejected = [reasoned[own] for own in map(base_of, self.ids) if own in reasoned]
        reasons = Counter(reason.partition(":")[0] for reason in [*(one.reason for one in self.left_out), *rejected])
        parts = [f"{len(self) - len(rejected)} of {len(self) + len(self.left_out)} pictures kept"]
        parts += [f"{count} {reason}" for reason, count in sorted(reasons.items())]
        return ", ".join(parts + ([f"{faults} unreadable"] if faults else []))

    def overlay(self, row: StoredRow, id: str) -> StoredRow:
        """A stored row as this view sees it.

        id  of the row, or of one of its variants, which has its row's captions also where they came later
        """
        values = dict(self.laid.get(id, {}))
        if row.id != id:
            values = {name: value for name, value in self.laid.get(row.id, {}).items() if name in INHERITED} | values
        elif not values:
            return row
        mirrored = values.pop(MIRRORED, False)
        seen = replace(row, id=id, **{name: _frozen(value) for name, value in values.items()})
        return replace(seen, **mirrored_words(seen.captions, seen.tags)) if mirrored else seen

    def captions_of(self, row: StoredRow) -> tuple[Caption, ...]:
        """The captions that count: a person's, else the first preferred model's that has one, else the last model's."""
        chosen = [row.captions[place] for place in counting_places(row.captions, self.captions)]
        return tuple(Caption(c.text, "human" if c.author == "human" else c.model or c.author) for c in chosen)

    def ops_of(self, row: StoredRow) -> tuple[Mapping[str, object], ...]:
        """What is done to a row's picture after its crop."""
        return (*(row.ops or ()), *(op.recorded for op in self.ops))

    def dataset(self) -> Dataset:
        """The view as the record that the trainer reads, without rows of the test split and variants outside training."""
        with Store(self.store, made=False) as store:
            root, faults = store.meta("root"), store.faults()
            rows = self.rows_in(store, self.ids)
            gone = {one.id: one for one in self.left_out if base_of(one.id) == one.id}
            left = self.rows_in(store, gone)
        used = ("train", "validation")
        kept = [self._record(row) for row in rows if row.split in (used[:1] if row.parent else used)]
        kept += [replace(self._record(row), rejected=Decision(gone[row.id].reason, gone[row.id].by)) for row in left]
        return Dataset(root, tuple(kept), tuple(Skipped(path, reason) for path, reason in faults))

    def _record(self, row: StoredRow) -> Row:
        ops = self.ops_of(row)
        width, height = replayed_size(row.width, row.height, row.crop, ops)
        rejected = Decision(row.reason or "rejected", row.decided_by or "human") if row.decision == "reject" else None
        beside = {kind: Companion(**held) for kind, held in row.companions.items()}
        return Row(
            row.id, row.path, row.digest, width, height, self.captions_of(row), row.split, rejected,
            crop=row.crop, ops=ops, repeats=row.repeats, **beside,
        )  # fmt: skip


def _plain(value: object) -> object:
    """A laid value as JSON can hold it."""
    if isinstance(value, WrittenCaption):
        return list(astuple(value))
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _frozen(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _select(store: Store, expression: str, order: str, laid: Mapping[str, Mapping[str, object]]) -> list[str]:
    falling, name = order.startswith("-"), order.removeprefix("-")
    condition = compile_filter(expression, scores := store.score_names())
    key = NAMES.get(name) if name else "1"
    if key is None:
        if name not in scores:
            near = get_close_matches(name, [*NAMES, *scores], 1, 0.5)
            raise AtelierError(f"There is no {name} to sort by. Use {near[0] if near else 'path or a score'}.")
        key = f"s.{score_column(name)}"
    if _lay_out(store, laid):
        condition, key = Condition(overlaid(condition.sql), condition.values), overlaid(key)
    by = f"{key} {'DESC' if falling else 'ASC'} NULLS LAST, r.path, r.id" if name else "r.path, r.id"
    try:
        return store.ids(condition.sql, condition.values, by)
    except sqlite3.OperationalError as error:
        raise AtelierError(f"The filter {expression!r} cannot be used ({error}). Make it simpler.") from None


def _lay_out(store: Store, laid: Mapping[str, Mapping[str, Any]]) -> bool:
    """Put what is laid on rows into temporary tables of this connection; False where there is nothing to put."""
    seen = {own: values for own, values in laid.items() if "+" not in own}
    rows = [
        (own, *(pack(name, values.get(name)) for name in LAID), int("captions" in values))
        for own, values in seen.items()
        if not values.keys().isdisjoint((*LAID, "captions"))
    ]
    captions = [(own, c.text, c.author) for own, values in seen.items() for c in values.get("captions", ())]
    if not rows:
        return False
    db = store.db
    db.execute(f"CREATE TEMP TABLE IF NOT EXISTS laid (id TEXT PRIMARY KEY, {', '.join(LAID)}, said) WITHOUT ROWID")
    db.execute("CREATE TEMP TABLE IF NOT EXISTS laid_captions (row TEXT, text TEXT, author TEXT)")
    db.execute("CREATE INDEX IF NOT EXISTS temp.laid_captions_row ON laid_captions (row)")
    db.execute("BEGIN")
    for table, values in (("laid", rows), ("laid_captions", captions)):
        db.execute(f"DELETE FROM temp.{table}")
        if values:
            db.executemany(f"INSERT INTO temp.{table} VALUES (?{', ?' * (len(values[0]) - 1)})", values)
    db.execute("COMMIT")
    return True
