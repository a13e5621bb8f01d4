"""Repeats that make groups weigh what they should: the smaller ones are shown more often."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from pydantic import Field

from ..errors import AtelierError
from ..files import digest_of
from ..options import Options
from .split import strata
from .stored import StoredRow


class BalanceOptions(Options):
    """How groups are weighed."""

    weights: str = Field(
        "",
        max_length=20_000,
        description="Weights by group, such as cats=2, dogs=1; groups not named weigh 1. Empty for all equal.",
    )
    most: int = Field(10, ge=1, le=1000, description="Most repeats of one picture.")
    seed: int = Field(0, ge=0, le=2**63 - 1, description="Chooses which pictures of a group get one repeat more.")


@dataclass(frozen=True)
class GroupBalance:
    """A group after balancing.

    name      folder, tag, column's value, bucket; empty for pictures without one
    pictures  how many it has
    weight    what it should weigh, against the others'
    shown     how often an epoch shows one of its pictures
    share     of all that an epoch shows, 0..1
    reason    why it is shown so often, for a person
    """

    name: str
    pictures: int
    weight: float
    shown: int
    share: float
    reason: str


@dataclass(frozen=True)
class Balance:
    """Repeats by row id, and the groups they come from, the largest first."""

    repeats: Mapping[str, int]
    groups: tuple[GroupBalance, ...]


def balance(rows: Sequence[StoredRow], by: str, options: BalanceOptions) -> Balance:
    """Choose repeats so that an epoch shows each group in proportion to its weight, and no picture less than once.

    rows  pictures, and variants, which count like pictures; outside the training split they have 1 and do not count,
          unless `by` is split
    by    folder, aspect, split, format, column:<name>, tag:<name>,<name> (see split.strata)
    ->    within a group, repeats differ by 1 at most; a group that would need more than the most stays below its weight
    Raises AtelierError for a weight of a group that is not there, or one that is not above 0.
    """
    names = strata(rows, by)
    counted = [i for i, row in enumerate(rows) if row.split == "train" or by.strip().lower() == "split"]
    members: dict[str, list[StoredRow]] = {}
    for i in counted:
        members.setdefault(names[i], []).append(rows[i])
    weights = _weights(options.weights, members)
    unit = max((len(group) / weights[name] for name, group in members.items()), default=0)
    repeats = {row.id: 1 for row in rows}
    shown = {}
    for name, group in members.items():
        shown[name] = min(round(unit * weights[name]), options.most * len(group))
        least, more = divmod(shown[name], len(group))
        order = sorted(group, key=lambda row: (digest_of(options.seed, row.digest), row.id))
        repeats |= {row.id: least + (i < more) for i, row in enumerate(order)}
    total = sum(shown.values())
    groups = [
        GroupBalance(
            name,
            len(group),
            weights[name],
            shown[name],
            shown[name] / total,
            _reason(len(group), shown[name], unit * weights[name], options),
        )
        for name, group in members.items()
    ]
    return Balance(repeats, tuple(sorted(groups, key=lambda group: (-group.pictures, group.name))))


def _reason(pictures: int, shown: int, wanted: float, options: BalanceOptions) -> str:
    each = shown / pictures
    if shown < round(wanted):
        return f"{pictures} pictures would need {wanted / pictures:.1f} repeats each for their weight; {options.most} is the most."
    if shown == pictures:
        return f"{pictures} pictures are shown once: no group has more of them for its weight."
    if shown % pictures:
        low = shown // pictures
        return f"{pictures} pictures need {each:.2f} repeats each: {shown % pictures} have {low + 1}, the others {low}."
    return f"{pictures} pictures need {shown // pictures} repeats each."


def _weights(text: str, groups: Mapping[str, object]) -> dict[str, float]:
    """Weights by group out of `name=weight` parted by commas or lines."""
    weights = dict.fromkeys(groups, 1.0)
    for part in text.replace("\n", ",").split(","):
        if not part.strip():
            continue
        name, sign, value = (piece.strip() for piece in part.rpartition("="))
        if not sign:
            raise AtelierError(
                f"The weights have {part.strip()!r} without a number. Write weights like cats=2, dogs=1."
            )
        if name not in groups:
            near = get_close_matches(name, groups, 1)
            hint = f"Did you mean {near[0]}?" if near else "Write weights like cats=2, dogs=1."
            raise AtelierError(f"The weights name {name or part.strip()!r}, and there is no such group. {hint}")
        try:
            weights[name] = float(value)
        except ValueError:
            weights[name] = math.nan
        if not 0 < weights[name] < math.inf:
            raise AtelierError(f"The weight of {name} is {value!r}. Give a number above 0, or filter the group out.")
    return weights
