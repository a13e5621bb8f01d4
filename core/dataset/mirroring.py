"""Left and right in English texts, and words that tell of writing: what mirroring a picture makes untrue."""

import re
from collections.abc import Iterable
from dataclasses import replace

from .stored import WrittenCaption

MIRRORED = "mirrored"  # laid on a variant whose captions and tags are to say left for right
# What stands beside left and right where they are no sides, whichever of the two it is, so that swapping twice is no change:
# "has left", "right angle"; "right behind", unless it is "to the right behind".
NO_SIDE_AFTER = re.compile(r"\b(?:all|has|have|had|having|been|being)[ \t-]+$", re.IGNORECASE)
NO_SIDE_BEFORE = re.compile(
    r"[ \t-]+(?:now|away|angle[sd]?|alone|blank|open|over|unfinished|untouched)\b", re.IGNORECASE
)
LOOSE_BEFORE = re.compile(r"[ \t-]+(?:next|in|at|above|below|behind|after|before)\b", re.IGNORECASE)
SIDE_AFTER = re.compile(
    r"\b(?:the|an?|on|to|at|from|towards?|far|near|upper|lower|top|bottom|cent(?:er|re)|mid|middle|his|her|their|its|my|your|our"
    r"|facing|faces|looking|looks|turned|pointing|leaning|and|or)[ \t-]+$",
    re.IGNORECASE,
)
SIDE = re.compile(r"\b(left|right)(?=(?:most|wards?|hand|handed|side|sided)?\b)", re.IGNORECASE)
WRITING = re.compile(
    r"\b(?:text|texts|writing|written|lettering|letters|words|inscriptions?|inscribed|logos?|watermarks?|watermarked|signatures?"
    r"|signs?|signage|typography|calligraphy|subtitles?|speech bubbles?|license plates?|number plates?|reads|says)\b"
    r"|[\"“][^\"“”]+[\"”]",
    re.IGNORECASE,
)


def mirror_text(text: str) -> str:
    """Swap left and right in an English text; twice is no change.

    ->  left alone where the words beside say it is no side: "all right", "right behind", "was left"
    """
    return SIDE.sub(lambda found: _swapped(found) if _is_side(found) else found.group(), text)


def _is_side(found: re.Match) -> bool:
    before, text, end = found.string[max(0, found.start() - 24) : found.start()], found.string, found.end()
    if NO_SIDE_AFTER.search(before) or NO_SIDE_BEFORE.match(text, end):
        return False
    return bool(SIDE_AFTER.search(before)) or not LOOSE_BEFORE.match(text, end)


def _swapped(found: re.Match) -> str:
    word = found.group()
    other = "right" if word.lower() == "left" else "left"
    return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other


def side_words(text: str) -> tuple[str, ...]:
    """The words of a text that say left or right, in lower case, each once."""
    return tuple(dict.fromkeys(found.group().lower() for found in SIDE.finditer(text) if _is_side(found)))


def writing_words(text: str) -> tuple[str, ...]:
    """The words of a text that tell of writing in the picture, and what stands in quotes, each once."""
    return tuple(dict.fromkeys(found.group().lower() for found in WRITING.finditer(text)))


def mirrored_words(captions: Iterable[WrittenCaption], tags: Iterable[str]) -> dict[str, tuple]:
    """Captions and tags of a mirrored picture: left and right change places."""
    swapped = tuple(replace(caption, text=mirror_text(caption.text)) for caption in captions)
    return {"captions": swapped, "tags": tuple(map(mirror_text, tags))}
