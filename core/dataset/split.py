"""Train, validation and test: who goes where, so that nothing leaks and nobody moves.

A share of each stratum can only be kept by looking at the other pictures, and a split that never moves a picture can only
look at that picture. Both hold together if what was split before is handed in as `known`: those pictures stay, and the
later ones fill what is missing. Without it, pictures are taken in the order of a hash, so that a larger set moves the few
at the borders. Exact copies, duplicate groups and variants of a picture are one unit and never part.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from pydantic import Field, model_validator

from ..errors import AtelierError
from ..files import digest_of
from ..options import Options
from .buckets import choose_bucket, make_buckets
from .replay import replayed_size
from .store import Store
from .stored import StoredRow
from .view import View

SPLITS = ("train", "validation", "test")
ALLOWANCE = 0.01  # of a stratum: a group may overfill its part by so much
BUCKETS = make_buckets(1024)


class SplitOptions(Options):
    """How large the parts are, and what is equally spread over them."""

    validation: float = Field(0.1, ge=0, le=0.9, description="Share of pictures for validation.")
    test: float = Field(0.0, ge=0, le=0.9, description="Share of pictures for the test; training never sees them.")
    by: str = Field(
        "",
        max_length=1000,
        description="Spread equally: folder, aspect, format, column:artist, tag:portrait,landscape; empty for nothing.",
    )
    seed: int = Field(0, ge=0, le=2**63 - 1, description="Another seed chooses other pictures.")

    @model_validator(mode="after")
    def _some_left(self):
        if self.validation + self.test > 0.95:
            raise ValueError("validation and test leave less than 5 % for training; make them smaller")
        return self


@dataclass(frozen=True)
class _Unit:
    """Pictures that stay together: their place in the order, and how many of each stratum."""

    order: str
    rows: tuple[str, ...]
    strata: Mapping[str, int]


def split_rows(
    rows: Sequence[StoredRow],
    options: SplitOptions,
    groups: Iterable[Sequence[str]] = (),
    known: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Choose the split of every row, each stratum's shares to about one picture.

    groups  ids of pictures that belong together, such as duplicates
    known   splits of an earlier run by row id; they stay. Where a group now joins pictures of several splits, it goes
            to the one that training has seen most of: train, else validation, so that nothing seen is tested
    ->      split by row id; a variant has its row's
    Raises AtelierError for a column or kind of stratum that is not there, or an unknown split.
    """
    before = _checked(known or {})
    units = _units(rows, groups, options)
    chosen: dict[str, str] = {}
    have: dict[str, Counter] = defaultdict(Counter)
    later = []
    for unit in units:
        told = {before[own] for own in unit.rows if own in before}
        if told:
            _place(unit, next(split for split in SPLITS if split in told), chosen, have)
        else:
            later.append(unit)
    sizes: Counter = Counter()
    for unit in units:
        sizes.update(unit.strata)
    wanted = _quotas(sizes, have, options)
    for unit in sorted(later, key=lambda unit: unit.order):
        fits = (split for split in ("test", "validation") if _fits(unit, wanted[split], have, split, sizes))
        _place(unit, next(fits, "train"), chosen, have)
    return {row.id: chosen[_base(row)] for row in rows}


def split_view(view: View, options: SplitOptions, groups: Iterable[Sequence[str]] = ()) -> View:
    """Lay splits on a view's pictures that nobody rejected; who was split by these options before stays there, remembered in the store.

    groups  ids of pictures that belong together
    Raises AtelierError as split_rows does.
    """
    key, rows = f"split {digest_of(options.model_dump(), size=8)}", view.kept_rows()
    with Store(view.store, made=False) as store:
        known = json.loads(store.meta(key) or "{}")
        splits = split_rows(rows, options, groups, known)
        # A picture that is not in this view today keeps its place for the day it comes back.
        store.set_meta(key, json.dumps(known | {own: name for own, name in splits.items() if "+" not in own}))
    return view.lay({own: {"split": name} for own, name in splits.items()})


def split_table(rows: Iterable[StoredRow], splits: Mapping[str, str], by: str = "") -> dict[str, dict[str, int]]:
    """How many pictures of each stratum are in each split; variants do not count.

    ->  {stratum: {split: pictures}}
    """
    rows = [row for row in rows if row.id == _base(row)]
    table: dict[str, dict[str, int]] = {}
    for row, name in zip(rows, strata(rows, by), strict=True):
        counts = table.setdefault(name, dict.fromkeys(SPLITS, 0))
        counts[splits[row.id]] += 1
    return dict(sorted(table.items()))


def strata(rows: Sequence[StoredRow], by: str) -> list[str]:
    """The stratum of each row.

    by  folder, aspect (the bucket of the picture after its crop and operations), split, format, column:<name>,
        tag:<name>,<name> for the first of these tags that it has; empty for one stratum
    ->  "" for a row without the value
    Raises AtelierError for another kind, or for a column or tag that no row has.
    """
    kind, _, name = by.partition(":")
    kind, name = kind.strip().lower(), name.strip()
    if kind in PLAIN and not name:
        return [PLAIN[kind](row) for row in rows]
    if kind not in ("column", "tag") or not name:
        known = [*(one for one in PLAIN if one), "column:<name>", "tag:<name>"]
        near = get_close_matches(by, known, 1)
        hint = f"Did you mean {near[0]}?" if near else f"Use {', '.join(known)}."
        raise AtelierError(f"Pictures cannot be grouped by {by!r}. {hint}")
    found = [_column(row, name) if kind == "column" else _first_tag(row, name) for row in rows]
    if rows and not any(found):
        there = sorted({one for row in rows for one in (row.columns if kind == "column" else row.tags)})
        near = get_close_matches(name, there, 1) or there[:1]
        hint = f"Did you mean {near[0]}?" if near else f"The pictures have no {kind}s."
        raise AtelierError(f"No picture has the {kind} {name}. {hint}")
    return found


def _folder(row: StoredRow) -> str:
    return row.path.replace("\\", "/").rpartition("/")[0]


def _aspect(row: StoredRow) -> str:
    size = replayed_size(row.width, row.height, row.crop, row.ops)
    bucket = choose_bucket(*size, BUCKETS) if min(size) > 0 else None
    return f"{bucket.width}x{bucket.height}" if bucket else ""


def _column(row: StoredRow, name: str) -> str:
    value = row.columns.get(name)
    return "" if value is None else str(value)


def _first_tag(row: StoredRow, names: str) -> str:
    tags = {tag.lower() for tag in row.tags}
    return next((name for one in names.split(",") if (name := one.strip()) and name.lower() in tags), "")


PLAIN = {
    "": lambda _: "",
    "folder": _folder,
    "aspect": _aspect,
    "split": lambda row: row.split,
    "format": lambda row: row.format,
}


def _base(row: StoredRow) -> str:
    return row.parent or row.id.partition("+")[0]


def _checked(known: Mapping[str, str]) -> Mapping[str, str]:
    wrong = next((split for split in known.values() if split not in SPLITS), None)
    if wrong is not None:
        raise AtelierError(f"A picture has the split {wrong!r}. Use train, validation or test.")
    return known


def _units(rows: Sequence[StoredRow], groups: Iterable[Sequence[str]], options: SplitOptions) -> list[_Unit]:
    """Pictures joined by groups, by equal bytes and by being variants of one."""
    by_base: dict[str, StoredRow] = {}
    for row in rows:
        by_base.setdefault(_base(row), row)
    head = {base: base for base in by_base}

    def find(own: str) -> str:
        while head[own] != own:
            head[own] = own = head[head[own]]
        return own

    same: dict[str, list[str]] = defaultdict(list)
    for base, row in by_base.items():
        same[row.digest or base].append(base)
    for group in (*groups, *same.values()):
        there = [base for own in group if (base := own.partition("+")[0]) in head]
        for own in there[1:]:
            head[find(own)] = find(there[0])
    names = dict(zip(by_base, strata(list(by_base.values()), options.by), strict=True))
    members: dict[str, list[str]] = defaultdict(list)
    for base in by_base:
        members[find(base)].append(base)
    return [
        _Unit(
            min(digest_of(options.seed, by_base[own].digest or own) for own in unit),
            tuple(unit),
            Counter(names[own] for own in unit),
        )
        for unit in members.values()
    ]


def _quotas(sizes: Counter, have: Mapping[str, Counter], options: SplitOptions) -> dict[str, dict[str, int]]:
    """Whole pictures of each stratum for validation and test, which add up to the shares of all (largest remainders).

    What is over goes first to strata whose known pictures already have it.
    """
    quotas: dict[str, dict[str, int]] = {}
    for split, share in (("test", options.test), ("validation", options.validation)):
        exact = {name: share * count for name, count in sizes.items()}
        own = {name: int(value + 1e-9) for name, value in exact.items()}
        over = round(share * sizes.total()) - sum(own.values())

        def late(name: str, own=own, exact=exact, split=split):
            return have[name][split] <= own[name], own[name] - exact[name], digest_of(options.seed, split, name)

        for name in sorted(sizes, key=late)[: max(0, over)]:
            own[name] += 1
        quotas[split] = own
    return quotas


def _fits(unit: _Unit, wanted: Mapping[str, int], have: Mapping[str, Counter], split: str, sizes: Counter) -> bool:
    """Whether a unit brings its largest stratum nearer to what is wanted, and overfills none."""
    main = max(unit.strata, key=lambda name: (unit.strata[name], name))
    need = {name: wanted[name] - have[name][split] for name in unit.strata}
    return need[main] >= unit.strata[main] / 2 and all(
        count - need[name] <= max(0.5, ALLOWANCE * sizes[name]) for name, count in unit.strata.items()
    )


def _place(unit: _Unit, split: str, chosen: dict[str, str], have: Mapping[str, Counter]) -> None:
    for own in unit.rows:
        chosen[own] = split
    for name, count in unit.strata.items():
        have[name][split] += count
