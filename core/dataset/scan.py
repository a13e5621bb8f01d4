"""The scan: every picture is read and decoded once for its size, faults, thumbnail, hash and raw scores.

A scan is a generator of its progress. Whoever stops asking has cancelled it; each batch is committed, so the next scan
goes on from there. Files whose stat has not changed are not opened again.
"""

import hashlib
import io
import math
import os
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from ..errors import AtelierError
from ..files import digest_of
from .folder import LARGEST
from .hashes import dct_hash
from .measures import measure_both, shrunk
from .sources import Item, Source, read_details
from .store import Store
from .stored import StoredRow

MEASURED = 1  # version of the measures: a later one has every picture measured again
BATCH, HEADERS = 64, 1024  # pictures of one commit, when they are decoded and when only headers are read
PARTS = 16  # tasks of a batch: one for each picture would cost more than looking at a header
WORKERS = 2
THUMB = 256  # pixels, longer side
SMALLEST = 1000  # pixels, about the size of training: a JPEG is decoded smaller where both sides keep so many
DAMAGED = (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError)


@dataclass(frozen=True)
class Progress:
    """How far a scan is: pictures done of those that needed it, faults among them, and the last one's path."""

    done: int
    total: int
    faults: int
    path: str = ""


@dataclass(frozen=True)
class Opened:
    """A decoded picture as RGB, its size when full, its format, and what opening it meant."""

    image: Image.Image
    width: int
    height: int
    format: str
    notes: tuple[str, ...]


def scan(store: Store, source: Source, measured: bool = True, workers: int = WORKERS) -> Iterator[Progress]:
    """Bring a store up to date with a listing.

    store     where rows go; thumbnails go into `thumbs` beside it
    source    the listing, from open_source
    measured  False for size, digest and captions only, which opens a folder without decoding
    workers   threads that decode
    ->        progress after each batch, at least once; closing the generator cancels
    Raises AtelierError if the listing is empty: a disk that is not there must not empty the store.
    """
    if not source.items:
        raise AtelierError(
            f"{source.root} has no picture. Give a folder with pictures, or look whether its disk is there."
        )
    store.set_meta("root", str(source.root))
    known = store.stamps()
    store.leave(known.keys() - {item.path for item in source.items})
    work = [item for item in source.items if _is_stale(item, known.get(item.path), measured)]
    told = [i for i in source.items if _has_news_beside(i, known.get(i.path))]
    store.follow([_beside(source, item, StoredRow(item.path, "")) for item in told])
    done = faults = 0
    yield Progress(0, len(work), 0)
    with ThreadPoolExecutor(workers) as pool:
        for found in _ahead(pool, store, source, work, measured):
            store.put(found)
            done, faults = done + len(found), faults + sum(row.fault is not None for row in found)
            yield Progress(done, len(work), faults, found[-1].path)


def _is_stale(item: Item, known: tuple[str, str, int] | None, measured: bool) -> bool:
    return known is None or known[0] != item.stamp or (measured and known[2] != MEASURED)


def _has_news_beside(item: Item, known: tuple[str, str, int] | None) -> bool:
    return known is not None and known[0] == item.stamp and known[1] != item.beside


def _ahead(pool: ThreadPoolExecutor, store: Store, source: Source, work: list, measured: bool) -> Iterator[list]:
    """Batches of rows in order, the next one at work while the last one is written; closing stops what waits."""
    thumbs = store.path.parent / "thumbs" if measured else None
    size = BATCH if measured else HEADERS
    waiting = []
    try:
        for start in range(0, len(work), size):
            batch = work[start : start + size]
            parts = [batch[at : at + size // PARTS] for at in range(0, len(batch), size // PARTS)]
            waiting.append([pool.submit(_examine_some, source, part, thumbs) for part in parts])
            if len(waiting) > 1:
                yield [row for future in waiting.pop(0) for row in future.result()]
        while waiting:
            yield [row for future in waiting.pop(0) for row in future.result()]
    finally:
        for future in (f for futures in waiting for f in futures):
            future.cancel()


def _examine_some(source: Source, items: list[Item], thumbs: Path | None) -> list[StoredRow]:
    return [examine(source, item, thumbs) for item in items]


def examine(source: Source, item: Item, thumbs: Path | None) -> StoredRow:
    """Read one picture into a row; one that cannot be opened becomes a row with its fault.

    thumbs  folder of the thumbnails; None to look at the header only
    """
    try:
        with open(os.path.join(source.root, item.path), "rb") as file:
            data = file.read()
    except OSError as error:
        lost = digest_of("unread", item.path, item.stamp)
        return StoredRow(item.path, lost, item.stamp, fault=f"The file cannot be read ({error}).", measured=MEASURED)
    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    row = StoredRow(item.path, digest, item.stamp, split=item.split, repeats=item.repeats)
    row = _beside(source, item, row)
    try:
        opened = open_any(data, SMALLEST) if thumbs else open_header(data)
    except AtelierError as error:
        return replace(row, fault=str(error), measured=MEASURED)
    row = replace(
        row, width=opened.width, height=opened.height, format=opened.format, notes=(*opened.notes, *row.notes)
    )
    if thumbs is None:
        return row
    small = shrunk(opened.image)
    grey = small.convert("L")
    write_thumb(thumb_path(thumbs, digest), small)
    hashes = {"dct": f"{dct_hash(grey):016x}"}
    scores = {name: value for name, value in measure_both(opened.image, small, grey).items() if math.isfinite(value)}
    return replace(row, scores=scores, hashes=hashes, measured=MEASURED)


def _beside(source: Source, item: Item, row: StoredRow) -> StoredRow:
    found = read_details(source, item)
    return replace(
        row, beside=item.beside, captions=found.captions, columns=found.columns, tags=found.tags,
        companions=found.companions, notes=found.notes,
    )  # fmt: skip


def open_header(data: bytes) -> Opened:
    """Look at a picture's header only; the image is not decoded. Raises AtelierError as open_any does."""
    return _open(data, None)


def open_any(data: bytes, draft: int = 0) -> Opened:
    """Decode a picture of any kind as RGB and say what that meant.

    EXIF turns are undone, transparency is laid on white, an ICC profile of CMYK is obeyed, 16 bits become 8, and of an
    animation the first frame is taken.

    data   the file's bytes
    draft  pixels: a JPEG may be decoded smaller while both sides keep so many; 0 for the full picture
    Raises AtelierError that says what is wrong with it.
    """
    return _open(data, draft)


def _open(data: bytes, draft: int | None) -> Opened:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as picture:
                (width, height), kind = picture.size, picture.format or ""
                if width * height > LARGEST:
                    raise AtelierError(f"{width} x {height} pixels are more than this pack opens. Make it smaller.")
                notes = _notes(picture)  # before EXIF is asked for, which decodes a PNG
                headless = draft is None and kind == "PNG" and "exif" not in picture.info
                turn = 1 if headless else picture.getexif().get(0x0112, 1)
                if turn in range(2, 9):
                    notes = (f"turned: EXIF orientation {turn}", *notes)
                if turn in (5, 6, 7, 8):
                    width, height = height, width
                if draft is None:
                    return Opened(picture, width, height, kind, notes)
                if draft and kind in ("JPEG", "MPO"):
                    picture.draft(None, (draft, draft))
                picture.load()  # before it is turned, since only a decoded picture can be turned in its place
                ImageOps.exif_transpose(picture, in_place=True)
                return Opened(_rgb(picture), width, height, kind, notes)
    except DAMAGED as error:
        if isinstance(error, UnidentifiedImageError):
            raise AtelierError(f"The file is {'empty' if not data else 'no picture'}. Save it again.") from None
        raise AtelierError(f"The file is damaged or cut short ({error}). Save it again.") from None


def _notes(picture: Image.Image) -> tuple[str, ...]:
    notes = []
    if _is_transparent(picture):
        notes.append("alpha: laid on white")
    if picture.mode == "CMYK":
        notes.append("CMYK: by its ICC profile" if picture.info.get("icc_profile") else "CMYK: without a profile")
    deep = any(";16" in str(tile[3]) for tile in getattr(picture, "tile", []) if len(tile) > 3)
    if deep or picture.mode.startswith(("I", "F")):
        notes.append("deep: more than 8 bits")
    if picture.format != "MPO" and getattr(picture, "n_frames", 1) > 1:  # a phone's MPO has a depth map or a preview
        notes.append(f"animated: first of {picture.n_frames} frames")
    return tuple(notes)


def _is_transparent(picture: Image.Image) -> bool:
    return picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info


def _rgb(picture: Image.Image) -> Image.Image:
    """A decoded picture of any mode as RGB."""
    if picture.mode == "CMYK" and (profile := picture.info.get("icc_profile")):
        try:
            srgb = ImageCms.createProfile("sRGB")
            return ImageCms.profileToProfile(picture, io.BytesIO(profile), srgb, outputMode="RGB")
        except ImageCms.PyCMSError:  # a damaged profile: the plain conversion is what viewers show
            return picture.convert("RGB")
    if picture.mode.startswith("I"):
        highest = picture.getextrema()[1]
        picture = picture.point(lambda v: v / 256).convert("L") if highest > 255 else picture.convert("L")
    elif picture.mode == "F":
        highest = picture.getextrema()[1]
        picture = picture.point(lambda v: v * (255 if highest <= 1 else 1)).convert("L")
    if _is_transparent(picture):
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def thumb_path(thumbs: Path, digest: str) -> Path:
    """Where the thumbnail of a picture with these bytes lies."""
    return thumbs / digest[:2] / f"{digest}.jpg"


def write_thumb(path: Path, image: Image.Image) -> None:
    """Write a thumbnail, whole or not at all; one that is there is kept, since it is named by the picture's bytes."""
    if path.exists():
        return
    scale = max(1.0, max(image.size) / THUMB)
    size = tuple(max(1, round(side / scale)) for side in image.size)
    small = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.{id(image)}.part")
    try:
        small.save(part, "JPEG", quality=85)  # a seventh of the time that WebP takes
        os.replace(part, path)  # without a flush: it is a cache, and a flush for each would double the scan
    finally:
        part.unlink(missing_ok=True)


def finish(progress: Iterable[Progress]) -> Progress:
    """Run a scan to its end and return its last progress."""
    last = Progress(0, 0, 0)
    for step in progress:
        last = step
    return last
