"""Captions as the texts of a training: the trigger word, other orders of tags, the same without the trigger."""

import random
import re
from dataclasses import dataclass

from ..errors import AtelierError
from .record import Row


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
