"""A contact sheet: every picture of a view, small, with its name and why it is left out."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..images import within
from .opening import open_row, root_of, thumb_of
from .stored import StoredRow
from .view import View

CELL, LABEL, GAP = 160, 40, 8
PAPER, INK, KEPT, LEFT_OUT = (250, 249, 246), (40, 40, 40), (74, 140, 92), (186, 64, 52)
MOST = 240  # pictures on one sheet


def contact_sheet(view: View, columns: int = 6) -> Image.Image:
    """Lay out a view's pictures as they will be used, those left out with a red frame and the reason.

    Where there are more than 240, those left out come first.
    """
    shown = view.shown(MOST)
    columns = max(1, min(columns, len(shown)))
    lines = -(-len(shown) // columns)
    width, height = columns * (CELL + GAP) + GAP, lines * (CELL + LABEL + GAP) + GAP
    sheet, root = Image.new("RGB", (width, max(height, GAP)), PAPER), root_of(view)
    for i, (row, reason) in enumerate(shown):
        at = GAP + i % columns * (CELL + GAP), GAP + i // columns * (CELL + LABEL + GAP)
        _cell(sheet, at, _small(view, root, row), row, reason or said(view, row), reason is None)
    return sheet


def said(view: View, row: StoredRow) -> str:
    """A row's first caption that counts, or that there is none."""
    captions = view.captions_of(row)
    return captions[0].text if captions else "no caption"


def _small(view: View, root: Path, row: StoredRow) -> Image.Image:
    thumb = thumb_of(view.store, row)
    if row.crop or view.ops_of(row) or not thumb.is_file():
        return within(open_row(view, root, row), CELL - 6)
    with Image.open(thumb) as picture:
        return within(picture.convert("RGB"), CELL - 6)


def _cell(sheet: Image.Image, at: tuple[int, int], small: Image.Image, row: StoredRow, note: str, kept: bool) -> None:
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    sheet.paste(small, (at[0] + (CELL - small.width) // 2, at[1] + (CELL - small.height) // 2))
    color = KEPT if kept else LEFT_OUT
    pen.rectangle([at[0], at[1], at[0] + CELL, at[1] + CELL], outline=color, width=2)
    name = row.path if len(row.path) <= 26 else "…" + row.path[-25:]
    pen.text((at[0] + 2, at[1] + CELL + 3), name, INK, font)
    pen.text((at[0] + 2, at[1] + CELL + 19), note if len(note) <= 28 else note[:27] + "…", color, font)
