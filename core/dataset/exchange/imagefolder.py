"""Hugging Face imagefolder: a folder per split, each with its pictures and its own metadata.jsonl.

One metadata file per split, because some versions of `datasets` pass over one in the root. Load it with
`load_dataset("imagefolder", data_dir=...)`.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from ...errors import AtelierError
from .exchanged import SPLITS, Exchanged, Target, below, inside, read_caption_file, write_new

NAME = "metadata.jsonl"
TEXTS = ("text", "caption", "prompt")


def place(row: Exchanged) -> str:
    """The picture's path within the export."""
    return f"{row.split}/{row.path}"


def write(rows: Sequence[Exchanged], target: Target) -> None:
    """Write a metadata file per split: `text` is the first caption, `captions` and `tags` are lists."""
    for split in sorted({row.split for row in rows}):
        lines = [json.dumps(_told(row), ensure_ascii=False) for row in rows if row.split == split]
        write_new(Path(target.folder) / split / NAME, "\n".join(lines) + "\n", target)


def _told(row: Exchanged) -> dict:
    text = row.said[0] if row.said else ""
    told = {"file_name": row.path, "text": text, "captions": row.captions, "tags": row.tags}
    return told | {"repeats": row.repeats}


def read(folder: Path, trigger: str) -> list[Exchanged]:
    """Read the metadata files of a folder and of the split folders in it.

    Raises AtelierError if there is none, or a line of one is damaged.
    """
    root = Path(folder)
    files = [f for f in (root / NAME, *sorted(root.glob(f"*/{NAME}"))) if f.is_file()]
    if not files:
        raise AtelierError(f"{root} has no {NAME}, nor has a folder in it. Choose the folder that holds the splits.")
    found = []
    for file in files:
        base = "" if file.parent == root else file.parent.name
        # Not splitlines: a caption may hold signs that Python takes for the end of a line.
        for number, line in enumerate(read_caption_file(file).split("\n"), 1):
            if line.strip():
                found.append(_row(base, line, f"{file}, line {number},"))
    return below(found)


def _row(base: str, line: str, where: str) -> tuple[str, Exchanged]:
    try:
        told = json.loads(line)
        name = inside(str(told["file_name"]))
        text = next((str(told[key]) for key in TEXTS if told.get(key)), "")
        captions = [str(c) for c in told.get("captions") or ()]
        tags = tuple(str(t) for t in told.get("tags") or ())
        repeats = int(told.get("repeats") or 1)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise AtelierError(f"{where} is not a JSON object with a file_name. Correct it.") from None
    if not base and name.split("/")[0] in SPLITS and "/" in name:
        base, name = name.split("/", 1)
    if text and not (tags and not captions and text == ", ".join(tags)):
        captions = [text, *captions[1:]]
    return base, Exchanged(name, tuple(captions), tags, SPLITS.get(base, "train"), repeats)
