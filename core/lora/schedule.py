"""Strength schedules: how much of a LoRA counts at which noise level.

Points stand between commas or on lines of their own, `noise level: strength`, such as `1: 0, 0.7: 1, 0.2: 1, 0: 0.5`.
A noise level is sigma, which falls from 1 (noise alone) to 0 (the picture); with a per cent sign it is a share of the
sampling instead, `0%: 0, 30%: 1`, which the model's shift turns into a sigma. Before the first point and after the
last their strengths hold.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

from ..errors import AtelierError

Interpolation = Literal["linear", "smooth", "step"]
INTERPOLATIONS: tuple[Interpolation, ...] = get_args(Interpolation)
NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
POINT = re.compile(rf"({NUMBER})\s*(%?)\s*:\s*({NUMBER})")


@dataclass(frozen=True)
class Schedule:
    """A strength for every noise level.

    points         (sigma or per cent, strength), in the order of sampling: sigma falls, per cent rises
    interpolation  between two points: a straight line in sigma, a cosine, or the earlier point's strength
    percent        whether the first of each point is a share of the sampling, 0..100
    """

    points: tuple[tuple[float, float], ...]
    interpolation: Interpolation = "linear"
    percent: bool = False

    def in_sigmas(self, sigma_of: Callable[[float], float]) -> "Schedule":
        """The same by sigma; sigma_of gives it for a share of the sampling in 0..1."""
        if not self.percent:
            return self
        points = tuple((sigma_of(place / 100), strength) for place, strength in self.points)
        return replace(self, points=points, percent=False)

    def at(self, sigma: float) -> float:
        """The strength at a noise level."""
        before, *rest = self.points
        if sigma >= before[0]:
            return before[1]
        for after in rest:
            if sigma > after[0]:
                share = (before[0] - sigma) / (before[0] - after[0])
                return before[1] + (after[1] - before[1]) * self._eased(share)
            before = after
        return before[1]

    def _eased(self, share: float) -> float:
        return {"linear": share, "smooth": (1 - math.cos(math.pi * share)) / 2, "step": 0.0}[self.interpolation]


def parse_schedule(text: str, interpolation: Interpolation = "linear") -> Schedule:
    """Read a schedule in the words this module begins with.

    text  one number alone is that strength at every noise level
    Raises AtelierError for what is no point, sigmas and per cents mixed, or a place that comes twice.
    """
    words = [word.strip() for line in text.splitlines() for word in re.split("[,;]", line.partition("#")[0])]
    words = [word for word in words if word]
    if len(words) == 1 and re.fullmatch(NUMBER, words[0]):
        return Schedule(((1.0, float(words[0])),), interpolation)
    found = [(word, POINT.fullmatch(word)) for word in words]
    odd = next((word for word, point in found if point is None), "" if found else "nothing")
    if odd:
        raise AtelierError(f"The schedule has {odd!r}, which is no point. Write sigma: strength, such as 1: 0, 0.5: 1.")
    points = [(float(p[1]), float(p[3])) for _, p in found if p]
    percent = {bool(p[2]) for _, p in found if p}
    if len(percent) > 1:
        raise AtelierError("The schedule has sigmas and per cents. Write all of its points the one way or the other.")
    in_percent = percent.pop()
    _refuse_places([place for place, _ in points], 100 if in_percent else math.inf)
    points.sort(key=lambda p: p[0], reverse=not in_percent)
    return Schedule(tuple(points), interpolation, in_percent)


def _refuse_places(places: list[float], most: float) -> None:
    outside = next((p for p in places if not 0 <= p <= most), None)
    if outside is not None:
        allowed = "0% to 100%" if most == 100 else "0 and above"
        raise AtelierError(f"The schedule has a point at {outside:g}. Write noise levels of {allowed}.")
    twice = next((p for p in places if places.count(p) > 1), None)
    if twice is not None:
        raise AtelierError(f"The schedule has two points at {twice:g}. Give each noise level one strength.")
