"""Finding LoRAs in the registry: by words, by hash, by what they were made of."""

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ..errors import AtelierError
from .registry import Entry, Parent, Registry, entry_of, folded

GRAM = 3  # letters a word must have for the index to know it
MOST_WORDS = 64
Sort = Literal["name", "newest", "largest", "score"]
ORDER: dict[str, str] = {
    "name": "path COLLATE NOCASE",
    "newest": "modified DESC, path",
    "largest": "size DESC, path",
    "score": "(SELECT max(value) FROM json_each(scores)) DESC NULLS LAST, path",
}
HEX = re.compile(r"(0x)?([0-9a-f]{4,64})", re.IGNORECASE)


def search(
    registry: Registry, text: str = "", base: str = "", sort: Sort = "name", limit: int = 100, missing: bool = False
) -> list[Entry]:
    """Find LoRAs that have every word of a text in their names, triggers, tags, comments, notes or hashes.

    text     words between blanks, each of which may be a part of a word; upper and lower case are the same
    base     kind of model, or "" for any
    sort     name, newest, largest, or score, the highest first
    limit    how many at most, 1 or more
    missing  also those whose file is gone
    Raises AtelierError for an unknown order or more than 64 words.
    """
    if sort not in ORDER:
        raise AtelierError(f"The order is {sort!r}. Choose one of {', '.join(get_args(Sort))}.")
    where, values = matching(text, registry.indexed)
    if base:
        where, values = [*where, "base = ?"], [*values, base]
    if not missing:
        where.append("missing = 0")
    clause = f"WHERE {' AND '.join(where)}" if where else ""
    # What could not be read stands last, whatever the order.
    sql = f"SELECT * FROM loras {clause} ORDER BY problem <> '', {ORDER[sort]} LIMIT ?"
    return [entry_of(row) for row in registry.rows(sql, [*values, max(1, limit)])]


def matching(text: str, indexed: bool) -> tuple[list[str], list[str]]:
    """SQL conditions and their values for a search's words: long ones through the index, the others through LIKE."""
    # What no text may hold is no part of any name either: halves of letters, and the end of a C string.
    sound = text.encode("utf-8", "replace").decode().replace("\0", " ")
    words = list(dict.fromkeys(folded(sound).split()))
    if len(words) > MOST_WORDS:
        raise AtelierError(f"The search has {len(words)} words. Give at most {MOST_WORDS}.")
    long = [w for w in words if indexed and len(w) >= GRAM]
    where, values = [], []
    if long:
        where.append("loras.rowid IN (SELECT rowid FROM loras_words WHERE loras_words MATCH ?)")
        values.append(" ".join('"' + w.replace('"', '""') + '"' for w in long))
    for word in words:
        if word not in long:
            where.append(r"words LIKE ? ESCAPE '\'")
            values.append("%" + re.sub(r"[\\%_]", r"\\\g<0>", word) + "%")
    return where, values


def resolve(registry: Registry, word: str) -> Entry:
    """The one LoRA that a word means: the start of a hash (identity, file, tensors), a path, or a file's name.

    Of a LoRA's copies, the one whose file was seen last.
    Raises AtelierError if there is none, or more than one.
    """
    word = word.strip()
    found = _by_hash(registry, word) if HEX.fullmatch(word) else []
    found = found or _by_name(registry, word)
    hashes = {entry.hash or entry.path for entry in found}
    if not found:
        raise AtelierError(f"The registry has no LoRA {word!r}. Scan the folder it lies in, or look for its name.")
    if len(hashes) > 1:
        some = ", ".join(sorted(h[:12] for h in hashes)[:5])
        raise AtelierError(f"{word!r} means {len(hashes)} LoRAs: {some}. Give more of the hash, or the path.")
    return found[0]


def _by_hash(registry: Registry, word: str) -> list[Entry]:
    start = word.lower().removeprefix("0x") + "%"
    sql = "SELECT * FROM loras WHERE hash LIKE ? OR sha256 LIKE ? OR tensors_sha256 LIKE ? OR aliases LIKE ?"
    rows = registry.rows(f"{sql} ORDER BY missing, last_seen DESC", [start, start, start, f'%"{start}'])
    return [entry_of(row) for row in rows]


def _by_name(registry: Registry, word: str) -> list[Entry]:
    path = os.path.abspath(word)
    rows = registry.rows("SELECT path FROM loras")
    names = [r["path"] for r in rows if r["path"] == path or word in (Path(r["path"]).name, Path(r["path"]).stem)]
    found = [registry.rows("SELECT * FROM loras WHERE path = ?", [name])[0] for name in names]
    exact = [row for row in found if row["path"] == path]
    return sorted(map(entry_of, exact or found), key=lambda e: (e.missing, -e.last_seen))


def copies(registry: Registry, entry: Entry) -> list[Entry]:
    """The files of a LoRA, this one first."""
    rows = registry.rows("SELECT * FROM loras WHERE hash = ? AND hash != '' AND path != ?", [entry.hash, entry.path])
    return [entry, *map(entry_of, rows)]


@dataclass(frozen=True)
class Relative:
    """A LoRA's ancestor (generation -1, -2 ...) or descendant (1, 2 ...).

    hash     its identity, or "" where a header tells only the name
    entry    its file, or None where the registry has none
    by_name  whether it is known by its name alone, which may mislead
    """

    generation: int
    hash: str
    name: str
    entry: Entry | None
    by_name: bool


@dataclass(frozen=True)
class Kin:
    """Who was made of whom: each LoRA's parents by its identity; identities by their aliases and by files' names."""

    parents: dict[str, list[Parent]]
    known_as: dict[str, str]
    stems: dict[str, set[str]]

    def key(self, parent: Parent) -> tuple[str, bool]:
        """A parent's identity, or its name where that is all there is; and whether it is by name."""
        if parent.hash:
            return self.known_as.get(parent.hash, parent.hash), False
        found = self.stems.get(Path(parent.name).stem, set())
        return (next(iter(found)) if len(found) == 1 else f"name:{parent.name}"), True


def family(registry: Registry, identity: str) -> list[Relative]:
    """Ancestors and descendants of a LoRA through every merge, the oldest generation first.

    identity  whole, as an Entry's hash; a LoRA that comes by several ways counts in its nearest generation
    """
    kin = _kin(registry)
    start = kin.known_as.get(identity, identity)
    up: dict[str, list[tuple[str, str, bool]]] = {}
    down: dict[str, list[tuple[str, str, bool]]] = {}
    for child, parents in kin.parents.items():
        for parent in parents:
            key, by_name = kin.key(parent)
            up.setdefault(child, []).append((key, parent.name, by_name))
            down.setdefault(key, []).append((child, "", by_name))
    relatives = [*_walk(start, up, -1), *_walk(start, down, 1)]
    entries = _entries(registry, {hash for _, hash, _, _ in relatives})
    return [_relative(g, key, name, entries.get(key), by_name) for g, key, name, by_name in sorted(relatives)]


def _walk(start: str, edges: Mapping[str, list[tuple[str, str, bool]]], step: int) -> list[tuple[int, str, str, bool]]:
    """Everything that edges lead to, with its distance; each once, and never the start itself."""
    found: dict[str, tuple[int, str, str, bool]] = {}
    generation, at = step, [start]
    while at:
        following = []
        for key, name, by_name in (edge for node in at for edge in edges.get(node, ())):
            if key != start and key not in found:
                found[key] = generation, key, name, by_name
                following.append(key)
        generation, at = generation + step, following
    return list(found.values())


def _relative(generation: int, key: str, name: str, entry: Entry | None, by_name: bool) -> Relative:
    return Relative(
        generation, "" if key.startswith("name:") else key, name or (entry.name if entry else ""), entry, by_name
    )


def _kin(registry: Registry) -> Kin:
    parents: dict[str, list[Parent]] = {}
    known_as: dict[str, str] = {}
    stems: dict[str, set[str]] = {}
    for row in registry.rows("SELECT path, hash, aliases, parents FROM loras WHERE hash != ''"):
        known_as |= dict.fromkeys([row["hash"], *json.loads(row["aliases"])], row["hash"])
        stems.setdefault(Path(row["path"]).stem, set()).add(row["hash"])
        if row["parents"] != "[]":
            parents.setdefault(row["hash"], []).extend(Parent(**p) for p in json.loads(row["parents"]))
    return Kin(parents, known_as, stems)


def _entries(registry: Registry, hashes: Iterable[str]) -> dict[str, Entry]:
    """A file of each LoRA, one that is there before one that is gone."""
    sql = "SELECT * FROM loras WHERE hash = ? ORDER BY missing, path LIMIT 1"
    found = {hash: registry.rows(sql, [hash]) for hash in hashes}
    return {hash: entry_of(rows[0]) for hash, rows in found.items() if rows}
