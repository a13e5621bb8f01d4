"""From what a person has (a folder, an archive, a table, a video) to a view: listed, scanned, kept in a store."""

from collections.abc import Generator
from dataclasses import astuple
from pathlib import Path

from PIL import Image

from ..errors import AtelierError
from ..files import digest_of
from .folder import is_held_out, open_picture
from .replay import replay
from .scan import Progress, scan, thumb_path
from .sources import list_folder, open_source
from .store import Store
from .stored import StoredRow
from .unpack import Take
from .view import View

STORE, UNPACKED, THUMBS = "atelier.db", "unpacked", "thumbs"


def store_name(path: Path, take: Take | None = None) -> str:
    """The name of a source's folder among the datasets: its own and eight hex digits of where it lies and what is taken."""
    path = Path(path).resolve()
    plain = "".join(sign if sign.isalnum() or sign in "-_" else "-" for sign in path.stem).strip("-")[:40]
    return f"{plain or 'dataset'}-{digest_of(path.as_posix(), astuple(take or Take()), size=4)}"


def open_dataset(
    path: Path, folder: Path, take: Take | None = None, measured: bool = True
) -> Generator[Progress, None, View]:
    """Bring a source's store up to date and view all its readable pictures by path.

    path      a folder, an archive, a parquet table or a video
    folder    where its store, its thumbnails and what is unpacked go
    take      which part of it
    measured  False looks at headers only
    ->        progress; closing the generator cancels, what is done stays; returns the view
    Raises AtelierError if there is nothing, or nothing readable.
    """
    source = open_source(Path(path), Path(folder) / UNPACKED, take)
    with Store(Path(folder) / STORE) as store:
        yield from scan(store, source, measured)
        view = View.of(store)
        faults = store.faults()
    if not view.ids:
        raise AtelierError(
            f"{path} has no readable picture ({len(faults)} unreadable). Give one with pictures that open."
        )
    return view


def hold_out(view: View, every: int) -> View:
    """Set one picture in so many aside for validation, by its bytes, so that adding pictures moves none."""
    if not every:
        return view
    rows = (row for row in view.rows() if row.split == "train" and is_held_out(row.digest, every))
    return view.lay({row.id: {"split": "validation"} for row in rows})


def remarks(view: View) -> list[str]:
    """What a person should know of a dataset: pictures that cannot be opened, captions that cannot be read."""
    with Store(view.store, made=False) as store:
        lines = [f"skipped {path}: {reason}" for path, reason in store.faults()]
        return lines + [f"{path}: {note}" for path, note in store.noted("caption")]


def listing(path: Path) -> str:
    """A digest of names, sizes and times, captions included, that changes when a scan has something to do."""
    path = Path(path)
    if path.is_dir():
        items = list_folder(path).items
        if items:
            return digest_of([[item.path, item.stamp, item.beside] for item in items])
    stat = path.stat()
    return digest_of(path.as_posix(), stat.st_size, stat.st_mtime_ns)


def edits(path: Path) -> int:
    """How often a person edited a dataset, by the path of its store; 0 where there is none yet."""
    if not path.is_file():
        return 0
    with Store(path, made=False) as store:
        return store.edited


def open_row(view: View, root: Path, row: StoredRow) -> Image.Image:
    """Open a row's picture as RGB, cropped and turned as the view says.

    Raises AtelierError that names the file.
    """
    return replay(open_picture(Path(root) / row.path), row.crop, view.ops_of(row))


def thumb_of(store: Path, row: StoredRow) -> Path:
    """Where a row's thumbnail lies, whether there is one or not."""
    return thumb_path(Path(store).parent / THUMBS, row.digest)


def root_of(view: View) -> Path:
    """The folder below which a view's pictures lie."""
    with Store(view.store, made=False) as store:
        return Path(store.meta("root"))
