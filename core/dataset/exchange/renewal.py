"""An export that takes the place of an earlier one: whole or not at all, with nothing old left behind.

The earlier one is moved aside, and comes back if the new one fails or may not replace it. What a person or a trainer put
into the folder since is moved over. A list of the files, hidden beside them, tells what an export has written.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...errors import AtelierError
from ...files import digest, write_json

NAME = ".atelier_export.json"
SMALL = 1 << 20  # bytes up to which a file is compared by its contents, above by its size


@contextmanager
def renewed(folder: Path, replace: bool) -> Iterator[None]:
    """Write an export into a folder within this context.

    folder   where it goes; one that holds other things than an earlier export is written into as it is
    replace  whether an earlier export may be replaced by a different one
    Raises AtelierError if it may not and is different; the folder is then as it was.
    """
    folder = Path(folder)
    aside = folder.with_name(f".{folder.name}.before")
    if aside.exists():  # an earlier run was ended from outside
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
    earlier = _listed(folder)
    before = set(_files(folder)) if earlier is None else set()
    if earlier is not None:
        folder.rename(aside)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
        made = {path: _mark(folder / path) for path in _files(folder) if path not in before}
        if earlier is not None and not replace and made != earlier:
            other = min(path for path in made.keys() | earlier.keys() if made.get(path) != earlier.get(path))
            raise AtelierError(
                f"{folder} holds an earlier export that differs ({other}). Allow replacing, or choose another name."
            )
    except BaseException:
        if earlier is not None:
            shutil.rmtree(folder, ignore_errors=True)
            aside.rename(folder)
        raise
    if earlier is not None:
        _move_over(aside, folder, [path for path in _files(aside) if path not in earlier])
        shutil.rmtree(aside)
    write_json(folder / NAME, {"version": 1, "files": made})


def _listed(folder: Path) -> dict[str, str] | None:
    """What an earlier export wrote, or None where there is none."""
    file = folder / NAME
    if not file.is_file():
        return None
    try:
        return dict(json.loads(file.read_text(encoding="utf-8"))["files"])
    except (ValueError, KeyError, TypeError):
        raise AtelierError(f"{file} is damaged. Remove {folder}, or choose another name.") from None


def _files(folder: Path) -> list[str]:
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != NAME)
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _mark(file: Path) -> str:
    size = file.stat().st_size
    return f"{size} {digest(file) if size <= SMALL else ''}"


def _move_over(source: Path, target: Path, paths: list[str]) -> None:
    for path in paths:
        goal = target / path
        if not goal.exists():
            goal.parent.mkdir(parents=True, exist_ok=True)
            (source / path).rename(goal)
