"""Leave out what spoils a training set: small, blurred, noisy, barred and repeated pictures, each with its reason.

Only what a scan has measured is read, so moving a threshold opens no picture; looking for copies reads thumbnails.
"""

from collections.abc import Generator
from typing import Literal, NamedTuple

from pydantic import Field

from ..options import Options
from .duplicates import Group, find_duplicates
from .looks import copies_of, look_at_rows
from .opening import root_of
from .stored import StoredRow
from .view import View

NAME = "Curate Dataset"


class CurateOptions(Options):
    """Where the lines are drawn."""

    min_side: int = Field(256, ge=0, le=8192, description="Shorter side in pixels below which a picture is too small.")
    min_sharpness: float = Field(
        0.25, ge=0, le=1, description="Sharpness below which a picture is too blurred; 0 is off."
    )
    duplicates: Literal["off", "fast", "robust"] = Field(
        "fast", description="Leave out repeats; fast: saved again, mirrored, turned; robust: crops and logos too."
    )
    max_noise: float = Field(0.0, ge=0, le=255, description="Noise in grey levels above which one goes; 0 is off.")
    max_letterbox: float = Field(0.0, ge=0, le=1, description="Share of even bars above which one goes; 0 is off.")
    min_entropy: float = Field(0.0, ge=0, le=8, description="Bits a pixel below which there is little to learn; 0 off.")
    min_resolution: float = Field(
        0.0, ge=0, le=1, description="Real detail below which a picture was enlarged, 0.5 is usual; 0 is off."
    )
    max_clipped: float = Field(
        0.0, ge=0, le=1, description="Share of pixels in pure black or white above which one goes; 0 is off."
    )
    longest_aspect: float = Field(
        0.0, ge=0, le=100, description="Longer over shorter side above which one goes; 0 is off."
    )


class Line(NamedTuple):
    """A threshold: the option and score it is about, whether it is a least value, and what a picture beyond it is."""

    option: str
    score: str
    least: bool
    word: str


LINES = (
    Line("min_sharpness", "sharpness", True, "blurred"),
    Line("max_noise", "noise", False, "noisy"),
    Line("max_letterbox", "letterbox", False, "barred"),
    Line("min_entropy", "entropy", True, "nearly empty"),
    Line("min_resolution", "resolution", True, "enlarged"),
)


def curate(view: View, options: CurateOptions) -> Generator[int, None, View]:
    """Leave out what is beyond the lines, and all copies but the best; nothing is written, no file is touched.

    A picture that a person kept stays, whatever the lines say; one that a person rejected is no copy to stay for others.

    -> the number of thumbnails looked at, now and then; returns the view without what is left out
    """
    rows = view.kept_rows()
    wanted = {row.id for row in rows if row.decision == "keep"}
    reasons = {row.id: reason for row in rows if row.id not in wanted and (reason := fault(row, options))}
    if options.duplicates != "off":
        groups = yield from duplicates(view, [r for r in rows if r.id not in reasons], options.duplicates == "robust")
        reasons |= {own: reason for own, reason in repeated(rows, groups).items() if own not in wanted}
    return view.without(reasons, NAME)


def duplicates(view: View, rows: list[StoredRow], robust: bool) -> Generator[int, None, tuple[Group, ...]]:
    """Group the copies among rows of a view; a picture's own variants are no copies of it.

    -> the number of thumbnails looked at, now and then; returns the groups
    """
    rows = [row for row in rows if row.parent is None]
    looks = None
    for step in look_at_rows(view.store, root_of(view), rows):
        if isinstance(step, int):
            yield step
        else:
            looks = step
    assert looks is not None
    return find_duplicates(copies_of(rows), looks, robust)


def repeated(rows: list[StoredRow], groups: tuple[Group, ...]) -> dict[str, str]:
    """Why each copy but the best is left out, with the name of the picture that stays, by id."""
    paths = {row.id: row.path for row in rows}
    return {
        id: f"duplicate: of {paths[group.kept]}, {group.reason(id).partition(' (')[0]}"
        for group in groups
        for id in group.left_out
    }


def fault(row: StoredRow, options: CurateOptions) -> str | None:
    """Why a picture is not good enough by itself, or None."""
    if min(row.width, row.height) < options.min_side:
        return f"too small: {row.width} x {row.height}, below {options.min_side} pixels"
    for line in LINES:
        limit, value = getattr(options, line.option), row.scores.get(line.score)
        if limit and value is not None and (value < limit if line.least else value > limit):
            return f"{line.word}: {line.score} {value:.2f}, {'below' if line.least else 'above'} {limit:.2f}"
    clipped = row.scores.get("clipped_low", 0.0) + row.scores.get("clipped_high", 0.0)
    if options.max_clipped and clipped > options.max_clipped:
        return f"clipped: {clipped:.0%} of pixels black or white, above {options.max_clipped:.0%}"
    aspect = max(row.width, row.height) / max(1, min(row.width, row.height))
    if options.longest_aspect and aspect > options.longest_aspect:
        return f"too long: {aspect:.1f} to 1, above {options.longest_aspect:.1f}"
    return None


def ended(steps: Generator[int, None, View]) -> View:
    """Run to the end and give what comes of it."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return stop.value
