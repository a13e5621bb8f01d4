"""The training loop: a generator of steps over a session.

    session = Session.start(view, samples, cache, empty, options, run)
    for step in train(session):
        ...

To cancel is to stop iterating: the state is saved on the way out, and a session on the same run folder goes on bit
for bit, because all a step draws is a function of (seed, step).
"""

import gc
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..core.errors import AtelierError
from . import batches
from .optimizers import learning_rates
from .run import Metrics
from .session import Session
from .state import newest_state
from .step import Outcome, optimizer_step
from .trackers import Tracker
from .validation import overfitting

__all__ = ["Session", "Step", "train"]


@dataclass(frozen=True)
class Step:
    """What one optimiser step has to tell; the last five only where there is something to tell."""

    step: int
    total: int
    loss: float
    learning_rate: float
    grad_norm: float
    seconds: float
    validation: float | None = None
    levels: list[float] | None = None
    memory: int | None = None
    skipped: bool | None = None
    note: str | None = None


def train(session: Session) -> Iterator[Step]:
    """Train until the run's last step, yielding after each one.

    Raises AtelierError when the loss runs away beyond what the guard may mend, with the last good state saved.
    """
    options = session.options
    mixture = batches.Mixture.of(
        session.samples, options.data.batch_size, options.seed, options.objective.regularisation_share
    )
    rates = learning_rates(options)
    log = Log(session)
    try:
        first = True
        log.catch_up()
        while session.step < options.steps:
            began = time.perf_counter()
            rate = rates(session.step) * session.guard.rate_factor
            outcome = _fitting_step(session, mixture, rate)
            if first:
                session.report_peak()
            first = False
            if outcome.objection and not session.guard.in_a_row:
                session.save()  # the last good state, to roll back to
            session.step += 1
            session.torn = False
            back = bool(outcome.objection) and _stepped_back(session, outcome)
            if back:
                log.reopen()
            step = log.step(outcome, rate, began, written=not back)
            if session.step % options.save_every == 0 and not outcome.objection:
                session.save()
            yield step
    finally:
        log.close()
        session.save()


def _fitting_step(session: Session, mixture: batches.Mixture, rate: float) -> Outcome:
    """One step; where memory does not suffice for it, once again with settings that need less.

    Raises AtelierError if none fits, or memory ran out where the weights were moving already.
    """
    while True:
        try:
            return optimizer_step(session, mixture, rate)
        except torch.OutOfMemoryError as error:
            needed = str(error).split(".")[0]  # the exception holds every tensor of the failed step alive
        except RuntimeError as error:
            if not session.options.compile or not type(error).__module__.startswith("torch._"):
                raise
            cause = str(error).strip().splitlines()[0]
            raise AtelierError(f"The blocks could not be compiled ({cause}). Set compile to off.") from error
        session.optimizer.zero_grad(set_to_none=True)
        _give_back(session.device)
        if session.torn or not session.step_down():
            raise AtelierError(
                f"The device has too little memory for this training ({needed}). "
                "Lower the resolution, the batch size or the rank, or load the model in fp8."
            )
        session.note(f"out of memory, so from now on {session.setting.describe()}")


def _give_back(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _stepped_back(session: Session, outcome: Outcome) -> bool:
    """Tell of a skipped step; after too many roll back, with half the rate. True if the run stands at another step.

    Raises AtelierError if it may not roll back once more.
    """
    if "float16" in (outcome.objection or ""):
        session.note(f"{outcome.objection}, the step is skipped")
        return False
    too_many = session.guard.skip()
    if not too_many:
        session.note(f"{outcome.objection}, the step is skipped")
        return False
    at, guard = session.step, session.guard
    session.step -= 1  # the step that just failed is not behind us
    if not guard.roll_back():
        raise AtelierError(
            f"The training ran away: {outcome.objection} at step {at}, after {guard.skipped} skipped steps "
            f"and {guard.rolled_back} roll-backs. Lower the learning rate, or use float32; the last good state is kept."
        )
    session.world.wait()
    saved = newest_state(session.run.checkpoints) or session.first_state
    assert saved is not None  # a run starts with its first state in hand
    skipped, rolled_back = guard.skipped, guard.rolled_back
    session.restore(saved)
    session.saved_step = -1 if saved is session.first_state else saved.step
    guard.losses.clear()
    guard.norms.clear()
    guard.skipped, guard.rolled_back, guard.in_a_row = skipped, rolled_back, 0
    session.note(
        f"{outcome.objection} at step {at}, so the run is back at step {session.step} with "
        f"{guard.rate_factor:g} of the learning rate"
    )
    session.save(again=True)
    return True


class Log:
    """What is written down of every step: metrics.jsonl, a tracker, the validation losses that came before."""

    def __init__(self, session: Session):
        self.session = session
        self.metrics = Metrics(session.run, session.step) if session.world.first else None
        self.tracker = Tracker.open(session) if session.world.first else None
        self.warned = any("by heart" in n["note"] for n in session.run.notes())

    def reopen(self) -> None:
        """Cut off what lies beyond the step that the run rolled back to."""
        if self.metrics:
            self.metrics = Metrics(self.session.run, self.session.step)

    def step(self, outcome: Outcome, rate: float, began: float, written: bool) -> Step:
        """Measure what is due after a step, and write all of it down where it is to be."""
        session = self.session
        validation = levels = None
        try:
            if self._due() and written:
                validation, levels = session.judge()
        finally:  # a validation that is cancelled is measured when the run goes on
            memory = None
            if session.device.type == "cuda":
                memory = torch.cuda.max_memory_allocated(session.device)
            notes, session.notes = session.notes, []
            step = Step(
                session.step, session.options.steps, outcome.loss, rate, outcome.grad_norm,
                time.perf_counter() - began, validation, levels, memory, True if outcome.objection else None,
                "; ".join(notes) or None,
            )  # fmt: skip
            if written:
                self._write(step)
        if validation is not None:
            self._watch()
        return step

    def _due(self) -> bool:
        step, every = self.session.step, self.session.options.validate_every
        return bool(self.session.validation and every and (step % every == 0 or step == self.session.options.steps))

    def _write(self, step: Step) -> None:
        record = {k: v for k, v in vars(step).items() if v is not None and k not in ("total", "note")}
        if self.metrics:
            self.metrics.add(record)
        if self.tracker:
            self.tracker.add(record)

    def catch_up(self) -> None:
        """Measure what a cancel kept from being measured at the step that the run goes on from."""
        last = (self.session.run.metrics() or [{}])[-1]
        if self.metrics and self._due() and last.get("step") == self.session.step and "validation" not in last:
            validation, levels = self.session.judge()
            self.metrics.amend({"validation": validation, "levels": levels})
            self.session.save(again=True)  # with the best so far
            self._watch()

    def _watch(self) -> None:
        """Tell once when the run learns its pictures by heart."""
        if self.warned or not self.session.world.first:
            return
        records = self.session.run.metrics()
        measured = [(r["step"], r["validation"]) for r in records if "validation" in r]
        text = overfitting(measured, [r["loss"] for r in records])
        if text:
            self.warned = True
            self.session.note(text)

    def close(self) -> None:
        if self.tracker:
            self.tracker.close()
