"""A training step beside ComfyUI core's TrainLoraNode and beside diffusers + peft, on one model and the same data.

A random bf16 Flux.1 of 145 M parameters (see flux_mid), rank 16, batch 1; each contender (see contender) in a process
of its own with one thread. They take turns step by step, so that all see the same noise, and what counts is the median
of their CPU time. Memory is the peak beside the loaded model; loss is the velocity error on fixed pictures, noise and
noise levels after the same number of steps. Where there is no ComfyUI, core's rows are left out and ours trains the
pack's own tree.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from .__main__ import ROOT, Figure

STEPS, WARM_UP = 24, 4


@dataclass
class Contender:
    """A process that trains one step when told, and what it has told."""

    name: str
    process: subprocess.Popen
    seconds: list[float] = field(default_factory=list)
    apart: list[float] = field(default_factory=list)
    facts: dict = field(default_factory=dict)

    @classmethod
    def start(cls, name: str, folder: Path) -> "Contender":
        command = [sys.executable, "-m", "benchmarks.contender", name, str(folder), str(STEPS)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        with open(folder / f"{name}.log", "w", encoding="utf-8") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT, env=environment
            )
        made = cls(name, process)
        made.hear(folder)
        return made

    def step(self, folder: Path) -> None:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        told = self.hear(folder)
        self.seconds.append(told["seconds"])
        self.apart.append(told["apart"])

    def hear(self, folder: Path) -> dict:
        line = self.process.stdout.readline()
        if not line:
            log = (folder / f"{self.name}.log").read_text(encoding="utf-8")
            sys.exit(f"The contender {self.name} ended without a word:\n{log[-3000:]}")
        return json.loads(line)

    def finish(self, folder: Path) -> None:
        self.facts = self.hear(folder)
        self.process.wait()

    @property
    def step_seconds(self) -> float:
        return statistics.median(self.seconds[WARM_UP:])

    @property
    def cached_seconds(self) -> float:
        """Without what is counted apart: the encoding of the caption."""
        return statistics.median(a - b for a, b in zip(self.seconds[WARM_UP:], self.apart[WARM_UP:], strict=True))


def run() -> list[Figure]:
    from . import contender, flux_mid

    names = list(contender.NAMES)
    if contender.comfyui() is None:
        print(
            "There is no ComfyUI (COMFYUI_PATH, ~/ComfyUI): the rows beside core are left out, and with them its claim."
        )
        names = [n for n in names if not n.startswith("core")]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        flux_mid.write(folder)
        racing = {}
        try:
            for name in names:
                racing[name] = Contender.start(name, folder)
            for _ in range(STEPS):
                for one in racing.values():
                    one.step(folder)
            for one in racing.values():
                one.finish(folder)
        finally:
            for one in racing.values():
                one.process.kill()
                one.process.wait()
    tell(racing)
    figures = beside_plain(racing)
    return (beside_core(racing) if "core" in racing else []) + figures + [own_arithmetic(racing["ours-kept"])]


def tell(racing: dict[str, Contender]) -> None:
    """Everything measured, one contender a line."""
    print(f"{'contender':<14}{'s/step':>8}{'cached':>8}{'peak MB':>9}{'GFLOP':>8}{'loss':>16}{'trained':>12}")
    for c in racing.values():
        loss = f"{c.facts['before']:.4f} {c.facts['loss']:.4f}"
        print(
            f"{c.name:<14}{c.step_seconds:>8.3f}{c.cached_seconds:>8.3f}{c.facts['peak']:>9.0f}"
            f"{sum(c.facts['flops']):>8.1f}{loss:>16}{c.facts['trained']:>12,}"
        )


def beside_core(racing: dict[str, Contender]) -> list[Figure]:
    kept, ours, core, bypass = (racing[n] for n in ("ours-kept", "ours", "core", "core-bypass"))
    return [
        Figure("step, core as shipped", kept.step_seconds, core.step_seconds, "s", least=2.5),
        Figure("step, core's bypass mode", kept.step_seconds, bypass.step_seconds, "s", least=1.5),
        Figure("peak MB, core as shipped", kept.facts["peak"], core.facts["peak"], "MB", least=2),
        Figure("peak MB, core's bypass mode", kept.facts["peak"], bypass.facts["peak"], "MB"),
        Figure("step, ours checkpointed, core as shipped", ours.step_seconds, core.step_seconds, "s"),
        Figure("step, ours checkpointed, core's bypass", ours.step_seconds, bypass.step_seconds, "s"),
        Figure("peak MB, ours checkpointed, core", ours.facts["peak"], core.facts["peak"], "MB", least=2),
        Figure("loss after the same steps, core", kept.facts["loss"], core.facts["loss"], "", least=0.99),
        Figure("loss after the same steps, bypass", kept.facts["loss"], bypass.facts["loss"], "", least=0.99),
        Figure("GFLOP a step, core as shipped", sum(kept.facts["flops"]), sum(core.facts["flops"]), "GFLOP", least=2),
        Figure("GFLOP a step, core's bypass", sum(kept.facts["flops"]), sum(bypass.facts["flops"]), "GFLOP"),
    ]


def beside_plain(racing: dict[str, Contender]) -> list[Figure]:
    kept, ours, plain_kept, plain = (racing[n] for n in ("ours-kept", "ours", "plain-kept", "plain"))
    short_kept, short = racing["short-kept"], racing["short"]
    return [
        Figure("step, diffusers + peft", kept.step_seconds, plain_kept.step_seconds, "s", least=1.3),
        Figure("step, both checkpointed, diffusers + peft", ours.step_seconds, plain.step_seconds, "s", least=1.3),
        Figure("step, diffusers with equal text", kept.step_seconds, short_kept.step_seconds, "s"),
        Figure("step, both checkpointed, equal text", ours.step_seconds, short.step_seconds, "s"),
        Figure("step, diffusers with equal cached text", kept.step_seconds, short_kept.cached_seconds, "s"),
        Figure("step, both checkpointed, equal cached text", ours.step_seconds, short.cached_seconds, "s"),
        Figure("peak MB, diffusers + peft", kept.facts["peak"], plain_kept.facts["peak"], "MB"),
        Figure("MB kept for backward, diffusers + peft", kept.facts["kept"], short_kept.facts["kept"], "MB"),
        Figure("MB kept, both checkpointed", ours.facts["kept"], short.facts["kept"], "MB"),
        Figure("loss after the same steps, diffusers", kept.facts["loss"], plain_kept.facts["loss"], "", least=0.99),
    ]


def own_arithmetic(kept: Contender) -> Figure:
    """A frozen base needs half of a full backward pass; anything above 1.1 means that base gradients are computed."""
    forward, backward = kept.facts["flops"]
    return Figure("GFLOP backward, beside forward", backward / forward, 2.0, "", most=1.1)
