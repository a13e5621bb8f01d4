"""A labelled grid of pictures, and curves, drawn without a plotting library."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

PAPER, INK, FAINT = (250, 249, 246), (40, 40, 40), (214, 211, 204)
COLORS = ((32, 104, 168), (206, 96, 40), (74, 140, 92), (140, 82, 160))


def picture_grid(
    lines: Sequence[Sequence[Image.Image]], row_labels: Sequence[str], column_labels: Sequence[str], cell: int = 128
) -> Image.Image:
    """Lay pictures out in lines with a label beside each line and over each column.

    lines  R lines of C pictures
    cell   side in pixels that every picture is fitted into
    """
    font = ImageFont.load_default(12)
    left = 12 + max((int(font.getlength(label)) for label in row_labels), default=0)
    gap, top = 6, 26
    columns = max(len(line) for line in lines)
    sheet = Image.new("RGB", (left + columns * (cell + gap) + gap, top + len(lines) * (cell + gap) + gap), PAPER)
    pen = ImageDraw.Draw(sheet)
    for c, label in enumerate(column_labels):
        pen.text((left + c * (cell + gap) + gap, 7), fit_text(label, cell, font), INK, font)
    for r, line in enumerate(lines):
        y = top + r * (cell + gap)
        pen.text((8, y + cell // 2 - 7), row_labels[r], INK, font)
        for c, picture in enumerate(line):
            sheet.paste(fitted(picture, cell), (left + c * (cell + gap) + gap, y))
    return sheet


def fitted(picture: Image.Image, cell: int) -> Image.Image:
    """A picture in a square cell, enlarged in whole steps where it is small so that its pixels stay crisp."""
    scale = cell / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    resample = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS
    ground = Image.new("RGB", (cell, cell), PAPER)
    ground.paste(picture.resize(size, resample), ((cell - size[0]) // 2, (cell - size[1]) // 2))
    return ground


def fit_text(text: str, width: int, font) -> str:
    """A text cut to a width in pixels, with an ellipsis."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def curve_plot(curves: dict[str, Sequence[tuple[float, float]]], title: str, size: tuple[int, int] = (640, 300)):
    """Draw named curves of (x, y) points over one pair of axes, as a picture."""
    font = ImageFont.load_default(12)
    sheet = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(sheet)
    points = [p for curve in curves.values() for p in curve]
    pen.text((12, 8), title, INK, font)
    if not points:
        return sheet
    (x0, x1), (y0, y1) = _range([p[0] for p in points]), _range([p[1] for p in points])
    left, top, right, bottom = 58, 34, size[0] - 14, size[1] - 28
    for i in range(5):
        y = bottom - (bottom - top) * i / 4
        pen.line([left, y, right, y], FAINT)
        pen.text((8, y - 7), f"{y0 + (y1 - y0) * i / 4:.4g}", INK, font)
        x = left + (right - left) * i / 4
        pen.text((x - 10, bottom + 7), f"{x0 + (x1 - x0) * i / 4:.4g}", INK, font)
    for n, (name, curve) in enumerate(curves.items()):
        color = COLORS[n % len(COLORS)]
        at = [
            (left + (right - left) * (x - x0) / (x1 - x0), bottom - (bottom - top) * (y - y0) / (y1 - y0))
            for x, y in curve
        ]
        if len(at) > 1:
            pen.line(at, color, 2, joint="curve")
        for x, y in at if len(at) < 40 else ():
            pen.ellipse([x - 2, y - 2, x + 2, y + 2], color)
        pen.text((right - 150 * (len(curves) - n), 8), name, color, font)
    return sheet


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def running_mean(values: Sequence[float], share: float = 0.9) -> list[float]:
    """Exponential moving average, corrected for its start."""
    out, mean, weight = [], 0.0, 0.0
    for value in values:
        mean, weight = share * mean + (1 - share) * value, share * weight + (1 - share)
        out.append(mean / weight)
    return out
