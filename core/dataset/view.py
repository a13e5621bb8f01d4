"""A view: which rows of a store, in which order, with which operations still to be done; a frozen value on a wire.

A view is filtered by an expression that a person types. It is read by a small parser of its own and becomes SQL with
bound values; nothing of it is ever evaluated as code.
"""

import re
import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from ..errors import AtelierError
from ..files import digest_of
from .record import Caption, Companion, Dataset, Decision, Row, Skipped
from .store import Store
from .stored import StoredRow

LONGEST, DEEPEST = 2000, 40  # characters and brackets of an expression
NAMES = {
    "width": "r.width", "height": "r.height", "split": "r.split", "repeats": "r.repeats", "stars": "r.stars",
    "decision": "r.decision", "path": "r.path", "id": "r.id",
    "format": "r.format COLLATE NOCASE", "parent": "r.parent",
    "shorter": "min(r.width, r.height)", "longer": "max(r.width, r.height)",
    "megapixels": "(r.width * r.height / 1e6)", "aspect": "(1.0 * r.width / r.height)",
    "kept": "(r.decision IS NOT 'reject')", "rejected": "(r.decision IS 'reject')", "undecided": "(r.decision IS NULL)",
    "captions": "(SELECT count(*) FROM captions c WHERE c.row = r.id)",
    "captioned": "EXISTS (SELECT 1 FROM captions c WHERE c.row = r.id)",
    "human": "EXISTS (SELECT 1 FROM captions c WHERE c.row = r.id AND c.author = 'human')",
    # Unknown, not 0, before anything has looked for faces.
    "faces": "CASE WHEN r.boxes IS NOT NULL THEN (SELECT count(*) FROM json_each(r.boxes) b "
             "WHERE json_extract(b.value, '$.label') = 'face') END",
    "boxes": "json_array_length(r.boxes)",
}  # fmt: skip
PREFIXES = {
    "tag": "EXISTS (SELECT 1 FROM json_each(r.tags) t WHERE t.value = ? COLLATE NOCASE)",
    "caption": "EXISTS (SELECT 1 FROM captions c WHERE c.row = r.id AND instr(lower(c.text), lower(?)))",
    "note": "instr(lower(r.notes), lower(?))",
    "path": "instr(lower(r.path), lower(?))",
    "box": "EXISTS (SELECT 1 FROM json_each(r.boxes) b WHERE json_extract(b.value, '$.label') = ? COLLATE NOCASE)",
}
OPERATORS = {"==": "=", "=": "=", "!=": "<>", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
TOKEN = re.compile(
    r"""\s*(?:(?P<number>-?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)|(?P<prefix>[a-z]+):(?P<word>"[^"]*"|'[^']*'|[^\s()"']+)"""
    r"""|(?P<text>"[^"]*"|'[^']*')|(?P<name>[^\W\d][\w.]*)|(?P<mark>==|!=|<=|>=|<|>|=|\(|\)))""",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Condition:
    """An expression as SQL over `rows r`, and the values of its question marks."""

    sql: str
    values: tuple[object, ...] = ()


def compile_filter(expression: str, scores: Iterable[str] = ()) -> Condition:
    """Read an expression such as `sharpness > 0.4 and faces == 1 and not tag:watermark`.

    expression  comparisons of names, numbers and texts in quotes, also chained (0.5 < aspect < 2); tag:, caption:,
                note:, path: and box: with a word; and, or, not, brackets. Empty for all.
    scores      names that rows have scores for
    ->          a row that lacks a value matches neither a comparison with it nor its opposite
    Raises AtelierError that shows the place, or the nearest name.
    """
    if len(expression) > LONGEST:
        raise AtelierError(f"The filter has {len(expression)} characters. Keep it below {LONGEST}.")
    return _Parser(expression, set(scores)).parse() if expression.strip() else Condition("1")


class _Parser:
    """Recursive descent: or, and, not, then a bracket, a prefix or a comparison."""

    def __init__(self, text: str, scores: set[str]):
        self.text, self.scores, self.at, self.depth = text, scores, 0, 0
        self.tokens = list(self._tokens())
        self.values: list[object] = []

    def _tokens(self):
        at, end = 0, len(self.text.rstrip())
        while at < end:
            found = TOKEN.match(self.text, at)
            if not found:
                raise AtelierError(
                    f"The filter is not understood at {self.text[at:][:20].strip()!r}. {self._example()}"
                )
            yield found
            at = found.end()

    def _example(self) -> str:
        return "Write it like: sharpness > 0.4 and not tag:watermark."

    def parse(self) -> Condition:
        sql = self._either()
        if self.at < len(self.tokens):
            self._fail()
        return Condition(sql, tuple(self.values))

    def _fail(self):
        place = self.tokens[self.at].group().strip() if self.at < len(self.tokens) else "its end"
        raise AtelierError(f"The filter is not understood at {place!r}. {self._example()}")

    def _word(self) -> str:
        """The token if it is a mark or a name, in lower case."""
        if self.at >= len(self.tokens):
            return ""
        found = self.tokens[self.at]
        return (found["mark"] or found["name"] or "").lower()

    def _take(self, *words: str) -> str:
        word = self._word()
        if word in words:
            self.at += 1
            return word
        return ""

    def _either(self) -> str:
        parts = [self._both()]
        while self._take("or"):
            parts.append(self._both())
        return parts[0] if len(parts) == 1 else f"({' OR '.join(parts)})"

    def _both(self) -> str:
        parts = [self._single()]
        while self._take("and"):
            parts.append(self._single())
        return parts[0] if len(parts) == 1 else f"({' AND '.join(parts)})"

    def _single(self) -> str:
        self.depth += 1
        if self.depth > DEEPEST:
            raise AtelierError(f"The filter nests deeper than {DEEPEST}. Make it simpler.")
        try:
            if self._take("not"):
                return f"(NOT {self._single()})"
            if self._take("("):
                inner = self._either()
                if not self._take(")"):
                    self._fail()
                return f"({inner})"
            if self.at < len(self.tokens) and self.tokens[self.at]["prefix"]:
                return self._prefix()
            return self._comparison()
        finally:
            self.depth -= 1

    def _prefix(self) -> str:
        found = self.tokens[self.at]
        kind = found["prefix"].lower()
        if kind not in PREFIXES:
            raise AtelierError(
                f"The filter has {kind}:, which is not known. Use {', '.join(p + ':' for p in PREFIXES)}."
            )
        self.at += 1
        self.values.append(_unquoted(found["word"]))
        return PREFIXES[kind]

    def _comparison(self) -> str:
        left, left_values = self._operand()
        parts: list[str] = []
        while operator := self._take(*OPERATORS):
            right, right_values = self._operand()
            parts.append(f"{left} {OPERATORS[operator]} {right}")
            self.values += [*left_values, *right_values]
            left, left_values = right, right_values
        if parts:
            return f"({' AND '.join(parts)})"
        if left == "?":
            self._fail()
        self.values += left_values
        return f"({left})"

    def _operand(self) -> tuple[str, list[object]]:
        if self.at >= len(self.tokens):
            self._fail()
        found = self.tokens[self.at]
        self.at += 1
        if found["number"]:
            return "?", [float(found["number"])]
        if found["text"]:
            return "?", [_unquoted(found["text"])]
        name = found["name"]
        if not name or name.lower() in ("and", "or", "not"):
            self.at -= 1
            self._fail()
        if name in NAMES:
            return NAMES[name], []
        if name in self.scores:
            return "json_extract(r.scores, ?)", [f'$."{name}"']
        near = get_close_matches(name, [*NAMES, *self.scores], 1, 0.5)
        hint = f"Did you mean {near[0]}?" if near else "Texts stand in quotes; scores come with a scan."
        raise AtelierError(f"The filter has {name}, which is not known. {hint}")


def _unquoted(text: str) -> str:
    return text[1:-1] if text[:1] in "\"'" and text[-1:] == text[:1] and len(text) > 1 else text


@dataclass(frozen=True)
class Op:
    """An operation that is done when a picture is opened: its name, and its settings as pairs."""

    name: str
    settings: tuple[tuple[str, object], ...] = ()


@dataclass(frozen=True)
class View:
    """Rows of a store in an order; nothing is read from the store before it is asked for.

    `revision` is the store's when the view was made; `current` says whether it still is.
    """

    store: Path
    revision: int
    ids: tuple[str, ...]
    ops: tuple[Op, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(cls, store: Store, expression: str = "", order: str = "path") -> "View":
        """All readable rows of a store that an expression selects, in the order of a name (`-sharpness` for falling)."""
        revision = store.revision
        return cls(store.path, revision, tuple(_select(store, expression, order)))

    def _with_store(self, read: Callable):
        with Store(self.store, made=False) as store:
            return read(store)

    @property
    def current(self) -> bool:
        """Whether the store is as it was when the view was made."""
        return self._with_store(lambda store: store.revision) == self.revision

    @property
    def fingerprint(self) -> str:
        """Digest of what the view holds, for a cache: the store's revision, the rows and the operations."""
        ops = [[op.name, [list(pair) for pair in op.settings]] for op in self.ops]
        return digest_of(str(self.store), self.revision, self.ids, ops)

    def filter(self, expression: str) -> "View":
        """The rows that an expression selects, in this view's order."""
        found = set(self._with_store(lambda store: _select(store, expression, "")))
        return self.only(own for own in self.ids if own in found)

    def sort(self, order: str) -> "View":
        """The same rows in the order of a name or score, falling with a minus before it; ties by path."""
        mine = set(self.ids)
        return self.only(own for own in self._with_store(lambda store: _select(store, "", order)) if own in mine)

    def only(self, ids: Iterable[str]) -> "View":
        """Some rows of this view, in the order given; raises AtelierError for one that it does not have."""
        chosen, mine = tuple(dict.fromkeys(ids)), set(self.ids)
        foreign = next((own for own in chosen if own not in mine), None)
        if foreign is not None:
            raise AtelierError(f"The view has no row {foreign}. Choose rows of this view.")
        return replace(self, ids=chosen)

    def renewed(self) -> "View":
        """The rows that are still there, at the store's present revision."""
        revision, there = self._with_store(lambda store: (store.revision, set(store.ids())))
        return replace(self, revision=revision, ids=tuple(own for own in self.ids if own in there))

    def then(self, op: Op) -> "View":
        """This view with one more operation to do when its pictures are opened."""
        return replace(self, ops=(*self.ops, op))

    def rows(self, start: int = 0, stop: int | None = None) -> list[StoredRow]:
        """Whole rows from one place in the order to another, as the store holds them now."""
        return self._with_store(lambda store: store.rows(self.ids[start:stop]))

    def dataset(self) -> Dataset:
        """The view as the record that the trainer and the nodes read; rows of the test split are left out.

        Raises AtelierError if there are crops or other operations, which that record cannot hold.
        """
        with Store(self.store, made=False) as store:
            root, faults, rows = store.meta("root"), store.faults(), store.rows(self.ids)
        edited = self.ops or any(row.crop or row.ops for row in rows)
        if edited:
            raise AtelierError("The view has crops or other operations that are not done yet. Export it, then train.")
        kept = tuple(_record(row) for row in rows if row.split != "test")
        return Dataset(root, kept, tuple(Skipped(path, reason) for path, reason in faults))


def _select(store: Store, expression: str, order: str) -> list[str]:
    falling, name = order.startswith("-"), order.removeprefix("-")
    condition = compile_filter(expression, scores := store.score_names())
    key, values = NAMES.get(name) if name else "1", []
    if key is None:
        if name not in scores:
            near = get_close_matches(name, [*NAMES, *scores], 1, 0.5)
            raise AtelierError(f"There is no {name} to sort by. Use {near[0] if near else 'path or a score'}.")
        key, values = "json_extract(r.scores, ?)", [f'$."{name}"']
    by = f"{key} {'DESC' if falling else 'ASC'} NULLS LAST, r.path, r.id" if name else "r.rowid"
    try:
        return store.ids(condition.sql, (*condition.values, *values), by)
    except sqlite3.OperationalError as error:
        raise AtelierError(f"The filter {expression!r} cannot be used ({error}). Make it simpler.") from None


def _record(row: StoredRow) -> Row:
    captions = tuple(Caption(c.text, "human" if c.author == "human" else c.model or c.author) for c in row.captions)
    rejected = Decision(row.reason or "rejected", row.decided_by or "human") if row.decision == "reject" else None
    beside = {kind: Companion(**held) for kind, held in row.companions.items()}
    return Row(row.id, row.path, row.digest, row.width, row.height, captions, row.split, rejected, **beside)
