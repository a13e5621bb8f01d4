"""Labelled sheets of a grid over three axes: columns, rows and pages, with labels that stay readable.

A label is wrapped; one that is too long loses its middle, because file names and prompts differ at both ends; labels
that would look alike after that show only where they differ.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from .grid import FAINT, INK, PAPER, fitted

WIDEST = 4096  # pixels over which the columns are dealt out
LARGEST, SMALLEST = 512, 192  # longer side of a picture on the sheet, in pixels
SHORTEST = 14  # letters in pixels, at least
GAP = 6
MOST_LINES = 4  # of a column's label


@dataclass(frozen=True)
class Labels:
    """What stands over the columns, beside the rows, and over the pages."""

    columns: Sequence[str]
    rows: Sequence[str]
    pages: Sequence[str]


@dataclass(frozen=True)
class Block:
    """Labels as wrapped lines, and the room they take."""

    texts: list[list[str]]
    width: int
    height: int


def sheets(pictures: Sequence[Sequence[Sequence[Image.Image | None]]], labels: Labels) -> list[Image.Image]:
    """Lay pictures out by page, row and column, every page of the same size.

    pictures  Z pages of Y rows of X pictures of one size; None leaves a place empty
    """
    size = next((p.size for page in pictures for row in page for p in row if p), (SMALLEST, SMALLEST))
    width, height = cell_size(size, len(labels.columns))
    font = ImageFont.load_default(max(SHORTEST, min(22, width // 20)))
    line = _line_height(font)
    columns = _block(labels.columns, width, MOST_LINES, font)
    side = max(120, min(360, int(width * 0.75)))
    rows = _block(labels.rows, side, max(1, height // line), font)
    left = GAP + (rows.width + 2 * GAP if rows.width else 0)
    whole = left + len(labels.columns) * (width + GAP)
    titles = _block(labels.pages, whole - 2 * GAP, 2, font)
    top = GAP + sum(block.height + GAP for block in (titles, columns) if block.height)
    made = []
    for z, page in enumerate(pictures):
        sheet = Image.new("RGB", (whole, top + len(labels.rows) * (height + GAP)), PAPER)
        pen = ImageDraw.Draw(sheet)
        _write(pen, titles.texts[z], (left, GAP), font)
        for x, text in enumerate(columns.texts):
            _write(pen, text, (left + x * (width + GAP), top - GAP - len(text) * line), font)
        for y, row in enumerate(page):
            at = top + y * (height + GAP)
            _write(pen, rows.texts[y], (GAP, at + max(0, height - len(rows.texts[y]) * line) // 2), font)
            for x, picture in enumerate(row):
                _place(sheet, pen, picture, (left + x * (width + GAP), at, width, height))
        made.append(sheet)
    return made


def cell_size(size: tuple[int, int], columns: int) -> tuple[int, int]:
    """Width and height of a picture on the sheet: smaller in many columns, small pictures in whole steps larger."""
    longer = max(size)
    side = max(SMALLEST, min(longer, LARGEST, WIDEST // columns))
    side = longer * math.ceil(SMALLEST / longer) if longer < SMALLEST else side
    return max(1, round(size[0] * side / longer)), max(1, round(size[1] * side / longer))


def wrap(text: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> list[str]:
    """A text in lines of a width in pixels, parted at spaces, or after a sign in a word that is too long."""
    lines, line = [], ""
    for word in text.split():
        joined = f"{line} {word}" if line else word
        if font.getlength(joined) <= width:
            line = joined
            continue
        lines += [line] if line else []
        line = word
        while font.getlength(line) > width and len(line) > 1:
            cut = _cut(line, width, font)
            lines.append(line[:cut])
            line = line[cut:]
    return [*lines, line] if line else lines


def _cut(word: str, width: int, font) -> int:
    """How many letters of a word fit, preferably up to a sign."""
    most = next((n for n in range(1, len(word)) if font.getlength(word[: n + 1]) > width), len(word))
    after_sign = max((n for n in range(most // 2 + 1, most + 1) if word[n - 1] in ",;_-/.=+"), default=0)
    return after_sign or most


def elide(text: str, width: int, lines: int, font) -> list[str]:
    """A text in at most so many lines, its middle left out where it is too long."""
    whole = wrap(text, width, font)
    if len(whole) <= lines:
        return whole
    low, high, best = 0, len(text), ["…"]
    while low <= high:
        kept = (low + high) // 2
        head = math.ceil(kept * 2 / 3)
        tried = wrap(f"{text[:head].rstrip()}…{text[len(text) - (kept - head) :].lstrip()}", width, font)
        if len(tried) <= lines:
            best, low = tried, kept + 1
        else:
            high = kept - 1
    return best


def distinct(labels: Sequence[str]) -> list[str]:
    """Labels without the words that all begin and end with."""
    words = [label.split() for label in labels]
    shortest = min(map(len, words))
    start = next((i for i in range(shortest) if len({tuple(w[: i + 1]) for w in words}) > 1), shortest)
    left = shortest - start
    end = next((i for i in range(left) if len({tuple(w[len(w) - i - 1 :]) for w in words}) > 1), left)
    parts = [w[start : len(w) - end] for w in words]
    return [" ".join([*["…"] * bool(start), *part, *["…"] * bool(end)]) for part in parts]


def _block(labels: Sequence[str], width: int, lines: int, font) -> Block:
    """Labels wrapped into a width, cut to their differences where they would look alike otherwise."""
    texts = [elide(label, width, lines, font) for label in labels]
    if len(labels) > 1 and len({" ".join(t) for t in texts}) < len(set(labels)):
        texts = [elide(label, width, lines, font) for label in distinct(labels)]
    widest = max((math.ceil(font.getlength(line)) for text in texts for line in text), default=0)
    return Block(texts, widest, max(map(len, texts), default=0) * _line_height(font))


def _line_height(font) -> int:
    return math.ceil(sum(font.getmetrics()) * 1.1)


def _write(pen: ImageDraw.ImageDraw, lines: Sequence[str], at: tuple[int, int], font) -> None:
    for i, line in enumerate(lines):
        pen.text((at[0], at[1] + i * _line_height(font)), line, INK, font)


def _place(sheet: Image.Image, pen: ImageDraw.ImageDraw, picture: Image.Image | None, box: tuple) -> None:
    left, top, width, height = box
    if picture is None:
        pen.rectangle([left, top, left + width - 1, top + height - 1], outline=FAINT, width=2)
        return
    square = fitted(picture, max(width, height))
    inset = (square.width - width) // 2, (square.height - height) // 2
    sheet.paste(square.crop((*inset, inset[0] + width, inset[1] + height)), (left, top))
