"""Traps for a training: the places where one may be stopped, and the ways to stop it there.

A `Trap` counts how often a run comes by a place (a forward pass, a state's file, a line of metrics ...) and strikes at
one of these times. A kill is a real SIGKILL: one child imports everything once and forks a process for each. Everything
else is raised in the process itself. Run as a script this file is that child.
"""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tiny import SHAPE, tiny_tree
from training import options, samples_in

from flux_atelier.core import files
from flux_atelier.core.lora.formats import write_lora
from flux_atelier.trainer import adapter
from flux_atelier.trainer.cache import Cache
from flux_atelier.trainer.export import to_lora
from flux_atelier.trainer.flux.view import TrainView, cast_plain
from flux_atelier.trainer.loop import Session, train
from flux_atelier.trainer.optimizers import learning_rates
from flux_atelier.trainer.preview import draw_sample
from flux_atelier.trainer.run import Metrics, Run, open_run
from flux_atelier.trainer.state import state_folders
from flux_atelier.trainer.validation import Validation

HERE = Path(__file__).parent
SMALLER = replace(SHAPE, hidden=128, mlp=256, double=1, single=1)
COMMON = dict(
    accumulation=2, caption_dropout=0.3, prior_weight=0.5, validate_every=2, validation_pictures=1, warmup=3,
    skip_limit=1,
)  # fmt: skip
RECIPES = {
    "every": dict(save_every=1, ema_decay=0.9),
    "third": dict(save_every=3, ema_decay=0.9, result="best"),
    "free": dict(save_every=3, optimizer_type="schedule_free", schedule="constant", learning_rate=1e-2),
    "skip": dict(save_every=1, ema_decay=0.9),  # its step 4 is not a number
    "back": dict(save_every=4, ema_decay=0.9, keep_states=1),  # steps 5 and 6 are not, so it rolls back
}
BROKEN = {"skip": (4,), "back": (5, 6)}


class Stop(Exception):
    """What a host raises when the person cancels."""


@dataclass(frozen=True)
class Moment:
    """How and where a run is stopped, and at which share of the times it comes by there; `number` names the time."""

    how: str
    place: str
    recipe: str
    share: float = 0.0
    number: int = 0

    def __str__(self) -> str:
        return f"{self.how} {self.place} {self.recipe}"


def drawn() -> list[Moment]:
    rng = random.Random(20)
    named = """
        kill forward every; kill backward third; kill prior skip; kill update free; kill validation third;
        kill state every; kill rename third; kill removal every; kill metrics skip; kill best third; kill lora every;
        cancel yield every; cancel yield free; cancel forward third; cancel validation third; cancel sample free;
        full state third; fill state every; oom forward third; oom backward skip
    """
    # Memory that runs out at the first step is another matter, see test_guard.py.
    return [
        Moment(*words.split(), share=rng.uniform(0.3 if "oom" in words else 0, 1))
        for words in named.split(";")
    ]  # fmt: skip


MOMENTS = drawn()


class Trap:
    """Counts how often a run comes by its places, and strikes at one of these times; a full disk stays full."""

    def __init__(self, moment: Moment | None = None, strike=None):
        self.moment, self.strike = moment or Moment("", "", ""), strike
        self.counts, self.inside = Counter(), ["forward"]

    def sprung(self, place: str) -> bool:
        self.counts[place] += 1
        if place != self.moment.place or not self.moment.number:
            return False
        return self.counts[place] == self.moment.number or (
            self.moment.how == "full" and self.counts[place] > self.moment.number
        )

    def pass_by(self, place: str) -> None:
        if self.sprung(place):
            self.strike()

    @contextmanager
    def during(self, place: str):
        """What the session's check is called in, for the length of a block."""
        self.inside.append(place)
        try:
            yield
        finally:
            self.inside.pop()


def lay(trap: Trap, session: Session, patch) -> None:
    """Set a trap at all places of a session; `patch` is setattr, or one that is undone."""
    _in_passes(trap, session, patch)
    _in_files(trap, session.run, patch)
    _in_folders(trap, patch)


def _in_passes(trap: Trap, session: Session, patch) -> None:
    loss, disabled = Validation.loss, adapter.disabled

    def judged(validation, on):
        with trap.during("validation"):
            return loss(validation, on)

    @contextmanager
    def prior(tree):
        with disabled(tree), trap.during("prior"):
            yield

    patch(session, "check", lambda: trap.pass_by(trap.inside[-1]))
    patch(Validation, "loss", judged)
    patch(adapter, "disabled", prior)
    session.parameters[5].register_hook(lambda grad: trap.pass_by("backward"))
    session.optimizer.register_step_post_hook(lambda *_: trap.pass_by("update"))


def _in_files(trap: Trap, run: Run, patch) -> None:
    """In the middle of a file: it is cut in half, then the trap strikes. A disk is filled before a file is written."""
    save, add = files.save_file, Metrics.add

    def half_saved(tensors, part, metadata=None):
        place = "state" if part.parent.name.startswith(".step-") else "best" if "best" in part.name else "lora"
        sprung = trap.sprung(place)
        if sprung and trap.moment.how == "fill":
            trap.strike()
        save(tensors, part, metadata=metadata)
        if sprung and trap.moment.how != "fill":
            os.truncate(part, part.stat().st_size // 2)
            trap.strike()

    def half_added(metrics, record):
        if trap.sprung("metrics"):
            with open(run.metrics_file, "a") as opened:
                opened.write(json.dumps(record)[:40])
            trap.strike()
        add(metrics, record)

    patch(files, "save_file", half_saved)
    patch(Metrics, "add", half_added)


def _in_folders(trap: Trap, patch) -> None:
    rename, rmtree = Path.rename, shutil.rmtree

    def renamed(path, target):
        trap.pass_by("rename")
        done = rename(path, target)
        trap.pass_by("aside" if str(target).endswith(".old") else "renamed")
        return done

    def removed(path, **how):
        first = path / "adapter.safetensors"
        if "step-" in path.name and first.is_file() and trap.sprung("removal"):
            first.unlink()
            trap.strike()
        rmtree(path, **how)

    patch(Path, "rename", renamed)
    patch(shutil, "rmtree", removed)


def session_of(folder: Path, recipe: str) -> Session:
    chosen = options(**COMMON, **RECIPES[recipe])
    cache = Cache(folder / "cache")
    plain = samples_in(cache)
    samples = [replace(s, priors=plain[(i + 1) % 5].texts) for i, s in enumerate(plain)]
    view = TrainView(tiny_tree(shape=SMALLER), SMALLER, cast_plain, torch.device("cpu"))
    session = Session.start(view, samples, cache, "empty", chosen, open_run(folder / "run", "run", chosen, "d", "m"))
    bad = BROKEN.get(recipe, ())
    session.parameters[0].register_hook(
        lambda grad: grad * float("nan") if session.step + 1 in bad and not session.guard.rolled_back else grad
    )
    return session


def go(session: Session, trap: Trap) -> None:
    """Train, draw a sample now and then, and write the LoRA whatever happens, as the command and the node do."""
    try:
        with closing(train(session)) as steps:
            for step in steps:
                if step.step % 3 == 0:
                    with trap.during("sample"):
                        draw_sample(session, "text0", steps=2)
                trap.pass_by("yield")
    finally:
        if session.step:
            write_lora(session.run.lora_file, to_lora(session))


def strike(moment: Moment, session: Session, folder: Path) -> None:
    """Write down the step and the newest state at this moment, and stop the run."""
    newest = [int(p.name[5:]) for p in state_folders(session.run.checkpoints)]
    if not (folder / "struck").exists():
        (folder / "struck").write_text(f"{session.step} {max(newest, default=0)}")
    if moment.how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if moment.how == "cancel":
        raise Stop
    if moment.how == "oom":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
    if moment.how == "full" or not os.path.ismount(folder):
        raise OSError(errno.ENOSPC, "No space left on device")
    with open(folder / "filler", "wb") as filler, suppress(OSError):
        while True:
            filler.write(b"\0" * 4096)
            filler.flush()
    os.truncate(folder / "filler", (folder / "filler").stat().st_size - 16384)


def run_into(moment: Moment, folder: Path, patch) -> None:
    session = session_of(folder, moment.recipe)
    trap = Trap(moment, lambda: strike(moment, session, folder))
    lay(trap, session, patch)
    go(session, trap)


class Children:
    """Processes that are killed, forked by one that has imported everything."""

    def __init__(self):
        code = (
            f"import sys, runpy; sys.path[:0] = {[str(HERE), str(HERE.parent)]!r}; import conftest; "
            f"runpy.run_path({__file__!r}, run_name='__main__')"
        )
        environment = os.environ | {"COMFYUI_PATH": os.devnull, "OMP_NUM_THREADS": "1"}
        self.parent = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, moment: Moment, folder: Path) -> int:
        """Run into a moment in a child; returns its exit code, negative for the signal it died of."""
        print(json.dumps([vars(moment), str(folder)]), file=self.parent.stdin, flush=True)
        return int(self.parent.stdout.readline())


def serve() -> None:
    torch.set_num_threads(1)
    learning_rates(options())  # imports what every child would import
    for line in sys.stdin:
        moment, folder = json.loads(line)
        child = os.fork()
        if not child:
            run_into(Moment(**moment), Path(folder), setattr)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


@contextmanager
def room(folder: Path, moment: Moment):
    """A folder for a run: a disk of its own where it is to be filled and mounting is permitted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    mounted = (
        moment.how == "fill" and shutil.which("mount") and not subprocess.run(mount, capture_output=True).returncode
    )
    try:
        yield folder
    finally:
        if mounted:
            shutil.copytree(folder, folder.with_suffix(".kept"))
            subprocess.run(["umount", "-l", str(folder)], check=True)


@dataclass(frozen=True)
class Ending:
    """What a run came to: its folder, how its traps were passed, and where it was stopped and taken up again."""

    folder: Path
    counts: Counter
    stopped_at: int = 0
    newest: int = 0
    resumed_at: int = 0
    error: BaseException | None = None

    @property
    def run(self) -> Run:
        return Run(self.folder / "run", "run")


if __name__ == "__main__":
    serve()
