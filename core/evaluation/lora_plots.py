"""Pictures of a LoRA's figures: heat maps of blocks, spectra, matrices of similarity; drawn without a plotting library."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from ..lora.places import place_of
from ..lora.spectrum import Spectrum
from .grid import COLORS, FAINT, INK, PAPER, curve_plot, fit_text

Color = tuple[int, int, int]
CELL, GAP = 17, 1
DEEP, WARM = COLORS[0], COLORS[1]
SHOWN_LAYERS = 4  # spectra in one pair of axes; more are not told apart


def blend(share: float, end: Color) -> Color:
    """A colour between paper at 0 and `end` at 1."""
    share = min(1.0, max(0.0, share)) if math.isfinite(share) else 0.0
    r, g, b = (round(p + (e - p) * share) for p, e in zip(PAPER, end, strict=True))
    return r, g, b


def signed(value: float) -> Color:
    """The colour of a value in -1..1: orange below 0, paper at 0, blue above."""
    return blend(value, DEEP) if value >= 0 else blend(-value, WARM)


@dataclass(frozen=True)
class Panel:
    """One kind of blocks in a heat map: a column a block, a row a layer."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    cells: Mapping[tuple[str, str], float]  # by row and column

    @property
    def height(self) -> int:
        return 24 + len(self.rows) * (CELL + GAP) + 22


def panels(values: Mapping[str, float]) -> list[Panel]:
    """Sort values by module into panels, in the order they come."""
    found: dict[str, dict[tuple[str, str], float]] = {}
    for name, value in values.items():
        place = place_of(name)
        column = "" if place.number is None else str(place.number)
        found.setdefault(place.stem, {})[place.rest, column] = value
    out = []
    for stem, cells in found.items():
        rows = tuple(dict.fromkeys(row for row, _ in cells))
        columns = tuple(sorted({column for _, column in cells}, key=lambda c: int(c or 0)))
        out.append(Panel(f"{stem} blocks" if columns != ("",) else stem, columns, rows, cells))
    return out


def heat_map(values: Mapping[str, float], title: str, digits: str = ".3g") -> Image.Image:
    """A cell a layer, as dark as its value; rows are layers, columns the numbers of blocks.

    values  0 and above by module ("double_blocks.0.img_mlp.2")
    digits  format of the numbers beside the scale
    """
    font, small = ImageFont.load_default(12), ImageFont.load_default(10)
    parts = panels(values)
    left = 20 + max((int(small.getlength(row)) for part in parts for row in part.rows), default=0)
    widest = max((len(part.columns) for part in parts), default=1)
    width = max(left + widest * (CELL + GAP) + 20, left + 260)
    sheet = Image.new("RGB", (width, 56 + sum(part.height for part in parts)), PAPER)
    pen = ImageDraw.Draw(sheet)
    top = max((v for v in values.values() if math.isfinite(v)), default=0.0)
    pen.text((12, 8), title, INK, font)
    _scale(pen, (left, 30), top, digits, small)
    y = 54
    for part in parts:
        pen.text((12, y), part.title, INK, small)
        for r, row in enumerate(part.rows):
            at = y + 20 + r * (CELL + GAP)
            pen.text((12, at + 2), row, INK, small)
            for c, column in enumerate(part.columns):
                value = part.cells.get((row, column))
                x = left + c * (CELL + GAP)
                box = [x, at, x + CELL - 1, at + CELL - 1]
                if value is None:
                    pen.rectangle(box, outline=FAINT)
                else:
                    pen.rectangle(box, blend(value / top if top else 0.0, DEEP))
        for c, column in enumerate(part.columns):
            x = left + c * (CELL + GAP) + (CELL - small.getlength(column)) / 2
            pen.text((x, y + 20 + len(part.rows) * (CELL + GAP)), column, INK, small)
        y += part.height
    return sheet


def _scale(pen: ImageDraw.ImageDraw, at: tuple[int, int], top: float, digits: str, font) -> None:
    """A bar of the colours from 0 to the highest value."""
    x, y = at
    pen.text((x, y), "0", INK, font)
    for i in range(100):
        pen.line([x + 12 + i, y, x + 12 + i, y + 11], blend(i / 99, DEEP))
    pen.text((x + 120, y), format(top, digits), INK, font)


def matrix_picture(names: Sequence[str], matrix: Sequence[Sequence[float]], title: str, cell: int = 64) -> Image.Image:
    """A labelled matrix with the number in each cell: blue above 0, orange below.

    matrix  K rows of K values in -1..1
    """
    font = ImageFont.load_default(12)
    label = min(170, 16 + max(int(font.getlength(name)) for name in names))
    width = max(label + len(names) * (cell + 2) + 12, 24 + int(font.getlength(title)))
    sheet = Image.new("RGB", (width, 56 + len(names) * (cell + 2) + 12), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((12, 8), title, INK, font)
    for c, name in enumerate(names):
        pen.text((label + c * (cell + 2), 34), fit_text(name, cell, font), INK, font)
    for r, row in enumerate(matrix):
        y = 54 + r * (cell + 2)
        pen.text((8, y + cell // 2 - 7), fit_text(names[r], label - 14, font), INK, font)
        for c, value in enumerate(row):
            x = label + c * (cell + 2)
            pen.rectangle([x, y, x + cell - 1, y + cell - 1], signed(value))
            text = f"{value:.3f}"
            ink = PAPER if abs(value) > 0.6 else INK
            pen.text((x + (cell - font.getlength(text)) / 2, y + cell // 2 - 7), text, ink, font)
    return sheet


def stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures below each other on one sheet."""
    sheet = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), PAPER)
    y = 0
    for picture in pictures:
        sheet.paste(picture, (0, y))
        y += picture.height
    return sheet


def spectra_picture(spectrum: Spectrum, size: tuple[int, int] = (900, 300)) -> Image.Image:
    """Two pairs of axes: the energy kept at each rank (weakest, whole, strongest), and the spectra of the largest layers."""
    longest = max(len(layer.sigma) for layer in spectrum.layers)
    ranks = range(longest + 1)
    kept: dict[str, Sequence[tuple[float, float]]] = {
        "lowest layer": [(r, min(la.kept(r) for la in spectrum.layers)) for r in ranks],
        "whole LoRA": [(r, spectrum.kept(r)) for r in ranks],
        "highest layer": [(r, max(la.kept(r) for la in spectrum.layers)) for r in ranks],
    }
    largest = sorted(spectrum.layers, key=lambda la: -la.energy)[:SHOWN_LAYERS]
    falling: dict[str, Sequence[tuple[float, float]]] = {
        _short(layer.module): list(enumerate(layer.sigma, 1)) for layer in largest
    }
    return stacked([
        curve_plot(kept, "share of energy kept at rank", size),
        curve_plot(falling, "singular values of the largest", size),
    ])  # fmt: skip


def _short(module: str) -> str:
    place = place_of(module)
    return place.rest if place.number is None else f"{place.stem[0]}{place.number}.{place.rest}"
