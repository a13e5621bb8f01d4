"""Pictures of a LoRA's figures: heat maps of blocks, spectra, matrices of similarity; drawn without a plotting library."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from PIL import Image, ImageDraw, ImageFont

from ..lora.places import place_of
from ..lora.spectrum import Spectrum
from .grid import COLORS, FAINT, INK, PAPER

Color = tuple[int, int, int]
CELL, GAP = 17, 1
DEEP, WARM = COLORS[0], COLORS[1]
SHOWN_LAYERS = 4  # spectra in one pair of axes; more are not told apart
POINTS = 256  # of one curve; more ranks than that are thinned out
LEFT, RIGHT, TOP, BOTTOM = 76, 20, 58, 44  # pixels around a pair of axes
ABSENT = "not in the LoRA"


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


@dataclass(frozen=True)
class Scale:
    """What the colours of a heat map mean.

    high    the value of the darkest colour; the highest one of the map if None
    name    of what is shown, with its unit
    digits  format of the numbers beside the scale
    both    whether values go down to -high, in the other hue
    """

    high: float | None = None
    name: str = ""
    digits: str = ".3g"
    both: bool = False

    def over(self, values: Collection[float]) -> "Scale":
        """The same scale with its highest value known."""
        if self.high is not None:
            return self
        return replace(self, high=max((abs(v) for v in values if math.isfinite(v)), default=0.0))

    def color(self, value: float) -> Color:
        share = value / self.high if self.high else 0.0
        return signed(max(-1.0, min(1.0, share)) if math.isfinite(share) else 0.0)


def heat_map(values: Mapping[str, float], title: str, scale: Scale | None = None) -> Image.Image:
    """A cell a layer, as dark as its value; rows are layers, columns the numbers of blocks; a cross where there is none.

    values  by module ("double_blocks.0.img_mlp.2"), 0 and above unless the scale has both signs
    """
    font, small = ImageFont.load_default(12), ImageFont.load_default(10)
    parts, scale = panels(values), (scale or Scale()).over(values.values())
    left = 20 + max((int(small.getlength(row)) for part in parts for row in part.rows), default=0)
    widest = max((len(part.columns) for part in parts), default=1)
    holes = any(len(part.cells) < len(part.rows) * len(part.columns) for part in parts)
    legend = 40 + int(_legend(None, scale, small, holes))
    width = max(left + widest * (CELL + GAP) + 20, legend, 24 + int(font.getlength(title)))
    sheet = Image.new("RGB", (width, 64 + sum(part.height for part in parts)), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((12, 8), title, INK, font)
    _legend(pen, scale, small, holes)
    y = 62
    for part in parts:
        pen.text((12, y), part.title, INK, small)
        _cells(pen, part, (left, y + 20), scale, small)
        y += part.height
    return sheet


def _cells(pen: ImageDraw.ImageDraw, part: Panel, at: tuple[int, int], scale: Scale, font) -> None:
    """A panel's rows and columns with their names."""
    left, top = at
    for r, row in enumerate(part.rows):
        y = top + r * (CELL + GAP)
        pen.text((12, y + 2), row, INK, font)
        for c, column in enumerate(part.columns):
            _cell(pen, (left + c * (CELL + GAP), y), part.cells.get((row, column)), scale)
    for c, column in enumerate(part.columns):
        x = left + c * (CELL + GAP) + (CELL - font.getlength(column)) / 2
        pen.text((x, top + len(part.rows) * (CELL + GAP)), column, INK, font)


def _cell(pen: ImageDraw.ImageDraw, at: tuple[int, int], value: float | None, scale: Scale) -> None:
    """An outlined box, so that 0 is seen, or a small cross where there is no value."""
    x, y = at
    if value is None:
        low, high = 6, CELL - 7
        pen.line([x + low, y + low, x + high, y + high], INK)
        pen.line([x + low, y + high, x + high, y + low], INK)
    else:
        pen.rectangle([x, y, x + CELL - 1, y + CELL - 1], scale.color(value), FAINT)


def _legend(pen: ImageDraw.ImageDraw | None, scale: Scale, font, holes: bool) -> float:
    """The bar of colours with its numbers, what they are, and what a cross means; without a pen it is only measured.

    -> where it ends, in pixels
    """
    high = scale.high or 0.0
    low = -high if scale.both else 0.0
    first, last = format(low, scale.digits), format(high, scale.digits)
    x, y, length = 12.0, 34, 160
    bar = x + font.getlength(first) + 6
    tail = f"{last}   {scale.name}"
    end = bar + length + 6 + font.getlength(tail)
    if pen:
        pen.text((x, y), first, INK, font)
        for i in range(length):
            pen.line([bar + i, y, bar + i, y + 11], scale.color(low + (high - low) * i / (length - 1)))
        pen.rectangle([bar, y, bar + length, y + 11], outline=FAINT)
        middle = format((low + high) / 2, scale.digits)
        pen.text((bar + (length - font.getlength(middle)) / 2, y + 13), middle, INK, font)
        pen.text((bar + length + 6, y), tail, INK, font)
    if not holes:
        return end
    if pen:
        _cell(pen, (int(end) + 16, y - 2), None, scale)
        pen.text((end + 36, y), ABSENT, INK, font)
    return end + 36 + font.getlength(ABSENT)


def elided(text: str, width: float, font) -> str:
    """A text cut in its middle to a width in pixels: names of one training differ at their end."""
    if font.getlength(text) <= width:
        return text
    kept = len(text) - 1
    while kept > 2 and font.getlength(_middle_out(text, kept)) > width:
        kept -= 1
    return _middle_out(text, kept)


def _middle_out(text: str, kept: int) -> str:
    return f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"


def short_names(names: Sequence[str], size: int = 12) -> list[str]:
    """Names as a picture's rows and heads have them, in a font of a size in pixels."""
    font = ImageFont.load_default(size)
    return [elided(name, 110, font) for name in names]


def matrix_picture(names: Sequence[str], matrix: Sequence[Sequence[float]], title: str, cell: int = 64) -> Image.Image:
    """A labelled matrix with the number in each cell: blue above 0, orange below.

    matrix  K rows of K values in -1..1
    cell    height of a cell and its least width in pixels; a head is never shorter than its row's name
    """
    font = ImageFont.load_default(12)
    shown = short_names(names)
    longest = max(int(font.getlength(name)) for name in shown)
    label, wide = 20 + longest, max(cell, 8 + longest)
    width = max(label + len(shown) * (wide + 2) + 12, 24 + int(font.getlength(title)))
    sheet = Image.new("RGB", (width, 56 + len(shown) * (cell + 2) + 12), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((12, 8), title, INK, font)
    for c, name in enumerate(shown):
        pen.text((label + c * (wide + 2) + (wide - font.getlength(name)) / 2, 34), name, INK, font)
    for r, row in enumerate(matrix):
        y = 54 + r * (cell + 2)
        pen.text((8, y + cell // 2 - 7), shown[r], INK, font)
        for c, value in enumerate(row):
            x = label + c * (wide + 2)
            pen.rectangle([x, y, x + wide - 1, y + cell - 1], signed(value), FAINT)
            text = f"{value:.3f}"
            ink = PAPER if abs(value) > 0.6 else INK
            pen.text((x + (wide - font.getlength(text)) / 2, y + cell // 2 - 7), text, ink, font)
    return sheet


def titled(picture: Image.Image, title: str) -> Image.Image:
    """A picture under a line of text."""
    font = ImageFont.load_default(12)
    line = Image.new("RGB", (24 + int(font.getlength(title)), 26), PAPER)
    ImageDraw.Draw(line).text((12, 8), title, INK, font)
    return stacked([line, picture])


def stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures below each other on one sheet."""
    sheet = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), PAPER)
    y = 0
    for picture in pictures:
        sheet.paste(picture, (0, y))
        y += picture.height
    return sheet


@dataclass(frozen=True)
class Axes:
    """A pair of axes from 0: the highest values, and what they count; x in whole numbers, y in a format."""

    x: int
    y: float
    x_name: str
    y_name: str
    digits: str = "g"


def spectra_picture(spectrum: Spectrum, size: tuple[int, int] = (900, 340)) -> Image.Image:
    """Two pairs of axes from 0: the energy kept at each rank (weakest, whole, strongest), and the spectra of the largest layers."""
    longest = max(len(layer.sigma) for layer in spectrum.layers)
    ranks = sorted({round(i * longest / min(longest, POINTS)) for i in range(min(longest, POINTS) + 1)})
    kept: dict[str, Sequence[tuple[float, float]]] = {
        "lowest layer": [(r, min(la.kept(r) for la in spectrum.layers)) for r in ranks],
        "whole LoRA": [(r, spectrum.kept(r)) for r in ranks],
        "highest layer": [(r, max(la.kept(r) for la in spectrum.layers)) for r in ranks],
    }
    largest = sorted(spectrum.layers, key=lambda la: -la.energy)[:SHOWN_LAYERS]
    falling: dict[str, Sequence[tuple[float, float]]] = {
        _short(layer.module): list(enumerate(layer.sigma, 1)) for layer in largest
    }
    top = max(layer.spectral for layer in largest)
    most = max(len(layer.sigma) for layer in largest)
    return stacked([
        axes_plot(kept, "Energy kept at each rank", Axes(longest, 1.0, "rank", "share of the energy", ".0%"), size),
        axes_plot(falling, "Spectra of the largest layers", Axes(most, top, "direction", "singular value"), size),
    ])  # fmt: skip


def axes_plot(
    curves: Mapping[str, Sequence[tuple[float, float]]], title: str, axes: Axes, size: tuple[int, int]
) -> Image.Image:
    """Draw named curves of (x, y) points over axes that start at 0, with names on both."""
    font = ImageFont.load_default(12)
    sheet = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((12, 8), title, INK, font)
    xs, ys = ticks(axes.x, 8, whole=True), ticks(axes.y, 5)
    right, bottom = size[0] - RIGHT, size[1] - BOTTOM
    across, up = (right - LEFT) / max(xs[-1], axes.x), (bottom - TOP) / max(ys[-1], axes.y)
    for y in ys:
        at, text = bottom - up * y, format(y, axes.digits)
        pen.line([LEFT, at, right, at], INK if y == 0 else FAINT)
        pen.text((LEFT - 8 - font.getlength(text), at - 8), text, INK, font)
    for x in xs:
        at, text = LEFT + across * x, f"{x:g}"
        pen.line([at, bottom, at, bottom + 4], INK)
        pen.text((at - font.getlength(text) / 2, bottom + 6), text, INK, font)
    pen.text((12, TOP - 26), axes.y_name, INK, font)
    pen.text((LEFT + (right - LEFT - font.getlength(axes.x_name)) / 2, bottom + 24), axes.x_name, INK, font)
    end = float(right)
    for n, (name, curve) in reversed(list(enumerate(curves.items()))):
        color = COLORS[n % len(COLORS)]
        at_points = [(LEFT + across * x, bottom - up * y) for x, y in curve]
        if len(at_points) > 1:
            pen.line(at_points, color, 2, joint="curve")
        for x, y in at_points if len(at_points) < 40 else ():
            pen.ellipse([x - 2, y - 2, x + 2, y + 2], color)
        end -= font.getlength(name)
        pen.text((end, 8), name, color, font)
        end -= 18
    return sheet


def ticks(high: float, most: int, whole: bool = False) -> list[float]:
    """Even numbers of 1, 2 or 5 times a power of ten from 0 up to the first that is not visibly below `high`.

    most   about how many steps
    whole  only whole numbers, and none above `high`
    """
    if not high > 0 or not math.isfinite(high):
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(high / most))
    step = next(f * power for f in (1, 2, 5, 10) if f * power * most >= high * (1 - 1e-3))
    if whole:
        step = max(1.0, step)
    steps = math.floor(high / step + 1e-9) if whole else math.ceil(high / step - 1e-3)
    return [round(i * step, 12) if step > 1e-9 else i * step for i in range(steps + 1)]


def _short(module: str) -> str:
    place = place_of(module)
    return place.rest if place.number is None else f"{place.stem[0]}{place.number}.{place.rest}"
