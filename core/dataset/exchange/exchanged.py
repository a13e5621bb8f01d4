"""What every exchange format gives and takes: rows, where they go, and the rules for writing them.

A path is relative to the folder of the pictures, with forward slashes. Pictures are linked or copied into the export and
their sources never written to. A file that is there with another text is only overwritten on request.
"""

import codecs
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from ...errors import AtelierError
from ...files import write_text, write_whole

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "eval"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


@dataclass(frozen=True)
class Exchanged:
    """One picture as formats know it: its path, its captions, its tags, its split and how often it is repeated."""

    path: str
    captions: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    split: str = "train"
    repeats: int = 1

    @property
    def said(self) -> tuple[str, ...]:
        """The captions, or the tags as one caption where there is none; for formats that know no tags."""
        return self.captions or ((", ".join(self.tags),) if self.tags else ())


@dataclass(frozen=True)
class Target:
    """Where an export goes.

    folder    the folder to write
    pictures  the folder that the rows' paths are relative to; may be the same
    replace   whether captions that are there may be overwritten
    trigger   the word that ai-toolkit is to write as [trigger]
    draw      draws the picture of a row's path into a file where it is not one that lies on disk; whether it did
    sources   by a row's path: that of its file, where it is another one
    """

    folder: Path
    pictures: Path
    replace: bool = False
    trigger: str = ""
    draw: Callable[[str, Path], bool] | None = None
    sources: Mapping[str, str] = field(default_factory=dict)


def check_rows(rows: Sequence[Exchanged]) -> None:
    """Refuse rows that no format can hold.

    Raises AtelierError for a path that is twice there or leads outside, a text that is not Unicode, a split of unknown
    name, or fewer than one repeat.
    """
    seen: set[str] = set()
    for row in rows:
        inside(row.path)
        if row.path in seen:
            raise AtelierError(f"{row.path} is there twice. Give each picture one row.")
        seen.add(row.path)
        if row.split not in SPLITS.values():
            raise AtelierError(f'{row.path} is in the split "{row.split}". Use train, validation or test.')
        if row.repeats < 1:
            raise AtelierError(f"{row.path} has {row.repeats} repeats. Use 1 or more, or leave the row out.")
        try:
            "".join((*row.captions, *row.tags)).encode()
        except UnicodeEncodeError:
            raise AtelierError(f"The caption of {row.path} has half a character. Write it again.") from None


def inside(path: str) -> str:
    """A path as it was, if it is relative and stays below its folder; raises AtelierError otherwise."""
    parts = PurePosixPath(path).parts
    if not parts or parts[0] == "/" or ".." in parts or "\\" in path or "\0" in path or ":" in parts[0]:
        raise AtelierError(f'The path "{path}" leads out of the dataset\'s folder. Use one relative to it.')
    return path


def place_pictures(rows: Iterable[Exchanged], target: Target, place: Callable[[Exchanged], str]) -> None:
    """Bring pictures into an export: by a hard link, else by a copy; those that are in place stay.

    place  the path within the export's folder
    Raises AtelierError if a picture is missing, or another one is in its place.
    """
    for row in rows:
        source = Path(target.pictures) / target.sources.get(row.path, row.path)
        goal = Path(target.folder) / place(row)
        if not source.is_file():
            raise AtelierError(f"There is no picture {source}. Load the dataset again.")
        if target.draw and _drawn(target.draw, row.path, goal):
            continue
        if goal.exists() and (goal.samefile(source) or goal.read_bytes() == source.read_bytes()):
            continue
        if goal.exists():
            raise AtelierError(f"{goal} is another picture. Export into an empty folder.")
        goal.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, goal)
        except OSError:  # another disk, or a file system without links
            write_whole(goal, lambda part, source=source: shutil.copyfile(source, part))


def _drawn(draw: Callable[[str, Path], bool], path: str, goal: Path) -> bool:
    """Draw a picture beside its place, then put it there; one that is there and equal stays."""
    part = goal.with_name(f".drawn{goal.suffix}")
    goal.parent.mkdir(parents=True, exist_ok=True)
    try:
        if not draw(path, part):
            return False
        if goal.exists() and goal.read_bytes() != part.read_bytes():
            raise AtelierError(f"{goal} is another picture. Export into an empty folder.")
        os.replace(part, goal)
        return True
    finally:
        part.unlink(missing_ok=True)


def write_new(path: Path, text: str, target: Target) -> None:
    """Write a text file; raises AtelierError if it is there with another text and must not be replaced."""
    if path.exists():
        if path.read_bytes() == text.encode():
            return
        if not target.replace:
            raise AtelierError(f"{path} is there already with another text. Choose an empty folder or allow replacing.")
    elif not text:
        return
    write_text(path, text)


def write_beside(texts: Iterable[tuple[str, str]], ending: str, target: Target) -> None:
    """Write texts beside pictures, with the ending in place of the picture's.

    texts  path of the picture within the export, and the text; an empty one writes no file
    Raises AtelierError if pictures of one name but for the ending have different texts.
    """
    files: dict[str, tuple[str, str]] = {}
    for path, text in texts:
        beside = PurePosixPath(path).with_suffix(ending).as_posix()
        other, said = files.setdefault(beside, (path, text))
        if said != text:
            raise AtelierError(f"{other} and {path} would share the caption file {beside}. Rename one of them.")
    for beside, (_, text) in files.items():
        write_new(Path(target.folder) / beside, text, target)


def read_caption_file(path: Path) -> str:
    """Read a text file: UTF-8 with or without a byte order mark or UTF-16 with one, lines ended in any of three ways.

    Raises AtelierError if it is neither.
    """
    raw = path.read_bytes()
    encoding = next((name for mark, name in MARKS if raw.startswith(mark)), "utf-8")
    try:
        return raw.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError:
        raise AtelierError(f"The caption {path} is not UTF-8 text. Save it as UTF-8.") from None


def below(folders: Iterable[tuple[str, Exchanged]]) -> list[Exchanged]:
    """Rows sorted by path, each with its folder before the path only where two folders have a picture of that path.

    folders  the folder within the dataset that the row's path is relative to, and the row
    """
    found = list(folders)
    often: dict[str, int] = {}
    for _, row in found:
        often[row.path] = often.get(row.path, 0) + 1
    rows = [replace(r, path=f"{f}/{r.path}") if f and often[r.path] > 1 else r for f, r in found]
    return sorted(rows, key=lambda r: r.path)
