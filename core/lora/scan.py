"""Filling the registry: what a LoRA file says of itself, and folders of them."""

import hashlib
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import AtelierError
from .formats import read_lora
from .header import Header, hash_file, read_header
from .identity import identity, survey
from .provenance import RECIPE, TAGS, trigger_words
from .record import Lora
from .registry import Entry, Parent, Registry, entry_of, put

log = logging.getLogger("flux_atelier")
PARENTS = "flux_atelier.parent_hashes"  # "hash" in its name: what is made of this file does not take it over
LONGEST = 4000  # letters of a header's entry that the registry keeps
MOST_TAGS = 50  # of the captions' tags, the most frequent
# What a file from anywhere can make a reader raise: a scan says so in the file's row and goes on.
UNREADABLE = (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError)


@dataclass(frozen=True)
class Progress:
    """How far a scan is: files done of all, the one it comes from, and what became of it.

    state  unchanged, read, unreadable or gone; an unreadable one has its problem
    """

    done: int
    total: int
    path: Path
    state: str
    problem: str = ""


def scan(registry: Registry, places: Iterable[Path], again: bool = False) -> Iterator[Progress]:
    """Bring the registry up to what folders hold, file by file; stop it at any time, what is done is kept.

    A file whose time and size are as before is not read again. A file that cannot be read gets a row that says why.
    places  folders with everything below them, or single files
    again   also read the files that look unchanged
    Raises AtelierError if a place is missing, or the registry cannot be written.
    """
    roots = [plain_path(p) for p in places]
    files = list(dict.fromkeys(f for root in roots for f in lora_files(root)))
    rows = registry.rows("SELECT path, size, modified, missing FROM loras")
    before = {row["path"]: (row["size"], row["modified"]) for row in rows}
    gone = [Path(row["path"]) for row in rows if not row["missing"] and _is_gone(Path(row["path"]), roots)]
    total, unchanged = len(files) + len(gone), []
    for done, path in enumerate(files, 1):
        if not again and str(path) in before and before[str(path)] == _stat(path):
            unchanged.append(str(path))
            yield Progress(done, total, path, "unchanged")
            continue
        problem = _refresh(registry, path)
        yield Progress(done, total, path, "unreadable" if problem else "read", problem)
    with registry.change() as db:
        now = time.time()
        db.executemany("UPDATE loras SET last_seen = ?, missing = 0 WHERE path = ?", [(now, p) for p in unchanged])
        db.executemany("UPDATE loras SET missing = 1 WHERE path = ?", [(str(p),) for p in gone])
    for done, path in enumerate(gone, len(files) + 1):
        yield Progress(done, total, path, "gone")


def plain_path(path: Path) -> Path:
    """A path as the registry has it: absolute, without .., links as they are."""
    return Path(os.path.abspath(path))


def lora_files(place: Path) -> Iterator[Path]:
    """The safetensors files of a folder and all below it, links followed; a file gives itself.

    Raises AtelierError if there is nothing of that name.
    """
    if place.is_file():
        yield place
        return
    if not place.is_dir():
        raise AtelierError(f"There is no folder {place}. Check the name, or connect the disk it is on.")
    seen = set()
    for folder, below, names in os.walk(place, followlinks=True):
        real = os.path.realpath(folder)
        below[:] = [] if real in seen else sorted(n for n in below if not n.startswith("."))
        fresh = real not in seen
        seen.add(real)
        for name in sorted(names) if fresh else ():
            if name.lower().endswith(".safetensors") and not name.startswith("."):
                yield Path(folder, name)


def _is_gone(path: Path, roots: Sequence[Path]) -> bool:
    return any(path.is_relative_to(root) for root in roots) and not path.is_file()


def _stat(path: Path) -> tuple[int, int]:
    """Size and time of a file; a file that has just gone has neither."""
    try:
        facts = path.stat()
    except OSError:
        return -1, -1
    return facts.st_size, facts.st_mtime_ns


def _refresh(registry: Registry, path: Path) -> str:
    """Read a file into its row; gives its problem, or ""."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return f"The name {str(path)!r} is no text in this system's encoding. Rename the file."
    entry = read_entry(path)
    _keep(registry, entry)
    return entry.problem


def record(
    registry: Registry,
    path: Path,
    lora: Lora | None = None,
    parents: Sequence[Parent] = (),
    scores: Mapping[str, float] = {},
) -> Entry:
    """Put a LoRA file that was just written into the registry.

    path     the file
    lora     what was written; in a higher precision it has another identity, by which its wire is known as well
    parents  what it was made of; () keeps what the header or the registry tells
    scores   figures to add
    ->       its row
    Raises AtelierError if the file cannot be read or the registry cannot be written.
    """
    entry = read_entry(plain_path(path))
    if entry.problem:
        raise AtelierError(entry.problem)
    other = identity(lora) if lora is not None else entry.hash
    aliases = (other,) if other != entry.hash else ()
    return _keep(
        registry, replace(entry, aliases=aliases, parents=tuple(parents) or entry.parents, scores=dict(scores))
    )


def _keep(registry: Registry, entry: Entry) -> Entry:
    """Write a file's row, with what the registry alone knows of that LoRA."""
    with registry.change() as db:
        own = db.execute("SELECT first_seen FROM loras WHERE path = ?", [entry.path]).fetchone()
        sql = "SELECT * FROM loras WHERE hash = ? AND hash != '' ORDER BY path != ?, noted DESC"
        same = [entry_of(row) for row in db.execute(sql, [entry.hash, entry.path])]
        now = time.time()
        entry = replace(entry, first_seen=own["first_seen"] if own else now, last_seen=now)
        for known in same[:1]:
            entry = replace(
                entry,
                scores=known.scores | entry.scores,
                notes=known.notes,
                noted=known.noted,
                aliases=tuple(dict.fromkeys((*known.aliases, *entry.aliases))),
                parents=entry.parents if any(p.hash for p in entry.parents) else known.parents or entry.parents,
            )
        put(db, entry)
    return entry


def read_entry(path: Path) -> Entry:
    """All that a file tells of itself; one that cannot be read has the sentence that says why as its problem."""
    size, modified = _stat(path)
    entry = Entry(str(path), size=size, modified=modified)
    try:
        hashes, header = hash_file(path), read_header(path)
        entry = replace(_said(entry, header), sha256=hashes.file, tensors_sha256=hashes.tensors)
        lora = read_lora(path)
        found = survey(lora)
        return replace(
            entry, hash=found.identity, base=lora.base, layout=lora.layout, kinds=found.kinds, rank=found.rank,
            alpha=found.alpha, layers=found.layers,
        )  # fmt: skip
    except AtelierError as error:
        problem = str(error)
    except UNREADABLE as error:
        log.warning("%s could not be read", path, exc_info=True)
        problem = f"{path.name} could not be read as a LoRA ({type(error).__name__}: {error}). Save it again."
    return replace(entry, problem=problem, sha256=entry.sha256 or _sha256(path))


def _sha256(path: Path) -> str:
    try:
        with open(path, "rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError:
        return ""  # the problem says it already


def _said(entry: Entry, header: Header) -> Entry:
    """An entry with what a header says."""
    said = header.metadata
    dtypes = Counter(facts["dtype"] for name, facts in header.tensors.items() if not name.endswith(".alpha"))
    return replace(
        entry,
        dtype=dtypes.most_common(1)[0][0] if dtypes else "",
        title=said.get("modelspec.title") or said.get("ss_output_name", ""),
        triggers=tuple(trigger_words(said)),
        comment=said.get("ss_training_comment", ""),
        tags=tuple(w.strip() for w in said.get("modelspec.tags", "").split(",") if w.strip()),
        provenance=_provenance(said),
        parents=parents_of(said),
    )


def _provenance(said: Mapping[str, str]) -> dict[str, Any]:
    """A header's entries that are short enough to keep, those of this pack and the captions' tags as values."""
    ours = {k: parsed(v) for k, v in said.items() if k.startswith("flux_atelier.")}
    kept = {k: v for k, v in said.items() if len(v) <= LONGEST and k != TAGS}
    tables = parsed(said.get(TAGS, ""))
    counts = Counter[str]()
    for table in tables.values() if isinstance(tables, dict) else ():
        counts.update({k: v for k, v in table.items() if isinstance(v, int)} if isinstance(table, dict) else {})
    tags = {TAGS: dict(counts.most_common(MOST_TAGS))} if counts else {}
    return kept | ours | tags


def parsed(text: str) -> Any:
    """A JSON value, or the text itself where it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def parents_of(said: Mapping[str, str]) -> tuple[Parent, ...]:
    """What a header says a LoRA was made of: identities where it has them, else the names in its recipe."""
    told = parsed(said.get(PARENTS, ""))
    if isinstance(told, list):
        pairs = [p for p in told if isinstance(p, dict) and isinstance(p.get("hash"), str)]
        return tuple(Parent(p["hash"], str(p.get("name", ""))) for p in pairs)
    recipe = parsed(said.get(RECIPE, ""))
    steps = [v for k, v in recipe.items() if k != "before"] if isinstance(recipe, dict) else []
    sources = [s for step in steps if isinstance(step, list) for s in step if isinstance(s, dict)]
    return tuple(Parent("", str(s["name"])) for s in sources if s.get("name"))


def parents_entry(parents: Sequence[tuple[str, Lora]]) -> dict[str, str]:
    """The header's entry that names what a LoRA was made of, for files that outlive the registry.

    parents  name and LoRA of each
    """
    return {PARENTS: json.dumps([vars(Parent(identity(lora), name)) for name, lora in parents])}
