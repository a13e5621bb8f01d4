"""A folder of pictures becomes a dataset: sub-folders, sidecar captions, EXIF turns; what cannot be read is named."""

import logging
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import AtelierError
from ..files import digest, digest_of
from .record import Caption, Companion, Dataset, Row, Skipped

log = logging.getLogger("flux_atelier")
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
SIDECARS = (".txt", ".caption")
# name.mask.png beside name.jpg; the second spelling is OneTrainer's.
COMPANIONS = {"mask": (".mask", "-masklabel"), "control": (".control", "-condlabel")}
LARGEST = 200_000_000  # pixels


def load_folder(folder: Path, validation: int = 0) -> Dataset:
    """Read a folder and its sub-folders into a dataset.

    Pictures are taken in the order of their paths. Every file is decoded once, small, to find the broken ones; they
    are named in `skipped`. A caption is the text of `name.txt` or `name.caption` beside the picture.

    folder      the folder
    validation  every so many pictures one is set aside for validation; 0 for none
    Raises AtelierError if there is no such folder, or no readable picture in it.
    """
    root = Path(folder).expanduser().resolve()
    if not root.is_dir():
        raise AtelierError(f"There is no folder {root}. Give the path of a folder with pictures.")
    files = list(picture_files(root))
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda file: _read_row(root, file), files))
    rows = [r for r in found if isinstance(r, Row)]
    skipped = tuple(s for s in found if isinstance(s, Skipped))
    for item in skipped:
        log.warning("skipped %s: %s", item.path, item.reason)
    if not rows:
        raise AtelierError(
            f"{root} has no readable picture ({len(skipped)} unreadable). Put {', '.join(ENDINGS)} files into it."
        )
    return set_split(Dataset(str(root), tuple(rows), skipped), validation)


def set_split(dataset: Dataset, every: int) -> Dataset:
    """Set one in `every` pictures aside for validation, chosen by their bytes so that adding pictures moves none."""
    if every <= 0:
        return dataset
    held = [is_held_out(row.digest, every) for row in dataset.rows]
    return dataset.with_rows(
        [replace(r, split="validation" if h else "train") for r, h in zip(dataset.rows, held, strict=True)]
    )


def is_held_out(digest: str, every: int) -> bool:
    """Whether a picture is the one in `every` that is set aside, by its bytes alone."""
    return int(digest[:8], 16) % every == 0


def picture_files(root: Path) -> Iterator[Path]:
    """Files with a picture's ending below a folder, sorted; hidden files, masks and controls are passed over."""
    marks = tuple(mark for group in COMPANIONS.values() for mark in group)
    for path in sorted(root.rglob("*"), key=lambda p: p.relative_to(root).as_posix()):
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        if path.suffix.lower() in ENDINGS and path.is_file() and not hidden and not path.stem.endswith(marks):
            yield path


def companion(root: Path, file: Path, kind: str) -> Companion | None:
    """The mask or control picture beside a picture, or None.

    Raises AtelierError if it cannot be decoded.
    """
    for mark in COMPANIONS[kind]:
        for ending in ENDINGS:
            beside = file.with_name(f"{file.stem}{mark}{ending}")
            if beside.is_file():
                check_picture(beside)
                return Companion(beside.relative_to(root).as_posix(), digest(beside))
    return None


def _read_row(root: Path, file: Path) -> Row | Skipped:
    name = file.relative_to(root).as_posix()
    try:
        width, height = check_picture(file)
        captions = read_captions(file)
        mask, control = (companion(root, file, kind) for kind in ("mask", "control"))
    except AtelierError as error:
        return Skipped(name, str(error))
    return Row(digest_of(name, size=8), name, digest(file), width, height, captions, mask=mask, control=control)


def check_picture(file: Path) -> tuple[int, int]:
    """Decode a picture as small as its format allows and return its size after the EXIF turn.

    Raises AtelierError that says what is wrong with it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file) as picture:
                width, height = picture.size
                if width * height > LARGEST:
                    raise AtelierError(f"{width} x {height} pixels are more than this pack opens. Make it smaller.")
                turned = picture.getexif().get(0x0112, 1) in (5, 6, 7, 8)
                picture.draft("RGB", (64, 64))
                picture.load()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise AtelierError(f"The picture cannot be decoded ({error}). Save it again.") from None
    return (height, width) if turned else (width, height)


def open_picture(file: Path, draft: int = 0) -> Image.Image:
    """Open a picture as RGB, turned as its EXIF says, transparency laid on white.

    draft  decode a JPEG no larger than needed for this side in pixels; 0 for the full picture
    Raises AtelierError that names the file.
    """
    try:
        with Image.open(file) as picture:
            if draft:
                picture.draft("RGB", (draft, draft))
            turned = ImageOps.exif_transpose(picture)
            if turned.mode.startswith("I;16") or turned.mode in ("I", "F"):
                turned = turned.point(lambda v: v / 256).convert("L")
            if turned.mode in ("RGBA", "LA", "PA") or "transparency" in turned.info:
                turned = turned.convert("RGBA")
                ground = Image.new("RGBA", turned.size, "white")
                turned = Image.alpha_composite(ground, turned)
            return turned.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise AtelierError(f"{file} cannot be read ({error}). Remove it or save it again, then load anew.") from None


def open_mask(file: Path, alpha: bool) -> Image.Image:
    """Open a mask as grey, turned as its EXIF says: a picture of its own, or the alpha channel of one.

    Raises AtelierError that names the file.
    """
    try:
        with Image.open(file) as picture:
            turned = ImageOps.exif_transpose(picture)
            if not alpha:
                return turned.convert("L")
            if turned.mode not in ("RGBA", "LA", "PA") and "transparency" not in turned.info:
                return Image.new("L", turned.size, 255)
            return turned.convert("RGBA").getchannel("A")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise AtelierError(f"{file} cannot be read ({error}). Remove it or save it again, then load anew.") from None


def read_captions(file: Path) -> tuple[Caption, ...]:
    """The caption beside a picture: UTF-8 text, with or without a byte order mark, trimmed; none if empty or absent.

    Raises AtelierError if the text is not UTF-8.
    """
    for ending in SIDECARS:
        sidecar = file.with_suffix(ending)
        if sidecar.is_file():
            try:
                text = sidecar.read_text(encoding="utf-8-sig").strip()
            except UnicodeDecodeError:
                raise AtelierError(f"The caption {sidecar.name} is not UTF-8 text. Save it as UTF-8.") from None
            if text:
                return (Caption(text, "human"),)
    return ()
