"""Leave out what spoils a training set: small, blurred and repeated pictures, each with its reason."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from pydantic import Field

from ..options import Options
from .quality import Measures, measure
from .record import Dataset, Decision, Row

NAME = "curate"


class CurateOptions(Options):
    """Where the lines are drawn."""

    min_side: int = Field(256, ge=0, le=8192, description="Shorter side in pixels below which a picture is too small.")
    min_sharpness: float = Field(
        0.35, ge=0, le=1, description="Sharpness below which a picture is too blurred; 0 is off."
    )
    duplicates: bool = Field(True, description="Leave out repeats and keep the best copy.")
    duplicate_distance: int = Field(6, ge=0, le=16, description="Bits of 64 in which near-duplicates may differ.")


def curate(dataset: Dataset, options: CurateOptions) -> Dataset:
    """Mark what to leave out; nothing on disk is touched.

    Earlier decisions of this function are taken back first, so it can be run again with other limits.
    """
    rows = [replace(r, rejected=None) if r.rejected and r.rejected.by == NAME else r for r in dataset.rows]
    waiting = [r for r in rows if r.kept]
    with ThreadPoolExecutor() as pool:
        measures = dict(
            zip([r.id for r in waiting], pool.map(lambda r: measure(dataset.file(r)), waiting), strict=True)
        )
    reasons = {r.id: reason for r in waiting if (reason := fault(r, measures[r.id], options))}
    if options.duplicates:
        left = [r for r in waiting if r.id not in reasons]
        reasons |= repeats(left, measures, options.duplicate_distance)
    return dataset.with_rows(
        [replace(r, rejected=Decision(reasons[r.id], NAME)) if r.id in reasons else r for r in rows]
    )


def fault(row: Row, measures: Measures, options: CurateOptions) -> str | None:
    """Why a picture is not good enough by itself, or None."""
    if min(row.width, row.height) < options.min_side:
        return f"too small: {row.width} x {row.height}, below {options.min_side} pixels"
    if measures.sharpness < options.min_sharpness:
        return f"blurred: sharpness {measures.sharpness:.2f}, below {options.min_sharpness:.2f}"
    return None


def repeats(rows: list[Row], measures: dict[str, Measures], distance: int) -> dict[str, str]:
    """Find copies and near-copies; of every group the best stays.

    Best: a human's caption, then more pixels, then sharper, then the first path.
    -> reason by row id, for those to leave out
    """
    ranked = sorted(
        rows,
        key=lambda r: (
            not any(c.author == "human" for c in r.captions),
            -r.width * r.height,
            -measures[r.id].sharpness,
            r.path,
        ),
    )
    stays: list[Row] = []
    reasons = {}
    for row in ranked:
        twin = next((s for s in stays if s.digest == row.digest), None)
        if twin:
            reasons[row.id] = f"duplicate: same file as {twin.path}"
            continue
        own = measures[row.id].phash
        twin = next((s for s in stays if (measures[s.id].phash ^ own).bit_count() <= distance), None)
        if twin:
            apart = (measures[twin.id].phash ^ own).bit_count()
            reasons[row.id] = f"near-duplicate: {apart} of 64 bits from {twin.path}"
            continue
        stays.append(row)
    return reasons
