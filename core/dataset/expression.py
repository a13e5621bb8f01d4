"""Filters that a person types, such as `sharpness > 0.4 and not tag:watermark`, made into SQL.

A small parser of its own reads them; what a person wrote becomes bound values, and nothing of it is ever evaluated as
code.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

from ..errors import AtelierError
from .store import score_column

LONGEST, DEEPEST = 2000, 40  # characters and brackets of an expression
FACES = "FROM json_each(r.boxes) b WHERE json_extract(b.value, '$.label') = 'face' COLLATE NOCASE"
WIDE, HIGH = "json_extract(b.value, '$.w')", "json_extract(b.value, '$.h')"
LARGEST = f"{FACES} ORDER BY {WIDE} * {HIGH} DESC LIMIT 1"
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
    "faces": f"CASE WHEN r.boxes IS NOT NULL THEN (SELECT count(*) {FACES}) END",
    # Of the largest face: its share of the picture, its middle from 0 to 1, its sharpness; and any face's smallest side.
    "face_share": f"CASE WHEN r.boxes IS NOT NULL THEN "
                  f"coalesce((SELECT {WIDE} * {HIGH} {LARGEST}), 0) / (r.width * r.height) END",
    "face_x": f"(SELECT (json_extract(b.value, '$.x') + {WIDE} / 2.0) / r.width {LARGEST})",
    "face_y": f"(SELECT (json_extract(b.value, '$.y') + {HIGH} / 2.0) / r.height {LARGEST})",
    "face_sharpness": f"(SELECT json_extract(b.value, '$.sharpness') {LARGEST})",
    "face_side": f"(SELECT min(min({WIDE}, {HIGH})) {FACES})",
    "boxes": "json_array_length(r.boxes)",
}  # fmt: skip
# Columns over which a view may lay values of its own; `laid` is a temporary table of them.
LAID = ("split", "repeats", "tags", "boxes", "crop")
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


def check_syntax(expression: str) -> None:
    """Raise AtelierError for what is no filter, whatever scores there are."""
    names = {found["name"] for found in TOKEN.finditer(expression) if found["name"]}
    compile_filter(expression, names - {"and", "or", "not"})


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
            return f"s.{score_column(name)}", []
        near = get_close_matches(name, [*NAMES, *self.scores], 1, 0.5)
        hint = f"Did you mean {near[0]}?" if near else "Texts stand in quotes; scores come with a scan."
        raise AtelierError(f"The filter has {name}, which is not known. {hint}")


def _unquoted(text: str) -> str:
    return text[1:-1] if text[:1] in "\"'" and text[-1:] == text[:1] and len(text) > 1 else text


def overlaid(sql: str) -> str:
    """The same condition where a view's own values and captions stand before the stored ones."""
    columns = "|".join(LAID)
    sql = re.sub(rf"\br\.({columns})\b", r"coalesce((SELECT l.\1 FROM temp.laid l WHERE l.id = r.id), r.\1)", sql)
    stored = "SELECT row, text, author FROM captions WHERE row NOT IN (SELECT id FROM temp.laid WHERE said)"
    both = f"({stored} UNION ALL SELECT row, text, author FROM temp.laid_captions) c"
    return sql.replace("FROM captions c", f"FROM {both}")
