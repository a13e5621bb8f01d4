"""A dataset's report as one HTML page with everything in it, readable without a network."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from ..dataset.diversity import listed
from ..dataset.report import DatasetReport, Example
from ..files import write_text
from .dataset_plots import plots, swatches
from .lora_page import STYLE, section, table

THUMB = 112  # pixels, longer side of an embedded thumbnail
MOST, WARNED = 200, 8  # rows of a table; words told above it
OWN = """
.plots, .thumbs { display: flex; flex-wrap: wrap; gap: 12px } figure { margin: 0 }
figcaption { font-size: 12px; max-width: 112px; overflow-wrap: anywhere }
"""
ABOUT = {
    "Vendi score": "How many wholly different pictures would be as diverse: 1 when all are the same, as many as there are "
    "pictures when no two have anything in common (Friedman and Dieng 2023).",
    "by weight": "Copies count as one picture, and a picture that is seen far more often than others makes the rest count "
    "less (Kish 1965).",
    "last tenth": "The share of the Vendi score that the last tenth of the pictures brought, in a shuffled order. Near "
    "nothing: more of the same would add little.",
    "evenness": "1 when all values are as common as each other, 0 when one value has all.",
}


def write_page(report: DatasetReport, path: Path, name: str = "Dataset") -> Path:
    """Write a report as one HTML file: no script, no network, every text escaped, thumbnails inside.

    name  the title
    Raises AtelierError if the path is a folder.
    """
    return write_text(path, page(report, name))


def page(report: DatasetReport, name: str = "Dataset") -> str:
    """The report as HTML, the same for the same report and thumbnails."""
    w = report.words
    body = [
        f"<h1>{html.escape(name)}</h1>",
        _warnings(report),
        table(("figure", "value"), _summary(report)),
        section("Suggested for training", table(("setting", "value", "limits", "reason"), _advice(report))),
        section("Not measured", _list(report.not_measured)),
        section("Mean colour", swatch) if (swatch := _swatch(report)) else "",
        section("Figures", '<div class="plots">' + "".join(_picture(p, t) for t, p in plots(report)) + "</div>"),
        *(section(example.title, _thumbs(example)) for example in report.examples),
        section("Words in captions", table(("word", "captions", "share"), _said(w.words))),
        section("Phrases in captions", table(("phrase", "captions", "share"), _said(w.phrases))),
        section("Axes", table(("axis", "captions by value", "says nothing", "evenness", "never said"), _axes(report))),
        section("Columns", table(("column", "filled", "values", "commonest", "share", "bits", "evenness"), _columns(report))),
        _counted("Captions by author", report.words.authors),
        _counted("Notes on opening", report.notes),
        _counted("Reasons for leaving out", report.reasons),
        _faults(report),
        section("Words used here", _terms()),
    ]  # fmt: skip
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(name)}</title><style>{STYLE}{OWN}</style>" + "\n".join(filter(None, body)) + "</html>\n"
    )


def _warnings(report: DatasetReport) -> str:
    told = [f"Pictures that cannot be opened: {len(report.faults)}."] if report.faults else []
    told += [
        f'"{s.text}" is in {s.share:.0%} of the captions; it may be learnt with everything.'
        for s in report.words.common[:WARNED]
    ]
    if report.words.without:
        told.append(f"Pictures without a caption: {report.words.without}.")
    if report.words.over:
        told.append(f"Captions longer than is read: {report.words.over}.")
    if report.small:
        told.append(f"Pictures smaller than the size they would be trained at: {report.small}.")
    return "".join(f'<p class="warn">{html.escape(text)}</p>' for text in told)


def _summary(report: DatasetReport) -> list[tuple[str, str]]:
    e, d, w = report.effective, report.diversity, report.words
    copies = "not looked for"
    if report.duplicates is not None:
        copies = f"{report.duplicates} in {e.groups} groups, the largest of {e.largest}"
    lengths, tokens = (sorted(values) for values in (w.lengths, w.tokens))
    rows = [
        ("pictures kept", f"{report.kept} of {report.rows}"),
        ("decisions", listed(report.decisions)),
        ("splits", listed(report.splits)),
        ("formats", listed(report.formats)),
        ("copies", copies),
        ("pictures that count", f"{e.distinct} distinct, {e.by_weight:.1f} by weight"),
        ("captions", f"{w.captions}; {w.without} pictures without; {w.vocabulary} different words"),
    ]
    if lengths:
        middle = len(lengths) // 2
        told = f"{lengths[middle]} words, about {tokens[middle]} tokens; at most {lengths[-1]} words, about {tokens[-1]} tokens"
        rows.append(("length of captions, median", told))
    if w.triggered is not None:
        rows.append(("trigger", f"in {w.triggered:.1%} of the captions"))
    if d is not None:
        rows.append(("Vendi score", f"{d.vendi:.1f} of {d.pictures} pictures, measured on {report.measured_on}"))
        rows.append(("mean similarity", f"{d.similarity:.3f}"))
        if d.last_tenth is not None:
            rows.append(("last tenth", f"{d.last_tenth:.1%} of the diversity"))
    return rows


def _advice(report: DatasetReport) -> list[tuple[str, str, str, str]]:
    return [(s.name, str(s.value), f"{s.low} to {s.high}", s.reason) for s in report.advice]


def _said(words: Sequence) -> list[tuple[str, str, str]]:
    return [(s.text, str(s.count), f"{s.share:.1%}") for s in words]


def _axes(report: DatasetReport) -> list[tuple[str, ...]]:
    return [
        (a.name, listed(a.counts), f"{a.silent:.0%}", f"{a.evenness:.2f}", ", ".join(a.missing))
        for a in report.words.axes
        if report.words.captions
    ]


def _columns(report: DatasetReport) -> list[tuple[str, ...]]:
    return [
        (c.name, str(c.filled), str(c.values), c.top, f"{c.share:.1%}", f"{c.entropy:.2f}", f"{c.evenness:.2f}")
        for c in report.columns
        if c.filled
    ]


def _counted(title: str, counts: Mapping[str, int]) -> str:
    return section(title, table(("value", "pictures"), [(k, str(n)) for k, n in counts.items()])) if counts else ""


def _faults(report: DatasetReport) -> str:
    if not report.faults:
        return ""
    more = len(report.faults) - MOST
    rest = f"<p>and {more} more</p>" if more > 0 else ""
    return section("Pictures that cannot be opened", table(("picture", "reason"), report.faults[:MOST]) + rest)


def _list(texts: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(text)}</li>" for text in texts) + "</ul>"


def _terms() -> str:
    pairs = (f"<dt>{html.escape(word)}</dt><dd>{html.escape(text)}</dd>" for word, text in ABOUT.items())
    return f"<dl>{''.join(pairs)}</dl>"


def _picture(picture: Image.Image, alt: str, kind: str = "PNG") -> str:
    buffer = io.BytesIO()
    settings = {"optimize": True} if kind == "PNG" else {"quality": 80}
    picture.convert("RGB").save(buffer, kind, **settings)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/{kind.lower()};base64,{data}" alt="{html.escape(alt)}">'


def _thumbs(example: Example) -> str:
    """The example's thumbnails with their names; one that is missing or damaged is told by its name only."""
    parts = []
    for path, thumb in example.pictures:
        try:
            with Image.open(thumb) as opened:
                small = opened.convert("RGB")
                small.thumbnail((THUMB, THUMB), Image.Resampling.BICUBIC)
            shown = _picture(small, path, "JPEG")
        except (OSError, SyntaxError, ValueError):
            shown = "(no thumbnail)"
        parts.append(f"<figure>{shown}<figcaption>{html.escape(path)}</figcaption></figure>")
    return f'<div class="thumbs">{"".join(parts)}</div>'


def _swatch(report: DatasetReport) -> str:
    """The mean colour of the kept pictures as an embedded picture; empty where nothing was measured."""
    return _picture(swatches([report.colour]), "mean colour") if report.colour else ""
