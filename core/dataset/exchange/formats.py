"""The exchange formats by name, and the two ways through all of them.

export_rows("kohya", rows, Target(folder, pictures))
rows = import_rows("kohya", folder)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import AtelierError
from . import ai_toolkit, imagefolder, kohya, sidecar, simpletuner
from .exchanged import Exchanged, Target, check_rows, place_pictures
from .remainder import read_trigger, with_remainder, write_remainder


@dataclass(frozen=True)
class Format:
    """How a format is written and read, and where it wants its pictures."""

    write: Callable[[Sequence[Exchanged], Target], None]
    read: Callable[[Path, str], list[Exchanged]]
    place: Callable[[Exchanged], str]


FORMATS = {
    "sidecar": Format(sidecar.write, sidecar.read, sidecar.place),
    "kohya": Format(kohya.write, kohya.read, kohya.place),
    "ai-toolkit": Format(ai_toolkit.write, ai_toolkit.read, ai_toolkit.place),
    "simpletuner": Format(simpletuner.write, simpletuner.read, simpletuner.place),
    "simpletuner-parquet": Format(simpletuner.write_parquet, simpletuner.read, simpletuner.place),
    "imagefolder": Format(imagefolder.write, imagefolder.read, imagefolder.place),
}


def export_rows(name: str, rows: Sequence[Exchanged], target: Target) -> int:
    """Write rows and their pictures in a format; what it has no words for is kept in a hidden file beside it.

    name  one of FORMATS
    ->    rows that needed the hidden file: a trainer sees less of them than they hold
    Raises AtelierError for an unknown format, rows that no format can hold, or files in the way.
    """
    form = _format(name)
    check_rows(rows)
    if not rows:
        raise AtelierError("There are no rows to export. Keep at least one picture.")
    place_pictures(rows, target, form.place)
    form.write(rows, target)
    return write_remainder(target.folder, rows, form.read(Path(target.folder), target.trigger), target.trigger)


def import_rows(name: str, folder: Path, trigger: str = "") -> list[Exchanged]:
    """Read rows of a format, sorted by path.

    name     one of FORMATS
    trigger  the word for [trigger]; empty for that of our own export
    Raises AtelierError for an unknown format, or files that are missing or damaged.
    """
    root = Path(folder)
    if not root.is_dir():
        raise AtelierError(f"There is no folder {root}. Give the path of an exported dataset.")
    rows = _format(name).read(root, trigger or read_trigger(root))
    check_rows(rows)
    return sorted(with_remainder(root, rows), key=lambda r: r.path)


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise AtelierError(f'There is no format "{name}". Use {", ".join(FORMATS)}.')
    return FORMATS[name]
