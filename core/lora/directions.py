"""A LoRA taken apart into ranked parts that can be switched on and off.

A layer's change is a sum of directions: sigma_k times the outer product of a left and a right singular vector
(Eckart-Young). A part is a set of such directions; the parts of a LoRA add up to it. Three ways to divide:

    direction  part k is the k-th direction of every layer
    pair       part k is the k-th strongest pair of a layer and a direction in the whole LoRA
    energy     ten parts of a tenth of the energy each, as nearly as pairs allow, the strongest pairs first
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal, get_args

from ..errors import AtelierError
from .factors import Factors
from .kinds import Layer, plain
from .provenance import inherit
from .record import Layers, Lora
from .spectrum import singular_values, sums
from .svd import svd_of

By = Literal["direction", "pair", "energy"]
WAYS: tuple[By, ...] = get_args(By)
BANDS = 10  # parts by energy
ENTRY = re.compile(r"(-?)(\d+)(?:-(\d*))?")


@dataclass(frozen=True)
class Direction:
    """One singular direction: `number` counts from 1 in its layer, `share` is of the whole LoRA's energy."""

    module: str
    number: int
    sigma: float
    share: float


@dataclass(frozen=True)
class Parts:
    """A division: the number, from 1, of the part that each direction of each layer belongs to; each part's share of the energy."""

    numbers: Mapping[str, tuple[int, ...]]
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Selection:
    """The chosen parts and the rest as two LoRAs that add up to the whole; the share of the energy that is chosen."""

    lora: Lora
    rest: Lora
    parts: Parts
    chosen: frozenset[int]
    share: float


def rank_directions(lora: Lora) -> list[Direction]:
    """Every direction of every layer, the strongest first.

    Raises AtelierError for a layer that is no plain sum of directions: DoRA, rotation, whole difference.
    """
    return ranked({module: singular_values(plain(layer)) for module, layer in lora.modules.items()})


def ranked(sigmas: Mapping[str, Sequence[float]]) -> list[Direction]:
    """Directions from the singular values of each layer, the strongest first."""
    energy = sum(sigma**2 for values in sigmas.values() for sigma in values)
    directions = [
        Direction(module, number, sigma, sigma**2 / energy if energy else 0.0)
        for module, values in sigmas.items()
        for number, sigma in enumerate(values, 1)
    ]
    return sorted(directions, key=lambda d: -d.sigma)


def divide(directions: Sequence[Direction], by: By) -> Parts:
    """Number the parts of a LoRA.

    directions  all of them, the strongest first, as rank_directions has them
    """
    if by == "direction":
        parts = [d.number for d in directions]
    elif by == "pair":
        parts = list(range(1, len(directions) + 1))
    else:  # a pair belongs to the band that its middle falls into
        ends = accumulate(d.share for d in directions)
        parts = [
            min(BANDS, 1 + int(BANDS * (end - d.share / 2))) for end, d in zip(ends, directions, strict=True)
        ]  # fmt: skip
    numbers: dict[str, dict[int, int]] = {}
    for part, direction in zip(parts, directions, strict=True):
        numbers.setdefault(direction.module, {})[direction.number] = part
    shares = sums((str(part), d.share) for part, d in zip(parts, directions, strict=True))
    return Parts(
        {module: tuple(part for _, part in sorted(found.items())) for module, found in numbers.items()},
        tuple(shares.get(str(k), 0.0) for k in range(1, max(parts, default=0) + 1)),
    )


def name_of(parts: Parts, number: int, by: By) -> str:
    """A part in words: "direction 1 of 16", or a pair with its layer.

    number  counts from 1
    """
    told = f"{by} {number} of {len(parts.shares)}"
    if by != "pair":
        return told
    module, place = next((m, own.index(number) + 1) for m, own in parts.numbers.items() if number in own)
    return f"{told} ({module}, direction {place})"


def choose(text: str, count: int) -> frozenset[int]:
    """Read which parts are switched on: "1-3, 5", "4-" for all from the fourth, "-1" or "-2-4" for all but those.

    count  how many parts there are; they count from 1
    Raises AtelierError for anything else, for a part that is not there, and for none.
    """
    words = [word for word in re.split(r"[\s,;]+", text.strip()) if word]
    on: set[int] = set()
    off: set[int] = set()
    for word in words:
        found = ENTRY.fullmatch(word)
        if not found:
            raise AtelierError(f"The parts have {word!r}, which is no part. Write numbers such as 1-3, 5 or -1.")
        first = int(found[2])
        last = first if found[3] is None else int(found[3] or max(first, count))
        if not 1 <= first <= last <= count:
            raise AtelierError(f"The parts have {word!r}, and the LoRA has the parts 1 to {count}. Choose from those.")
        (off if found[1] else on).update(range(first, last + 1))
    start = on if any(not word.startswith("-") for word in words) else set(range(1, count + 1))
    if not words or not start - off:
        raise AtelierError("No part is switched on. Write numbers such as 1-3, 5, or -1 for all but the first.")
    return frozenset(start - off)


def select(lora: Lora, text: str, by: By = "direction") -> Selection:
    """Divide a LoRA and switch parts on; what is off is the rest.

    Layers come in plain factors, made when they are asked for. Changes of biases and norms have no directions and stay
    in the rest.

    text  as `choose` reads it
    Raises AtelierError as rank_directions and choose do.
    """
    directions = rank_directions(lora)
    parts = divide(directions, by)
    chosen = choose(text, len(parts.shares))
    on = {module: tuple(part in chosen for part in numbers) for module, numbers in parts.numbers.items()}
    off = {module: tuple(not kept for kept in mask) for module, mask in on.items()}
    told = {"parts": text.strip(), "by": by}
    return Selection(
        replace(_masked(lora, on, told), vectors={}),
        _masked(lora, off, {"without parts": text.strip(), "by": by}),
        parts,
        chosen,
        sum(parts.shares[k - 1] for k in chosen),
    )


def _masked(lora: Lora, masks: Mapping[str, tuple[bool, ...]], recipe: Mapping[str, object]) -> Lora:
    """The LoRA of the directions that the masks keep, layer by layer."""

    def maker(module: str, mask: tuple[bool, ...]) -> Callable[[], Layer]:
        return lambda: keep(plain(lora.modules[module]), mask)

    kept = Layers({module: maker(module, mask) for module, mask in masks.items() if any(mask)})
    return Lora(kept, "kohya", inherit([lora], recipe), vectors=lora.vectors, base=lora.base)


def keep(factors: Factors, mask: Sequence[bool]) -> Factors:
    """A layer with only the directions that a mask keeps, falling as their singular values; float32, alpha equals the rank."""
    svd = svd_of(factors.up, factors.down, factors.scale)
    indexes = [k for k, kept in enumerate(mask) if kept and k < len(svd.sigma)]
    balanced = svd.balanced(len(svd.sigma))
    left, right = balanced.left(factors.up)[:, indexes], balanced.right(factors.down)[indexes]
    return Factors(left, right, float(len(indexes)), kernel=factors.kernel)
