"""Colour maps as .cube files (Adobe Cube LUT 1.0), which editors and players read, and back."""

from pathlib import Path

import torch

from ..errors import AtelierError
from ..files import write_text
from .color import SIZES, TableMap

LONGEST = 48 * SIZES[1] ** 3  # bytes; a line that is written here has at most 45
RANGE = "LUT_3D_INPUT_RANGE"  # how DaVinci Resolve writes the domain: low and high of all three channels


def write_cube(path: Path, table: TableMap, title: str = "") -> Path:
    """Write a table as a .cube file, whole or not at all."""
    words = title.replace('"', "'").replace("\n", " ")
    lines = [f'TITLE "{words}"'] if title else []
    lines += [f"LUT_3D_SIZE {len(table.table)}"]
    lines += [f"DOMAIN_{name} " + " ".join(f"{v:g}" for v in ends) for name, ends in _ends(table)]
    lines += [f"{r:.6f} {g:.6f} {b:.6f}" for r, g, b in table.table.reshape(-1, 3).tolist()]
    return write_text(Path(path), "\n".join(lines) + "\n")


def _ends(table: TableMap) -> tuple[tuple[str, tuple[float, ...]], ...]:
    return ("MIN", table.low), ("MAX", table.high)


def read_cube(path: Path) -> TableMap:
    """Read a .cube file with a table of three dimensions.

    Raises AtelierError if it is missing, is no such file, or has too few or too many entries.
    """
    path = Path(path)
    if not path.is_file():
        raise AtelierError(f"There is no file {path}. Check the name and the folder.")
    if path.stat().st_size > LONGEST:
        raise AtelierError(f"{path.name} is larger than {LONGEST >> 20} MB. Choose a .cube file.")
    size, ends, rows = 0, {"DOMAIN_MIN": (0.0,) * 3, "DOMAIN_MAX": (1.0,) * 3}, []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1):
        words = line.split("#")[0].split()
        if not words or words[0] == "TITLE":
            continue
        if words[0] == "LUT_3D_SIZE" and len(words) == 2 and words[1].isdecimal():
            size = int(words[1])
        elif words[0] in ends:
            ends[words[0]] = _numbers(path, number, words[1:])
        elif words[0] == RANGE:
            low, high = _numbers(path, number, words[1:], 2)
            ends = {"DOMAIN_MIN": (low,) * 3, "DOMAIN_MAX": (high,) * 3}
        elif words[0].startswith("LUT_"):
            raise AtelierError(f"{path.name} has {words[0]} in line {number}. Choose a .cube file with LUT_3D_SIZE.")
        else:
            rows.append(_numbers(path, number, words))
    return _table(path, size, ends["DOMAIN_MIN"], ends["DOMAIN_MAX"], rows)


def _numbers(path: Path, number: int, words: list[str], count: int = 3) -> tuple[float, ...]:
    try:
        values = tuple(float(w) for w in words)
    except ValueError:
        values = ()
    if len(values) != count or not all(abs(v) < 1e6 for v in values):
        wanted = "three" if count == 3 else "two"
        raise AtelierError(f"Line {number} of {path.name} has no {wanted} numbers. Export the .cube file again.")
    return values


def _table(path: Path, size: int, low: tuple, high: tuple, rows: list[tuple[float, ...]]) -> TableMap:
    if size > SIZES[1]:
        raise AtelierError(
            f"{path.name} has LUT_3D_SIZE {size}. Export it with {SIZES[0]} to {SIZES[1]} entries along each side."
        )
    if size < SIZES[0] or len(rows) != size**3:
        raise AtelierError(f"{path.name} has {len(rows)} entries for LUT_3D_SIZE {size}. Export the .cube file again.")
    if not all(a < b for a, b in zip(low, high, strict=True)):
        raise AtelierError(f"{path.name} has a domain from {low} to {high}. Export the .cube file again.")
    return TableMap(torch.tensor(rows).view(size, size, size, 3), low, high)
