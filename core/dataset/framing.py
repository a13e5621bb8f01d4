"""A view's faces and crops: found once and kept in the store, or laid on the view."""

from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from ..counting import counted
from .buckets import make_buckets
from .crop import Crop, CropOptions, choose_bucket, smart_crop
from .faces import faces_among, find_faces, with_sharpness
from .folder import open_picture
from .opening import root_of, thumb_of
from .record import Row
from .saliency import subject_map
from .store import Store
from .stored import StoredRow
from .view import View

BATCH = 32  # pictures of one commit
ASPECTS = {
    "buckets": None, "square": 1.0, "2:3": 2 / 3, "3:4": 3 / 4, "9:16": 9 / 16, "3:2": 3 / 2, "4:3": 4 / 3, "16:9": 16 / 9,
}  # fmt: skip


def find_faces_in(view: View, again: bool = False) -> Generator[int, None, None]:
    """Find faces on a view's pictures and write their boxes into the store, batch by batch; other boxes stay.

    again  also where it was looked before
    ->     how many are done
    Raises AtelierError if there is no detector, or a picture cannot be opened.
    """
    root = root_of(view)
    rows = [row for row in view.rows() if row.parent is None and (again or row.boxes is None)]
    for start in range(0, len(rows), BATCH):
        found = {}
        for i, row in enumerate(rows[start : start + BATCH], start + 1):
            image = open_picture(root / row.path)
            others = [box for box in row.boxes or () if str(box["label"]).lower() != "face"]
            found[row.id] = {"boxes": (*others, *with_sharpness(image, find_faces(image)))}
            yield i
        with Store(view.store, made=False) as store:
            store.edit(found, "Find Faces", undoable=False)


def crop_view(
    view: View, aspect: str, resolution: int, options: CropOptions
) -> Generator[int, None, tuple[View, list[str]]]:
    """Lay crops on a view that cut no face and keep the subject; crops that are there stay.

    aspect      a name of ASPECTS
    resolution  of the training, for buckets
    ->          how many are done; returns the view, and what a person should know: a summary, then pictures by name
    """
    whole = view.rows()
    rows = [row for row in whole if row.crop is None and row.parent is None and row.decision != "reject"]
    target, crops = ASPECTS[aspect], {}
    buckets = make_buckets(resolution)
    for i, row in enumerate(rows, 1):
        faces, subject, size = faces_among(row.boxes), _subject(view, row), (row.width, row.height)
        if target is not None:
            crop = smart_crop(size, target, faces, subject, options)
            crops[row.id] = crop, _told(crop)
        else:
            choice = choose_bucket(size, faces, subject, buckets, options)
            crops[row.id] = choice.crop, choice.told
        yield i
    laid = {own: {"crop": crop.box} for own, (crop, _) in crops.items() if crop.kept < 1}
    return view.lay(laid), _lines(whole, rows, crops)


def _lines(whole: Sequence[StoredRow], rows: Sequence[StoredRow], crops: dict[str, tuple[Crop, str]]) -> list[str]:
    lost = sum(1 - crop.kept for crop, _ in crops.values()) / max(1, len(crops))
    cut = sum(bool(crop.faces_cut) for crop, _ in crops.values())
    unseen = sum(row.boxes is None for row in rows)
    lines = [f"{counted(len(crops), 'crop')}, {lost:.1%} of the pixels lost, faces cut on {cut}"]
    if unseen:
        lines.append(f"Nobody has looked for faces on {counted(unseen, 'picture')}: put Find Faces before this node.")
    stay, made = sum(row.crop is not None for row in whole), sum(row.parent is not None for row in whole)
    lines += [f"{counted(stay, 'crop')} from before this node {'stays' if stay == 1 else 'stay'}"] if stay else []
    if made:
        lines.append(f"{counted(made, 'augmented copy', 'augmented copies')} stay as they are: crop before augmenting.")
    return lines + [f"{row.path}: {crops[row.id][1]}" for row in rows if crops[row.id][1]]


def _told(crop: Crop) -> str:
    if not crop.faces_cut and not crop.faces_lost:
        return ""
    return f"{crop.faces_held} faces are kept, {crop.faces_cut} cut, {crop.faces_lost} left out."


def _subject(view: View, row: StoredRow):
    """The box called subject, else what stands out on the thumbnail."""
    named = (box for box in row.boxes or () if str(box["label"]).lower() == "subject")
    return next(named, None) or subject_map(_small(view, row))


def _small(view: View, row: StoredRow) -> Image.Image:
    thumb = thumb_of(view.store, row)
    return open_picture(thumb if thumb.is_file() else Path(root_of(view)) / row.path, 256)


def trained_sizes(view: View) -> list[Row]:
    """The rows that are trained on, at their sizes after crops and operations, known by their paths."""
    return [
        replace(row, id=row.path, crop=None, ops=()) for row in view.dataset().kept if row.split == "train"
    ]  # fmt: skip
