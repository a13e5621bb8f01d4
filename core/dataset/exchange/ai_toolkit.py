"""ai-toolkit: a JSON file beside each picture with `caption` and `caption_short`, and [trigger] for the trigger word.

Set `caption_ext: json` and `trigger_word` in the job's dataset.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from ...errors import AtelierError
from ..folder import picture_files
from .exchanged import Exchanged, Target, read_caption_file, write_beside
from .sidecar import place, sidecar_text

__all__ = ["place", "read", "write"]
PLACEHOLDER = "[trigger]"
KEYS = ("caption", "caption_short")


def write(rows: Sequence[Exchanged], target: Target) -> None:
    """Write each row's first caption as the long one and its second as the short one."""
    write_beside(((row.path, _told(row, target.trigger)) for row in rows), ".json", target)


def _told(row: Exchanged, trigger: str) -> str:
    said = [_with_placeholder(text, trigger) for text in row.said[:2]]
    return json.dumps(dict(zip(KEYS, said, strict=False)), ensure_ascii=False, indent=1) if said else ""


def _with_placeholder(text: str, trigger: str) -> str:
    return re.sub(rf"(?<!\w){re.escape(trigger)}(?!\w)", PLACEHOLDER, text) if trigger else text


def read(folder: Path, trigger: str) -> list[Exchanged]:
    """Read every picture below a folder with its JSON file, else its text file.

    trigger  the word to put in place of [trigger]; empty leaves it
    Raises AtelierError if a JSON file is damaged.
    """
    rows = []
    for file in picture_files(Path(folder)):
        beside = file.with_suffix(".json")
        found = _captions(beside) if beside.is_file() else (sidecar_text(file).strip(),)
        texts = tuple(text.replace(PLACEHOLDER, trigger) if trigger else text for text in found if text)
        rows.append(Exchanged(file.relative_to(folder).as_posix(), texts))
    return rows


def _captions(file: Path) -> tuple[str, ...]:
    try:
        told = json.loads(read_caption_file(file))
        return tuple(str(told[key]) for key in KEYS if told.get(key))
    except (ValueError, AttributeError):
        raise AtelierError(f"{file} is not a JSON object with a caption. Correct or remove it.") from None
