"""The record of a picture in a dataset store, and how its values become columns."""

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

# Columns that hold JSON; what a scan finds; what people and nodes choose.
JSON = ("notes", "scores", "hashes", "companions", "columns", "tags", "boxes", "crop", "ops")
FOUND = [
    "path",
    "digest",
    "stamp",
    "beside",
    "width",
    "height",
    "format",
    "notes",
    "fault",
    "measured",
    "scores",
    "hashes",
    "companions",
    "columns",
]
CHOSEN = ("split", "repeats", "tags", "boxes", "crop", "ops", "stars", "decision", "reason", "parent")
encode = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps would make an encoder for every value


@dataclass(frozen=True)
class WrittenCaption:
    """A caption as stored: who wrote it, and for a model which one, with which prompt."""

    text: str
    author: str = "human"  # or "model"
    model: str = ""
    prompt: str = ""  # digest of the prompt and settings
    seed: int | None = None
    score: float | None = None
    origin: str = "store"  # or "file": it follows the sidecar


@dataclass(frozen=True)
class StoredRow:
    """One picture: what the scan found, and what people and nodes chose.

    `boxes` are dicts with label, x, y, w, h in pixels and score, None before anything looked; `crop` is [x, y, w, h];
    `ops` are replayed when the picture is opened; `notes` say what opening it meant; `fault` why it cannot be opened.
    """

    path: str
    digest: str
    stamp: str = ""
    beside: str = ""
    width: int = 0
    height: int = 0
    format: str = ""
    notes: tuple[str, ...] = ()
    fault: str | None = None
    measured: int = 0
    scores: Mapping[str, float] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)
    companions: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    columns: Mapping[str, object] = field(default_factory=dict)
    split: str = "train"
    repeats: int = 1
    tags: tuple[str, ...] = ()
    boxes: tuple[Mapping, ...] | None = None
    crop: tuple[int, ...] | None = None
    ops: tuple[Mapping, ...] | None = None
    stars: int | None = None
    decision: str | None = None
    reason: str | None = None
    parent: str | None = None
    decided_by: str | None = None
    decided_at: str | None = None
    id: str = ""
    captions: tuple[WrittenCaption, ...] = ()


def written(caption: WrittenCaption) -> tuple:
    """A caption's values in the order of its columns; dataclasses' astuple takes ten times as long."""
    return tuple(vars(caption).values())


def counting_places(captions: Sequence[WrittenCaption], preferred: Iterable[str] = ()) -> list[int]:
    """Which of a row's captions count: a person's, else the first preferred model's that has one, else the last model's.

    ->  their places, in order; none where there is no caption
    """
    human = [i for i, caption in enumerate(captions) if caption.author == "human"]
    if human or not captions:
        return human
    there = {caption.model for caption in captions}
    model = next((name for name in preferred if name in there), captions[-1].model)
    return [i for i, caption in enumerate(captions) if caption.model == model]


def pack(name: str, value: object) -> object:
    """A value as its column holds it: JSON for what is not a number or a text."""
    if name not in JSON or value is None:
        return value
    if not value:
        return "{}" if isinstance(value, Mapping) else "[]"
    return encode(dict(value) if isinstance(value, Mapping) else value)


def packed(row: StoredRow, names: Iterable[str]) -> list[object]:
    """Values of some columns of a row, as the store holds them."""
    return [pack(name, getattr(row, name)) for name in names]


def unpacked(row: sqlite3.Row) -> StoredRow:
    """A row as read from the store, without its captions."""
    values = {name: row[name] for name in row.keys() if name not in ("gone", "number")}
    for name in JSON:
        found = json.loads(values[name]) if values[name] is not None else None
        values[name] = tuple(found) if isinstance(found, list) else found
    return StoredRow(**values)
