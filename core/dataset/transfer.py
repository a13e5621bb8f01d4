"""A view in the words of the exchange formats, and what was read from one laid on a view."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path, PurePosixPath

from PIL import Image

from ..counting import counted
from ..errors import AtelierError
from .exchange.exchanged import Exchanged, Target
from .exchange.formats import export_rows
from .exchange.renewal import renewed
from .opening import open_row, root_of
from .stored import StoredRow, WrittenCaption
from .view import View, base_of

WRITABLE = {".jpg": ("JPEG", {"quality": 95, "subsampling": 0}), ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
            ".png": ("PNG", {}), ".webp": ("WEBP", {"lossless": True})}  # fmt: skip


@dataclass(frozen=True)
class Exported:
    """What an export wrote: pictures; rows of which a trainer sees less than they hold; masks and controls left out."""

    pictures: int
    less: int
    companions: int

    def lines(self, name: str) -> list[str]:
        """What a person should know besides where it lies."""
        told = []
        if self.less:
            told.append(f"{self.less} of them hold more than {name} has words for; it is kept for importing them again")
        if self.companions:
            told.append(
                f"{counted(self.companions, 'mask or control picture', 'masks and control pictures')} stay behind"
            )
        return told


def export_view(view: View, name: str, target: Target, tick: Callable[[int], object] = lambda _: None) -> Exported:
    """Write a view's kept pictures and what is known of them in a format, whole or not at all.

    Pictures that are cropped or changed, and variants, are drawn; all others are linked or copied as they are.

    name    one of FORMATS
    target  its pictures folder is set to the view's; an earlier export in its folder is replaced if that is allowed
    tick    is called with the number of pictures done; what it raises ends the export and leaves all as it was
    Raises AtelierError as export_rows does, or if no picture is kept.
    """
    rows = view.kept_rows()
    if not rows:
        raise AtelierError(f"None of {counted(len(view), 'picture')} is kept. Loosen the curation, or keep some.")
    root = root_of(view)
    done = count(1)
    paths = {row.id: path_of(view, row) for row in rows}
    drawn = {paths[row.id]: row for row in rows if is_drawn(view, row)}
    sources = {paths[row.id]: row.path for row in rows}

    def draw(path: str, goal: Path) -> bool:
        """Draw a picture where it is not what lies on disk; whether it was drawn."""
        tick(next(done))
        row = drawn.get(path)
        if row is None:
            return False
        kind, settings = WRITABLE[goal.suffix.lower()]
        open_row(view, root, row).save(goal, kind, **settings)
        return True

    told = [exchanged(view, row, paths[row.id]) for row in rows]
    whole = replace(target, pictures=root, draw=draw, sources=sources)
    if Path(target.folder).resolve() == Path(root).resolve():
        less = export_rows(name, told, whole)
    else:
        with renewed(target.folder, target.replace):
            less = export_rows(name, told, whole)
    return Exported(len(rows), less, sum(len(row.companions) for row in rows))


def exchanged(view: View, row: StoredRow, path: str) -> Exchanged:
    """A row in the words of the exchange formats."""
    captions = tuple(caption.text for caption in view.captions_of(row))
    return Exchanged(path, captions, tuple(row.tags), row.split, row.repeats)


def is_drawn(view: View, row: StoredRow) -> bool:
    """Whether a row's picture is not the file as it lies on disk."""
    return bool(row.crop or view.ops_of(row) or row.parent)


def path_of(view: View, row: StoredRow) -> str:
    """The path of a row in an export: a variant has its number, a drawn picture an ending that can be written."""
    path = PurePosixPath(row.path)
    if not is_drawn(view, row):
        return row.path
    number = row.id.partition("+")[2]
    ending = path.suffix if path.suffix.lower() in WRITABLE else ".png"
    return path.with_name(f"{path.stem}{'+' + number if number else ''}{ending}").as_posix()


def with_exchanged(view: View, rows: Sequence[Exchanged], place: Callable[[Exchanged], str]) -> View:
    """Lay on a view what was read from an exchange format: captions as a person's, tags, splits and repeats.

    place  where a format puts the picture of a row
    Raises AtelierError for a row whose picture is not there, or of which there are several.
    """
    by_name: dict[str, list[StoredRow]] = {}
    for row in view.rows():
        if row.id == base_of(row.id):
            by_name.setdefault(PurePosixPath(row.path).name, []).append(row)
    laid: dict[str, dict[str, object]] = {}
    for told in rows:
        there = by_name.get(PurePosixPath(told.path).name, [])
        row = _found(there, (told.path, place(told)))
        laid[row.id] = {"split": told.split, "repeats": told.repeats}
        if not any(c.author == "human" and c.origin == "store" for c in row.captions):
            # What a person has written since the import stands; what models wrote does in any case.
            others = tuple(c for c in row.captions if c.author != "human")
            told_here = tuple(WrittenCaption(text, "human", origin="file") for text in told.captions)
            laid[row.id]["captions"] = (*told_here, *others)
        if told.tags and not row.tags:
            laid[row.id]["tags"] = told.tags
    return view.only(own for own in view.ids if base_of(own) in laid).lay(laid)


def _found(there: Sequence[StoredRow], paths: tuple[str, str]) -> StoredRow:
    """The row of one of two paths, else the only one whose path ends like the first."""
    for path in paths:
        for row in there:
            if row.path == path:
                return row
    near = [row for row in there if row.path.endswith(f"/{paths[0]}")]
    if len(near) != 1:
        what = "is no picture that can be read" if not near else f"may be {near[0].path} or {near[1].path}"
        raise AtelierError(f"{paths[0]} {what} below the folder. Give the exported folder itself.")
    return near[0]


def estimate_bytes(view: View) -> int:
    """Memory of all pictures of a view as float32 images, in bytes."""
    return sum(4 * 3 * row.width * row.height for row in view.dataset().kept)


def pictures_of(view: View) -> list[tuple[StoredRow, str]]:
    """The kept rows of a view that are not of the test split, each with its first caption that counts, or nothing."""
    kept = [row for row in view.kept_rows() if row.split != "test"]
    return [(row, (*(c.text for c in view.captions_of(row)), "")[0]) for row in kept]


def open_pictures(view: View, rows: Sequence[StoredRow]) -> Iterator[Image.Image]:
    """Open rows' pictures as the view says, one after another."""
    root = root_of(view)
    return (open_row(view, root, row) for row in rows)
