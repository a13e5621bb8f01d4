"""Texts with variables: what is asked about a picture, and the caption around the answer."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ...core.errors import AtelierError

VARIABLES = ("tags", "name", "folder", "style", "trigger", "caption:name")
_FIELD = re.compile(r"\{(\w+)(?::([^{}]*))?\}")


@dataclass(frozen=True)
class Item:
    """A picture to caption and the words that are known about it.

    `captions` are texts by the name of their author, for {caption:name}. `digest` is of the picture as it is seen, where
    the id does not follow from it; `crop` and `ops` are done when it is opened.
    """

    id: str
    file: Path
    digest: str = ""
    tags: str = ""
    style: str = ""
    captions: Mapping[str, str] = field(default_factory=dict)
    crop: tuple[int, ...] | None = None
    ops: tuple[Mapping[str, object], ...] = ()


def check_template(text: str, answer: bool = False) -> None:
    """Raise AtelierError for the first variable of a text that is not known.

    answer  whether {answer} is one of them
    """
    known = (*VARIABLES, "answer") if answer else VARIABLES
    for name, author in _FIELD.findall(text):
        if name == "caption" and author:
            continue
        if name not in known or author:
            said = name + (f":{author}" if author else "")
            listed = ", ".join("{" + k + "}" for k in known)
            raise AtelierError(f"The text has {{{said}}}, which is not known. Use {listed}.")


def fill(text: str, item: Item, trigger: str = "", answer: str = "") -> str:
    """Put an item's words into a text.

    Raises AtelierError if a caption is asked for that the picture does not have.
    """
    words = {
        "tags": item.tags,
        "name": re.sub(r"[_\-\s]+", " ", item.file.stem).strip(),
        "folder": item.file.parent.name,
        "style": item.style,
        "trigger": trigger,
        "answer": answer,
    }

    def value(found: re.Match) -> str:
        if found[1] != "caption":
            return words[found[1]]
        if found[2] not in item.captions:
            raise AtelierError(f"{item.file.name} has no caption by {found[2]}. Caption it with {found[2]} first.")
        return item.captions[found[2]]

    return _FIELD.sub(value, text).strip()


def split_turns(prompt: str) -> tuple[str, ...]:
    """A prompt's turns: parts between lines of three dashes; one empty turn for an empty prompt."""
    parts = [part.strip() for part in re.split(r"(?m)^\s*---\s*$", prompt)]
    return tuple(part for part in parts if part) or ("",)


def clean(answer: str) -> str:
    """An answer without the thoughts some models write before it, trimmed."""
    return re.sub(r"(?s)^.*</think>", "", answer).strip()


@dataclass(frozen=True)
class Ask:
    """What is asked about one picture: the user's turns, each after the answer to the one before."""

    turns: tuple[str, ...]
    system: str = ""
