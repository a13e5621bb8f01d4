"""Captions from a template, and captions as files beside pictures; what a person wrote is never overwritten."""

import re
from pathlib import Path, PurePosixPath

from ..errors import AtelierError
from ..files import write_text
from .folder import SIDECARS
from .opening import root_of
from .stored import StoredRow, WrittenCaption
from .view import View

MODEL = "template"
FIELDS = ("name", "folder", "trigger", "caption", "tags", "style", "artist", "genre")
FIELD = re.compile(r"\{(\w*)(?::([^{}]*))?\}")


def fill_captions(view: View, template: str, trigger: str = "") -> View:
    """Give every picture without a person's caption one made from a template.

    template  text with {name}, {folder}, {trigger}, {caption}, {tags}, {style}, {artist} and {genre}; {caption} is the
              caption that counts, {caption:joy} the one by joy
    trigger   value of {trigger}
    Raises AtelierError for a field that is not known or a template that leaves nothing.
    """
    unknown = [name for name, model in FIELD.findall(template) if name not in FIELDS or (model and name != "caption")]
    if unknown:
        known = ", ".join("{" + f + "}" for f in FIELDS)
        raise AtelierError(f"The template has {{{unknown[0]}}}, which is not known. Use {known}.")
    laid: dict[str, dict[str, object]] = {}
    for row in view.rows():
        if row.parent or any(c.author == "human" for c in row.captions):  # a variant says what its row says
            continue
        text = _fill(view, template, row, trigger)
        if not text:
            raise AtelierError(f"The template leaves no caption for {row.path}. Write some words into it.")
        others = (c for c in row.captions if c.model != MODEL)
        laid[row.id] = {"captions": (*others, WrittenCaption(text, "model", MODEL))}
    return view.lay(laid).preferring(MODEL)


def _fill(view: View, template: str, row: StoredRow, trigger: str) -> str:
    path, counting = PurePosixPath(row.path), view.captions_of(row)
    known = {name: str(row.columns.get(name, "")) for name in ("style", "artist", "genre")}
    words = {name: re.sub(r"[_\-\s]+", " ", text) for name, text in known.items()} | {
        "name": re.sub(r"[_\-\s]+", " ", path.stem).strip(),
        "folder": path.parent.name,
        "trigger": trigger,
        "caption": counting[0].text if counting else "",
        "tags": ", ".join(row.tags),
    }

    def value(found: re.Match) -> str:
        if not found[2]:
            return words[found[1]]
        return next((c.text for c in row.captions if c.model == found[2]), "")

    text = FIELD.sub(value, template)
    return re.sub(r"\s+", " ", text).strip(" ,")


def write_sidecars(view: View) -> int:
    """Write made captions beside pictures that have no sidecar; returns how many were written."""
    written, root = 0, root_of(view)
    for row in view.rows():
        file = Path(root) / row.path
        captions = view.captions_of(row)
        if row.parent or not captions or any(file.with_suffix(e).exists() for e in SIDECARS):
            continue
        write_text(file.with_suffix(".txt"), captions[0].text + "\n")
        written += 1
    return written
