"""One text file beside each picture, whole as one caption; `.txt`, or `.caption` where there is no `.txt`."""

from collections.abc import Sequence
from pathlib import Path

from ..folder import SIDECARS, picture_files
from .exchanged import Exchanged, Target, read_caption_file, write_beside


def place(row: Exchanged) -> str:
    """The picture's path within the export."""
    return row.path


def write(rows: Sequence[Exchanged], target: Target) -> None:
    """Write each row's caption, several of them on lines of their own; tags where there is no caption."""
    write_beside(((row.path, "\n".join(row.said)) for row in rows), ".txt", target)


def read(folder: Path, trigger: str) -> list[Exchanged]:
    """Read every picture below a folder with the text beside it; a text of spaces is none."""
    rows = []
    for file in picture_files(Path(folder)):
        text = sidecar_text(file).strip()
        rows.append(Exchanged(file.relative_to(folder).as_posix(), (text,) if text else ()))
    return rows


def sidecar_text(picture: Path, endings: Sequence[str] = SIDECARS) -> str:
    """The text beside a picture, or nothing."""
    beside = next((f for e in endings if (f := picture.with_suffix(e)).is_file()), None)
    return read_caption_file(beside) if beside else ""
