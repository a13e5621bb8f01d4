"""Where pictures come from: folders, archives, Hugging Face image folders, parquet tables, WikiArt, video files.

Everything that is not a folder is unpacked once into a cache folder, so that a dataset is always a root and files below
it. A listing looks at names and stat only; captions and masks are read for what changed.
"""

import csv
import io
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath

from ..errors import AtelierError
from . import folder
from .stored import WrittenCaption
from .unpack import ENDINGS, STYLES, TABLES, Take, known_name, unpack_archive, unpack_parquet, unpack_video

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
SPLITS = {"train": "train", "training": "train"} | dict.fromkeys(("validation", "valid", "val", "dev"), "validation")
SPLITS |= dict.fromkeys(("test", "testing"), "test")
CAPTION_COLUMNS = ("text", "caption", "captions")
MARKS = tuple(mark for group in folder.COMPANIONS.values() for mark in group)


@dataclass(frozen=True)
class Item:
    """A picture of a listing: path below the root, stat of the file and of what lies beside it."""

    path: str
    stamp: str
    beside: str
    split: str = "train"
    repeats: int = 1  # of a folder named like 10_cat
    table: str = ""  # the metadata file that tells of it


@dataclass(frozen=True)
class Source:
    """A listing of the pictures below a root, in the order of their paths."""

    root: Path
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Details:
    """What lies beside a picture."""

    captions: tuple[WrittenCaption, ...] = ()
    columns: Mapping[str, object] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    companions: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def open_source(path: Path, cache: Path, take: Take | None = None) -> Source:
    """List a folder, archive, parquet table or video as pictures below a root.

    path   what to open
    cache  folder into which everything but a folder of pictures is unpacked, once
    take   which part of it
    Raises AtelierError if there is nothing there, or it cannot be read.
    """
    path, take = Path(path).expanduser().resolve(), take or Take()
    name = path.name.lower()
    if path.is_dir():
        source = list_folder(path)
        tables = [] if source.items else sorted(path.rglob("*.parquet"))
        return list_folder(unpack_parquet(tables, cache, take)) if tables else _styled(source, take)
    if not path.is_file():
        raise AtelierError(f"There is nothing at {path}. Give a folder, an archive, a parquet table or a video.")
    if name.endswith(ARCHIVES):
        return _styled(list_folder(unpack_archive(path, cache)), take)
    if name.endswith(".parquet"):
        return list_folder(unpack_parquet([path], cache, take))
    if name.endswith(VIDEOS):
        return list_folder(unpack_video(path, cache, take))
    raise AtelierError(f"{path.name} is not of a known kind. Give a folder, .zip, .tar, .parquet or a video.")


# --- folders ---


def list_folder(root: Path) -> Source:
    """List the pictures below a folder by stat alone; hidden files, masks and controls are passed over.

    Raises AtelierError if there is no such folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise AtelierError(f"There is no folder {root}. Give the path of a folder with pictures.")
    found = _walk(root)
    split = any(SPLITS.get(path.split("/")[0].lower()) == "train" for path in found if "/" in path)
    tables = {str(PurePosixPath(p).parent): p for p in found if os.path.basename(p) in TABLES}
    pictures = [path for path in sorted(found) if path.lower().endswith(ENDINGS)]
    marked = {os.path.splitext(path)[0] for path in pictures if any(mark in path for mark in MARKS)}
    items = []
    for path in pictures:
        stem = os.path.splitext(path)[0]
        if stem.endswith(MARKS):
            continue
        table = _table_of(path, tables)
        beside = [name for end in folder.SIDECARS if (name := stem + end) in found]
        for mark in (mark for mark in MARKS if marked and stem + mark in marked):
            beside += [name for end in folder.ENDINGS if (name := stem + mark + end) in found]
        beside += [table] if table else []
        own = " ".join([f"{os.path.basename(name)}:{found[name]}" for name in beside])
        parts = path.split("/")
        chosen = SPLITS.get(parts[0].lower(), "train") if split and len(parts) > 1 else "train"
        items.append(Item(path, found[path], own, chosen, _repeats(parts), table))
    return Source(root, tuple(items))


def _walk(root: Path) -> dict[str, str]:
    """Time of change and size of every file by its path below the root; hidden files and folders are passed over."""
    found, waiting = {}, [""]
    while waiting:
        below = waiting.pop()
        with os.scandir(f"{root}/{below}") as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(f"{below}{entry.name}/")
                elif entry.is_file():
                    stat = entry.stat()
                    found[below + entry.name] = f"{stat.st_mtime_ns}:{stat.st_size}"
    return found


def _table_of(path: str, tables: dict[str, str]) -> str:
    if not tables:
        return ""
    return next((tables[str(above)] for above in PurePosixPath(path).parents if str(above) in tables), "")


def _repeats(parts: list[str]) -> int:
    told = re.match(r"(\d{1,4})_", parts[-2]) if len(parts) > 1 else None
    return max(1, int(told[1])) if told else 1


def read_details(source: Source, item: Item) -> Details:
    """Read captions, columns, tags and masks that belong to a picture; what cannot be read is a note."""
    file, notes, columns = source.root / item.path, [], {}
    captions: list[str] = []
    try:
        if any(f"{ending}:" in item.beside for ending in folder.SIDECARS):
            captions = [c.text for c in folder.read_captions(file)]
    except AtelierError as error:
        notes.append(str(error))
    if item.table:
        table = source.root / item.table
        name = PurePosixPath(item.path).relative_to(PurePosixPath(item.table).parent).as_posix()
        columns = dict(read_table(table, table.stat().st_mtime_ns).get(name, {}))
    for name in CAPTION_COLUMNS:
        told = columns.pop(name, None)
        captions += [str(t).strip() for t in (told if isinstance(told, list) else [told]) if t]
    columns = _of_wikiart(item.path) | columns
    tags = columns.pop("tags", None) or []
    tags = [t.strip() for t in tags.split(",")] if isinstance(tags, str) else tags
    tags = [str(t) for t in tags] if isinstance(tags, list) else []
    beside = {}
    for kind in (k for k, marks in folder.COMPANIONS.items() if any(mark in item.beside for mark in marks)):
        try:
            if found := folder.companion(source.root, file, kind):
                beside[kind] = {"path": found.path, "digest": found.digest}
        except AtelierError as error:
            notes.append(f"{kind}: {error}")
    texts = [WrittenCaption(text, origin="file") for text in dict.fromkeys(captions)]
    return Details(tuple(texts), columns, tuple(filter(None, tags)), beside, tuple(notes))


def _of_wikiart(path: str) -> dict[str, object]:
    """Style and artist of a picture below a folder with the name of a style, as Impressionism/claude-monet_title.jpg."""
    *folders, name = path.split("/")
    style = next((part for part in folders if part in STYLES), None)
    if style is None:
        return {}
    artist, parted, _ = name.partition("_")
    columns: dict[str, object] = {"style": style}
    return columns | ({"artist": artist} if parted else {})


@lru_cache(maxsize=4)
def read_table(file: Path, changed: int) -> dict[str, dict[str, object]]:
    """Read metadata.jsonl or metadata.csv of an image folder (Hugging Face datasets): columns by file name.

    file     the table
    changed  its time of change, so that a later one is read anew
    Raises AtelierError that names the line.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise AtelierError(f"{file} is not UTF-8 text. Save it as UTF-8.") from None
    if file.suffix == ".csv":
        rows: list[dict] = [
            {k: v for k, v in row.items() if k and v} for row in csv.DictReader(io.StringIO(text, newline=""))
        ]
    else:
        rows = [_read_line(file, i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    if any("file_name" not in row for row in rows):
        raise AtelierError(f"{file} has a row without file_name. Give each row the name of its picture.")
    return {PurePosixPath(str(row.pop("file_name"))).as_posix(): row for row in rows}


def _read_line(file: Path, number: int, line: str) -> dict[str, object]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        row = None
    if not isinstance(row, dict):
        raise AtelierError(f"Line {number} of {file} is not a JSON object. Mend or remove it.")
    return row


def _styled(source: Source, take: Take) -> Source:
    """Items of a WikiArt folder, Style/artist_title-year.jpg, that are of the style and artist."""
    if not (take.style or take.artist):
        return source
    items = source.items
    if take.style:
        folders = dict.fromkeys(p for i in items for p in i.path.split("/")[:-1])
        if not any(folder in STYLES for folder in folders):
            raise AtelierError("There are no folders of styles, as WikiArt has them. Set style to all.")
        style = known_name(take.style, folders, "style")[1]
        items = tuple(i for i in items if style in i.path.split("/")[:-1])
    if take.artist:
        by = {i.path: PurePosixPath(i.path).name.partition("_")[0] for i in items if "_" in PurePosixPath(i.path).name}
        if not by:
            raise AtelierError("No file is called artist_title, as WikiArt's are. Leave artist empty.")
        artist = known_name(take.artist, dict.fromkeys(by.values()), "artist")[1]
        items = tuple(i for i in items if by.get(i.path) == artist)
    return Source(source.root, items)
