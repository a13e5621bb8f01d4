"""Pictures of a dataset's figures: histograms, bars, the coverage curve, and one sheet with all of them."""

from collections.abc import Mapping, Sequence

from PIL import Image, ImageColor, ImageDraw, ImageFont

from ..dataset.report import DatasetReport, Distribution
from .grid import FAINT, INK, PAPER, fit_text
from .lora_plots import DEEP, WARM, Axes, axes_plot

SIZE = (420, 240)  # pixels of one plot
COLUMNS = 3  # plots beside each other on the sheet
MOST = 9  # bars of a plot
LEFT, RIGHT, TOP, BOTTOM = 14, 14, 46, 40  # pixels around a histogram
WARN = (160, 64, 16)
HEAD = 13  # the lines of figures above the plots, pixels of type
Size = tuple[int, int]


def histogram(found: Distribution, size: Size = SIZE) -> Image.Image:
    """A histogram with its median, and the middle nine tenths as a line below the bars; hues in their own colours."""
    sheet, pen, font = _paper(found.title, size)
    if not found.measured:
        pen.text((LEFT, TOP), "not measured", INK, font)
        return sheet
    bottom, across = size[1] - BOTTOM, (size[0] - LEFT - RIGHT) / len(found.counts)
    for i, count in enumerate(found.counts):
        # One picture must be seen beside ten thousand.
        tall = max(1, round((bottom - TOP) * count / max(found.counts))) if count else 0
        color = (
            ImageColor.getrgb(f"hsl({(found.edges[i] + found.edges[i + 1]) / 2:.0f}, 55%, 50%)")
            if found.circular
            else DEEP
        )
        if tall:
            pen.rectangle(
                [round(LEFT + i * across) + 1, bottom - tall, round(LEFT + (i + 1) * across) - 1, bottom - 1], color
            )
    pen.line([LEFT, bottom, size[0] - RIGHT, bottom], INK)
    _scale(pen, found, size)
    return sheet


def _scale(pen: ImageDraw.ImageDraw, found: Distribution, size: Size) -> None:
    """What stands below a histogram: its ends, its middle and its unit."""
    small, (low, high), bottom = ImageFont.load_default(10), (found.edges[0], found.edges[-1]), size[1] - BOTTOM
    first, last = found.told(low), found.told(high)
    pen.text((LEFT, bottom + 10), first, INK, small)
    pen.text((size[0] - RIGHT - small.getlength(last), bottom + 10), last, INK, small)
    without = "nearly grey" if found.circular else "not measured"
    note = found.unit + (f"; {found.missing} {without}" if found.missing else "")
    pen.text((LEFT, bottom + 24), fit_text(note, size[0] - LEFT - RIGHT, small), INK, small)
    if found.circular:
        return
    ends = [
        LEFT + (min(high, max(low, value)) - low) / (high - low) * (size[0] - LEFT - RIGHT)
        for value in (found.low, found.median, found.high)
    ]
    pen.line([ends[0], bottom + 4, ends[2], bottom + 4], WARM, 3)
    pen.line([ends[1], TOP - 4, ends[1], bottom + 6], WARM)
    told = f"median {found.told(found.median)}; 9 in 10 from {found.told(found.low)} to {found.told(found.high)}"
    pen.text(((size[0] - small.getlength(told)) / 2, bottom + 10), told, INK, small)


def bars(values: Mapping[str, float], title: str, size: Size = SIZE, whole: float | None = None) -> Image.Image:
    """Named bars across, the first ones where there are many.

    values  by name, 0 and above, in the order they are drawn
    whole   what a full bar is; the highest value if None, and shares of it are told if it is given
    """
    sheet, pen, font = _paper(title, size)
    small = ImageFont.load_default(10)
    if not values:
        pen.text((LEFT, TOP), "nothing to show", INK, font)
        return sheet
    shown = list(values.items())[:MOST]
    full = whole or max(value for _, value in shown) or 1.0
    left = LEFT + 150
    room = size[0] - RIGHT - left - 60
    step = (size[1] - TOP - 18) / MOST
    for i, (name, value) in enumerate(shown):
        y = TOP - 8 + i * step
        pen.text((LEFT, y + 2), fit_text(_one_line(name), left - LEFT - 8, small), INK, small)
        long = round(room * min(1.0, value / full))
        pen.rectangle([left, y + 2, left + room, y + step - 4], FAINT)
        if long:
            pen.rectangle([left, y + 2, left + long, y + step - 4], DEEP)
        told = f"{value / whole:.0%}" if whole else f"{value:g}"
        pen.text((left + room + 8, y + 2), told, INK, small)
    if len(values) > MOST:
        pen.text((LEFT, size[1] - 20), f"and {len(values) - MOST} more", INK, small)
    return sheet


def coverage_plot(report: DatasetReport, size: Size = SIZE) -> Image.Image:
    """Vendi score over the number of pictures; a curve that has become flat says that more of the same adds little."""
    title = "Diversity by number of pictures"
    if report.diversity is None:
        sheet, pen, font = _paper(title, size)
        pen.text((LEFT, TOP), "not measured", INK, font)
        return sheet
    curve = [(0, 0.0), *report.diversity.curve]
    count, score = curve[-1]
    return axes_plot({"Vendi score": curve}, title, Axes(int(count), score, "pictures", "Vendi score"), size)


def axes_bars(report: DatasetReport, size: Size = SIZE) -> Image.Image:
    """Share of captions that say something on each axis, and how many of its values no caption names."""
    captions = max(1, report.words.captions)
    said = {
        f"{axis.name}, {len(axis.missing)} of {len(axis.counts)} never" if axis.missing else axis.name: (
            1 - axis.silent
        )
        * captions
        for axis in report.words.axes
    }
    return bars(said if report.words.captions else {}, "Axes that captions speak of", size, captions)


def word_bars(report: DatasetReport, size: Size = SIZE) -> Image.Image:
    """The words that most captions have; those in nearly all are learnt with everything."""
    words = report.words
    return bars({said.text: said.count for said in words.words}, "Words of captions", size, max(1, words.captions))


def plots(report: DatasetReport) -> list[tuple[str, Image.Image]]:
    """Every plot of a report with a title."""
    named = {d.name: d for d in report.distributions}
    bucketed = {f"{b.width} x {b.height}": float(n) for b, n in report.buckets}
    counted = {"Decisions": report.decisions, "Splits": report.splits, "Formats": report.formats}
    spreads = [(c.name.capitalize(), bars(dict(c.counts), c.name.capitalize())) for c in report.columns if c.filled]
    return [
        *((d.title, histogram(d)) for d in named.values()),
        ("Buckets", bars(bucketed, "Buckets")),
        *((title, bars(counts, title)) for title, counts in counted.items()),
        ("Words", word_bars(report)),
        ("Phrases", bars({s.text: s.count for s in report.words.phrases}, "Phrases", whole=max(1, report.words.captions))),
        ("Axes", axes_bars(report)),
        *((f"Axis: {a.name}", bars(a.counts, f"Captions by {a.name}")) for a in report.words.axes if report.words.captions),
        *spreads,
        ("Coverage", coverage_plot(report)),
    ]  # fmt: skip


def overview(report: DatasetReport) -> Image.Image:
    """One sheet for a glance: the main figures in lines, what is wrong in another colour, twelve plots."""
    named = {d.name: d for d in report.distributions}
    shown = [
        histogram(named[n]) for n in ("shorter", "aspect", "sharpness", "noise", "exposure", "colourfulness", "hue")
    ]
    bucketed = {f"{b.width} x {b.height}": float(n) for b, n in report.buckets}
    shown += [bars(bucketed, "Buckets"), word_bars(report), axes_bars(report), coverage_plot(report)]
    shown.append(
        bars(dict(report.splits) | {f"decision: {k}": v for k, v in report.decisions.items()}, "Splits and decisions")
    )
    head = _headlines(report)
    lines = -(-len(shown) // COLUMNS)
    top = 16 + len(head) * (HEAD + 6)
    sheet = Image.new("RGB", (COLUMNS * SIZE[0], top + lines * SIZE[1]), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(HEAD)
    for n, (text, color) in enumerate(head):
        pen.text((LEFT, 10 + n * (HEAD + 6)), fit_text(text, sheet.width - 2 * LEFT, font), color, font)
    for n, picture in enumerate(shown):
        sheet.paste(picture, (n % COLUMNS * SIZE[0], top + n // COLUMNS * SIZE[1]))
    return sheet


def _headlines(report: DatasetReport) -> list[tuple[str, tuple[int, int, int]]]:
    e, d = report.effective, report.diversity
    copies = "copies not looked for" if report.duplicates is None else f"{report.duplicates} copies"
    lines = [
        (f"{report.kept} of {report.rows} pictures kept, {copies}, {e.by_weight:.0f} count by weight", INK),
        (", ".join(f"{s.name} {s.value}" for s in report.advice), INK),
    ]
    if d is not None:
        lines.append((f"Vendi score {d.vendi:.1f} of {d.pictures}, measured on {report.measured_on}", INK))
    if report.faults:
        lines.append((f"pictures that cannot be opened: {len(report.faults)}", WARN))
    lines += [(f'"{s.text}" is in {s.share:.0%} of the captions', WARN) for s in report.words.common[:3]]
    if report.words.without:
        lines.append((f"pictures without a caption: {report.words.without}", WARN))
    return lines


def _paper(title: str, size: Size) -> tuple[Image.Image, ImageDraw.ImageDraw, ImageFont.ImageFont]:
    sheet, font = Image.new("RGB", size, PAPER), ImageFont.load_default(12)
    pen = ImageDraw.Draw(sheet)
    pen.text((12, 8), fit_text(_one_line(title), size[0] - 24, font), INK, font)
    return sheet, pen, font


def _one_line(text: str) -> str:
    return " ".join(text.split())


def swatches(colors: Sequence[tuple[float, float, float]], side: int = 48) -> Image.Image:
    """Colours side by side, each of 0..1."""
    sheet = Image.new("RGB", (side * max(1, len(colors)), side), PAPER)
    pen = ImageDraw.Draw(sheet)
    for n, color in enumerate(colors):
        r, g, b = (round(255 * min(1.0, max(0.0, c))) for c in color)
        pen.rectangle([n * side, 0, (n + 1) * side - 1, side - 1], (r, g, b))
    return sheet
