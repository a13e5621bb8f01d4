"""A contact sheet: every picture of a dataset, small, with its name and why it is left out."""

from PIL import Image, ImageDraw, ImageFont

from ..images import within
from .folder import open_picture
from .record import Dataset, Row

CELL, LABEL, GAP = 160, 40, 8
PAPER, INK, KEPT, LEFT_OUT = (250, 249, 246), (40, 40, 40), (74, 140, 92), (186, 64, 52)
MOST = 400  # pictures on one sheet


def contact_sheet(dataset: Dataset, columns: int = 6) -> Image.Image:
    """Lay out a dataset's pictures, those left out with a red frame and the reason."""
    rows = dataset.rows[:MOST]
    columns = max(1, min(columns, len(rows)))
    lines = -(-len(rows) // columns)
    width, height = columns * (CELL + GAP) + GAP, lines * (CELL + LABEL + GAP) + GAP
    sheet = Image.new("RGB", (width, height), PAPER)
    for i, row in enumerate(rows):
        at = GAP + i % columns * (CELL + GAP), GAP + i // columns * (CELL + LABEL + GAP)
        _cell(sheet, at, dataset, row)
    return sheet


def _cell(sheet: Image.Image, at: tuple[int, int], dataset: Dataset, row: Row) -> None:
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    small = within(open_picture(dataset.file(row), draft=CELL * 2), CELL - 6)
    x, y = at[0] + (CELL - small.width) // 2, at[1] + (CELL - small.height) // 2
    sheet.paste(small, (x, y))
    color = KEPT if row.kept else LEFT_OUT
    pen.rectangle([at[0], at[1], at[0] + CELL, at[1] + CELL], outline=color, width=2)
    name = row.path if len(row.path) <= 26 else "…" + row.path[-25:]
    pen.text((at[0] + 2, at[1] + CELL + 3), name, INK, font)
    note = row.rejected.reason if row.rejected else (row.captions[0].text if row.captions else "no caption")
    pen.text((at[0] + 2, at[1] + CELL + 19), note if len(note) <= 28 else note[:27] + "…", color, font)
