"""Metrics in the tools people watch runs with: TensorBoard files beside the run, or wandb where it is asked for."""

import math
from typing import Any, Protocol

from ..core.errors import AtelierError
from ..core.options import flat

NAMES = ("loss", "validation", "learning_rate", "grad_norm", "seconds", "memory")


class Tracker(Protocol):
    """Takes one record a step, the same as metrics.jsonl has."""

    def add(self, record: dict[str, Any]) -> None: ...

    def close(self) -> None: ...

    @staticmethod
    def open(session) -> "Tracker | None":
        """The tracker that the run's options ask for, or None; raises AtelierError if its package is missing."""
        name = session.options.tracker
        if name == "none":
            return None
        try:
            return (TensorBoard if name == "tensorboard" else WandB)(session)
        except ImportError as error:
            raise AtelierError(f"The tracker {name} needs its package ({error}). Run: pip install {name}") from None


def scalars(record: dict[str, Any]) -> dict[str, float]:
    """A record's numbers by name, each noise level's validation as its own."""
    found = {k: record[k] for k in NAMES if record.get(k) is not None}
    found |= {f"validation/level_{i}": v for i, v in enumerate(record.get("levels") or ())}
    return {k: v for k, v in found.items() if math.isfinite(v)}


class TensorBoard:
    """Event files in the run's folder; a resumed run takes its steps back first."""

    def __init__(self, session):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(session.run.folder / "tensorboard", purge_step=session.step + 1)

    def add(self, record: dict[str, Any]) -> None:
        for name, value in scalars(record).items():
            self.writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        self.writer.close()


class WandB:
    """A wandb run of the same name, which a resumed run goes on with."""

    def __init__(self, session):
        import wandb

        self.run = wandb.init(
            project="flux-atelier", name=session.run.name, id=f"{session.run.name}-{session.options.seed}",
            resume="allow", dir=str(session.run.folder), config=flat(session.options),
        )  # fmt: skip

    def add(self, record: dict[str, Any]) -> None:
        self.run.log(scalars(record), step=record["step"])

    def close(self) -> None:
        self.run.finish()
