"""Edits of captions: find and replace, words before and after, and the order of tags; text in, text out.

A regular expression can take longer than the sun shines ("(a+)+b"), and Python's `re` cannot be stopped from outside.
So a search that is not plain text runs in a process of its own, which is ended when its time is over.
"""

import json
import random
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..errors import AtelierError

LONGEST_PATTERN = 1000  # characters
LONGEST_RESULT = 20_000_000  # characters of all captions together
# Reads {pattern, flags, replacement, texts, most} from stdin and writes {texts} or {error} to stdout.
CHILD = """
import json, re, sys
told = json.load(sys.stdin)
left = told["most"]
def put(match):
    global left
    text = match.expand(told["replacement"])
    left -= len(text)
    if left < 0: raise OverflowError("the result is too long")
    return text
try:
    pattern = re.compile(told["pattern"], told["flags"])
    out = {"texts": [pattern.sub(put, text) for text in told["texts"]]}
except (re.error, IndexError, OverflowError, RecursionError, MemoryError) as error:
    out = {"error": str(error)}
json.dump(out, sys.stdout)
"""


@dataclass(frozen=True)
class Search:
    """What to find and what to put there.

    pattern      text, or a regular expression of Python
    replacement  text; with a regular expression, \\1 and \\g<name> stand for its groups
    regex        whether the pattern is a regular expression
    same_case    whether capitals matter
    whole_words  whether a match must not begin or end within a word
    seconds      time for all captions together
    """

    pattern: str
    replacement: str = ""
    regex: bool = False
    same_case: bool = True
    whole_words: bool = False
    seconds: float = 5.0


def replace_all(texts: Sequence[str], search: Search) -> tuple[str, ...]:
    """Replace every match in every text.

    Raises AtelierError if the pattern is empty, too long or no regular expression, or if it takes too long.
    """
    if not search.pattern or len(search.pattern) > LONGEST_PATTERN:
        raise AtelierError(
            f"The search has {len(search.pattern)} characters. Give it between 1 and {LONGEST_PATTERN} characters."
        )
    pattern = search.pattern if search.regex else re.escape(search.pattern)
    if search.whole_words:
        pattern = rf"(?<!\w)(?:{pattern})(?!\w)"
    flags = 0 if search.same_case else int(re.IGNORECASE)
    if not search.regex:
        plain = re.compile(pattern, flags)
        return tuple(plain.sub(lambda _: search.replacement, text) for text in texts)
    return _replace_apart(texts, search, pattern, flags)


def _replace_apart(texts: Sequence[str], search: Search, pattern: str, flags: int) -> tuple[str, ...]:
    told = {
        "pattern": pattern,
        "flags": flags,
        "replacement": search.replacement,
        "texts": list(texts),
        "most": LONGEST_RESULT,
    }
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", CHILD],
            input=json.dumps(told).encode(),
            capture_output=True,
            timeout=search.seconds,
            check=True,
        )
    except subprocess.TimeoutExpired:
        raise AtelierError(
            f'The search for "{search.pattern}" took more than {search.seconds:g} seconds and was ended. '
            "Avoid a repetition within a repetition, such as (a+)+."
        ) from None
    out = json.loads(done.stdout)
    if "error" in out:
        raise AtelierError(
            f'The search for "{search.pattern}" failed ({out["error"]}). Correct it, or search for plain text.'
        )
    return tuple(out["texts"])


def with_ends(text: str, prefix: str = "", suffix: str = "", between: str = ", ") -> str:
    """Put words before and after a caption, each only where it is not there yet."""
    body = text.strip()
    front = prefix if prefix and not (body == prefix or body.startswith(prefix + between)) else ""
    back = suffix if suffix and not (body == suffix or body.endswith(between + suffix)) else ""
    return between.join(part for part in (front, body, back) if part)


def split_tags(text: str) -> list[str]:
    """The comma-separated tags of a caption, trimmed; a comma within brackets, as in "(a, b:1.2)", separates nothing.

    Where brackets do not close, as in the tag ":(", every comma separates.
    """
    parts, depth = [""], 0
    for at, sign in enumerate(text):
        escaped = at > 0 and text[at - 1] == "\\"
        depth += 0 if escaped else (sign in "([{") - (sign in ")]}")
        if depth < 0:
            break
        if sign == "," and not depth:
            parts.append("")
        else:
            parts[-1] += sign
    parts = parts if depth == 0 else text.split(",")
    return [part.strip() for part in parts if part.strip()]


def join_tags(tags: Iterable[str]) -> str:
    """A caption of tags."""
    return ", ".join(tags)


def tag_key(tag: str) -> str:
    """The form in which tags are the same: lower case, spaces for underscores, without brackets and weight."""
    plain = re.sub(r":\s*\d*\.?\d+\s*(?=[)\]}]*$)", "", tag.casefold().replace("_", " "))
    # A pair of escaped brackets is part of a tag's name, as in "saber \\(fate\\)".
    while len(plain) > 2 and plain[0] in "([{" and plain[-1] in ")]}" and plain[-2] != "\\":
        plain = plain[1:-1]
    return " ".join(plain.split())


def dedupe_tags(text: str) -> str:
    """Keep the first of tags that are the same."""
    first: dict[str, str] = {}
    for tag in split_tags(text):
        first.setdefault(tag_key(tag), tag)
    return join_tags(first.values())


def shuffle_tags(text: str, keep: int, generator: random.Random) -> str:
    """Put tags into another order, the first `keep` of them in place."""
    tags = split_tags(text)
    rest = tags[max(0, keep) :]
    return join_tags(tags[: max(0, keep)] + generator.sample(rest, len(rest)))


def order_tags(text: str, order: Sequence[str]) -> str:
    """Put the named tags first, in this order; the others follow as they were."""
    places = {tag_key(tag): place for place, tag in reversed(list(enumerate(order)))}
    return join_tags(sorted(split_tags(text), key=lambda tag: places.get(tag_key(tag), len(places) + len(order))))
