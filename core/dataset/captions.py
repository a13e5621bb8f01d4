"""Captions from sidecars, templates and a trigger word; what a human wrote is never overwritten."""

import random
import re
from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class CaptionPlan:
    """How captions become the texts of a training."""

    trigger: str = ""
    lines: bool = False  # each line is a caption of its own
    shuffled: int = 0  # further copies with the comma-separated parts in other orders
    kept: int = 1  # parts at the start that stay in place


def training_captions(row: Row, plan: CaptionPlan) -> tuple[str, ...]:
    """The texts a picture is trained with; the trigger alone where there is no caption.

    Raises AtelierError if there is neither.
    """
    written = [c.text for c in row.captions]
    if plan.lines:
        written = [line.strip() for text in written for line in text.splitlines() if line.strip()]
    texts = [order for text in written for order in orders(text, plan)]
    texts = [with_trigger(text, plan.trigger) for text in texts] or ([plan.trigger] if plan.trigger else [])
    if not texts:
        raise AtelierError(
            f"{row.path} has no caption and there is no trigger word. "
            "Write one beside it as a .txt file, use Caption Dataset, or set a trigger word."
        )
    return tuple(texts)


def orders(text: str, plan: CaptionPlan) -> list[str]:
    """A caption and its shuffled copies, the same for the same text."""
    parts = [p.strip() for p in text.split(",") if p.strip()]
    first, rest = parts[: plan.kept], parts[plan.kept :]
    if len(rest) < 2:
        return [text]
    found = [text]
    for i in range(plan.shuffled):
        rng = random.Random(f"{i} {text}")
        found.append(", ".join(first + rng.sample(rest, len(rest))))
    return list(dict.fromkeys(found))


def prior_caption(text: str, plan: CaptionPlan, class_word: str) -> str:
    """What a caption says without the trigger: the class word in its place; nothing where there is no trigger.

    A text with neither is what the model should not change for, so that is the empty caption.
    """
    if not plan.trigger:
        return ""
    said = re.sub(rf"(?<!\w){re.escape(plan.trigger)}(?!\w)", class_word, text, flags=re.IGNORECASE)
    return re.sub(r"\s+", " ", said).strip(" ,")


def write_sidecars(dataset: Dataset) -> int:
    """Write made captions beside pictures that have no sidecar; returns how many were written."""
    written = 0
    for row in dataset.kept:
        file = Path(dataset.file(row))
        if row.captions and not any(file.with_suffix(e).exists() for e in SIDECARS):
            write_text(file.with_suffix(".txt"), row.captions[0].text + "\n")
            written += 1
    return written
