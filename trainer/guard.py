"""What to do when a training runs away: skip the step and count, then roll back with half the rate, then stop.

A loss or gradient norm that is not finite, or far above what the run has shown, never reaches the weights and is never
counted as zero; every skip and every roll-back is told and kept in the run's state.
"""

import math
import statistics
from collections import deque
from dataclasses import dataclass, field

LEARNING = 20  # accepted steps before a finite value can be called a runaway
WINDOW = 100
LOSS_FACTOR, NORM_FACTOR = 20.0, 50.0  # times the median; flow matching's loss differs 10-fold between noise levels


@dataclass
class Guard:
    """The run's recent losses and gradient norms, and how often it had to step in."""

    skip_limit: int
    rollbacks: int
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    norms: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    skipped: int = 0
    in_a_row: int = 0
    rolled_back: int = 0

    @property
    def rate_factor(self) -> float:
        """What the learning rate is multiplied with: half for every roll-back."""
        return 0.5**self.rolled_back

    def objection(self, loss: float, norm: float) -> str | None:
        """Why a step may not be taken, or None; a step that may is remembered."""
        for name, value, past, factor in (
            ("loss", loss, self.losses, LOSS_FACTOR),
            ("gradient's norm", norm, self.norms, NORM_FACTOR),
        ):
            if not math.isfinite(value):
                return f"the {name} is {value}"
            if len(past) >= LEARNING and value > factor * max(statistics.median(past), 1e-12):
                return f"the {name} is {value:.4g}, {value / max(statistics.median(past), 1e-12):.0f} times its median"
        self.losses.append(loss)
        self.norms.append(norm)
        self.in_a_row = 0
        return None

    def skip(self) -> bool:
        """Count a skipped step; True if there were too many in a row."""
        self.skipped += 1
        self.in_a_row += 1
        return self.in_a_row > self.skip_limit

    def roll_back(self) -> bool:
        """Count a roll-back; False if none is left."""
        if self.rolled_back >= self.rollbacks:
            return False
        self.rolled_back += 1
        self.in_a_row = 0
        self.losses.clear()
        self.norms.clear()
        return True

    def facts(self) -> dict:
        """What a saved state keeps."""
        return {
            "losses": list(self.losses), "norms": list(self.norms), "skipped": self.skipped, "in_a_row": self.in_a_row,
            "rolled_back": self.rolled_back,
        }  # fmt: skip

    def restore(self, facts: dict) -> None:
        """Take up what `facts` gave."""
        self.losses.extend(facts.get("losses", ()))
        self.norms.extend(facts.get("norms", ()))
        self.skipped, self.in_a_row = facts.get("skipped", 0), facts.get("in_a_row", 0)
        self.rolled_back = facts.get("rolled_back", 0)
