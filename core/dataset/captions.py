"""Captions from sidecars, templates and a trigger word; what a human wrote is never overwritten."""

import re
from dataclasses import replace
from pathlib import Path, PurePosixPath

from ..errors import AtelierError
from ..files import write_text
from .folder import SIDECARS
from .record import Caption, Dataset, Row

FIELDS = ("name", "folder", "trigger", "caption")


def fill_captions(dataset: Dataset, template: str, trigger: str = "") -> Dataset:
    """Give every picture without a human's caption one made from a template.

    template  text with {name}, {folder}, {trigger} and {caption}; {caption} is what is there already
    trigger   value of {trigger}
    Raises AtelierError for a field that is not known or a template that leaves nothing.
    """
    unknown = [f for f in re.findall(r"\{(\w*)\}", template) if f not in FIELDS]
    if unknown:
        known = ", ".join("{" + f + "}" for f in FIELDS)
        raise AtelierError(f"The template has {{{unknown[0]}}}, which is not known. Use {known}.")
    rows = []
    for row in dataset.rows:
        if any(c.author == "human" for c in row.captions):
            rows.append(row)
            continue
        text = _fill(template, row, trigger)
        if not text:
            raise AtelierError(f"The template leaves no caption for {row.path}. Write some words into it.")
        rows.append(replace(row, captions=(Caption(text, "template"),)))
    return dataset.with_rows(rows)


def _fill(template: str, row: Row, trigger: str) -> str:
    path = PurePosixPath(row.path)
    words = {
        "name": re.sub(r"[_\-\s]+", " ", path.stem).strip(),
        "folder": path.parent.name,
        "trigger": trigger,
        "caption": row.captions[0].text if row.captions else "",
    }
    text = re.sub(r"\{(\w+)\}", lambda m: words[m[1]], template)
    return re.sub(r"\s+", " ", text).strip(" ,")


def with_trigger(text: str, trigger: str) -> str:
    """A caption that has the trigger word, put before it where it was missing."""
    if not trigger or re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", text, re.IGNORECASE):
        return text
    return f"{trigger}, {text}" if text else trigger


def training_captions(row: Row, trigger: str) -> tuple[str, ...]:
    """The texts a picture is trained with; the trigger alone where there is no caption.

    Raises AtelierError if there is neither.
    """
    texts = tuple(with_trigger(c.text, trigger) for c in row.captions) or ((trigger,) if trigger else ())
    if not texts:
        raise AtelierError(
            f"{row.path} has no caption and there is no trigger word. "
            "Write one beside it as a .txt file, use Caption Dataset, or set a trigger word."
        )
    return texts


def write_sidecars(dataset: Dataset) -> int:
    """Write made captions beside pictures that have no sidecar; returns how many were written."""
    written = 0
    for row in dataset.kept:
        file = Path(dataset.file(row))
        if row.captions and not any(file.with_suffix(e).exists() for e in SIDECARS):
            write_text(file.with_suffix(".txt"), row.captions[0].text + "\n")
            written += 1
    return written
