"""A run in the making: the tree with its adapter, the optimiser, what it trains on, and how it goes on after a stop."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from ..core.errors import AtelierError
from ..core.files import append_line, read_tensors, write_tensors
from ..core.flux.layout import FluxShape
from ..core.lora.factors import Factors
from ..core.lora.kinds import Layer, plain
from ..core.lora.record import Lora
from . import adapter, optimizers, targets
from .averages import Average
from .cache import Cache, Sample
from .config import TrainOptions
from .flux.forward import plan_checkpoints
from .flux.tree import FluxTree
from .flux.view import TrainView
from .guard import Guard
from .memory import Setting, cheaper, computes_in_half, fixed_setting
from .run import Run
from .state import State, newest_state, save_state
from .validation import Validation
from .world import ALONE, World

log = logging.getLogger("flux_atelier")


def _go_on() -> None:
    """Nobody cancels."""


class Teacher(Protocol):
    """What the model is to do where that is not what the pictures say; see distil.py."""

    def begin(self, session: "Session") -> None:
        """Look at a session before its first step, or as it goes on."""

    def velocity(self, session: "Session", *given: Tensor | None) -> Tensor:
        """The velocity to learn, for what Session.velocity is given."""
        ...


@dataclass(frozen=True)
class Extras:
    """What a run may have besides its pictures: a LoRA to go on from, one to lie under it, a setting, other processes,
    and a teacher."""

    begin: Mapping[str, Layer] | None = None
    assistant: Mapping[str, Factors] | None = None
    setting: Setting | None = None
    world: World = ALONE
    teacher: Teacher | None = None

    @classmethod
    def of(cls, begin: Lora | None, assistant: Lora | None, setting: Setting, world: World = ALONE) -> "Extras":
        """The extras of a run from LoRAs as read; raises AtelierError for an assistant that is a DoRA."""
        under = {name: plain(layer) for name, layer in assistant.modules.items()} if assistant else None
        return cls(begin.modules if begin else None, under, setting, world)


@dataclass
class Session:
    """Everything a step reads and writes."""

    tree: TrainView
    parameters: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    samples: list[Sample]
    cache: Cache
    options: TrainOptions
    run: Run
    device: torch.device
    empty_text: str
    setting: Setting
    guard: Guard
    scaler: torch.amp.GradScaler
    world: World = ALONE
    assistant: Mapping[str, Factors] = field(default_factory=dict)
    teacher: Teacher | None = None
    average: Average | None = None
    validation: Validation | None = None
    step: int = 0
    saved_step: int = -1
    torn: bool = False  # the weights may be a step ahead of its number
    best: tuple[float, int] | None = None  # lowest validation loss and its step
    first_state: State | None = None  # where to roll back to before anything is saved
    notes: list[str] = field(default_factory=list)  # told since the last step
    checkpointed: frozenset[str] = frozenset()
    bytes_before: int = 0  # on the device before the adapter came: the model's
    check: Callable[[], None] = _go_on  # raises when the person cancels; asked before every forward pass

    @classmethod
    def start(
        cls, tree: TrainView, samples: list[Sample], cache: Cache, empty_text: str, options: TrainOptions, run: Run,
        extras: Extras = Extras(),
    ) -> "Session":  # fmt: skip
        """Inject the adapter, make the optimiser, and take up the run's newest state where there is one.

        tree        a TrainView on the device of the training
        samples     encoded; empty_text is the cache's key of the empty caption
        Raises AtelierError for options that do not fit the samples, the model or the machine.
        """
        refuse_misfits(samples, options)
        chosen = targets.choose(tree, options.adapter)
        before = device_bytes(tree.img_in.weight.device)
        parameters = adapter.inject(tree, options.adapter, options.seed)
        tree.assist(extras.assistant or {})
        optimizer = optimizers.make_optimizer(adapter.groups(tree, chosen), options.optimizer)
        training = [s for s in samples if s.split in ("train", "regularisation")]
        if all(s.split == "regularisation" for s in training):
            raise AtelierError(
                f"None of the {len(samples)} pictures is left to train on: all are set aside. Lower validation, or add pictures."
            )
        device = parameters[0].device
        session = cls(
            tree, parameters, optimizer, training, cache, options, run, device, empty_text,
            setting=extras.setting or fixed_setting(options), guard=Guard(options.skip_limit, options.rollbacks),
            scaler=torch.amp.GradScaler(device.type, init_scale=2.0**12, enabled=options.precision == "float16"),
            bytes_before=before, world=extras.world, assistant=extras.assistant or {}, average=Average(parameters, options.ema_decay) if options.ema_decay else None,
            teacher=extras.teacher,
        )  # fmt: skip
        session.checkpointed = plan_checkpoints(tree.shape.double, tree.shape.single, session.setting.share)
        extras.world.share(options.data.accumulation)
        if options.validate_every:
            session.validation = Validation.of(samples, options)
        if options.compile:
            tree.compile_blocks()
        session._resume(extras.begin)
        if session.teacher:
            session.teacher.begin(session)
        return session

    def _resume(self, begin: Mapping[str, Layer] | None) -> None:
        saved = newest_state(self.run.checkpoints)
        if saved is None:
            if begin:
                adapter.start_from(self.tree, begin)
                self.average = Average(self.parameters, self.average.decay) if self.average else None
            self.first_state = State(
                0, {k: v.clone() for k, v in adapter.state(self.tree).items()}, *optimizers.pack(self.optimizer)[:1],
                facts={"optimizer": optimizers.pack(self.optimizer)[1]},
            )  # fmt: skip
            return
        self.restore(saved)
        log.info("going on from step %d of %s", saved.step, self.run.folder)

    def restore(self, saved: State) -> None:
        """Take up a saved state."""
        adapter.load_state(self.tree, saved.adapter)
        optimizers.unpack(self.optimizer, saved.optimizer, saved.facts["optimizer"])
        if self.average:
            if saved.average:
                self.average.values = [saved.average[k].to(self.device) for k in adapter.state(self.tree)]
            else:
                self.average = Average(self.parameters, self.average.decay)
            self.average.steps = saved.facts.get("average_steps", 0)
        self.guard.restore(saved.facts.get("guard", {}))
        if self.scaler.is_enabled() and saved.facts.get("scaler"):
            self.scaler.load_state_dict(saved.facts["scaler"])
        self.best = self.run.best() or (tuple(saved.facts["best"]) if saved.facts.get("best") else None)
        self.step = self.saved_step = saved.step

    def save(self, again: bool = False) -> None:
        """Write the state, unless there is nothing yet or this very step is saved already.

        again  also where this step is saved, because more than the step has changed
        """
        if not self.world.first or not self.step or (self.step == self.saved_step and not again):
            return
        if self.torn or self.guard.in_a_row:  # the state before is the one to go on from, or to roll back to
            return
        names = list(adapter.state(self.tree))
        tensors, rest = optimizers.pack(self.optimizer)
        facts = {
            "optimizer": rest, "guard": self.guard.facts(), "best": self.best,
            "scales": adapter.scales(self.tree), "average_steps": self.average.steps if self.average else 0, "scaler": self.scaler.state_dict(),
        }  # fmt: skip
        average = dict(zip(names, self.average.values, strict=True)) if self.average else {}
        state = State(self.step, adapter.state(self.tree), tensors, average, facts)
        save_state(self.run.checkpoints, state, self.options.keep_states)
        self.saved_step = self.step

    def velocity(
        self, latent: Tensor, sigma: Tensor, text: Tensor, pooled: Tensor, reference: Tensor | None = None
    ) -> Tensor:
        """The model's prediction as it trains: with the adapter, the run's guidance and precision."""
        self.check()
        guidance = None
        if self.tree.shape.guidance:
            guidance = torch.full((len(latent),), self.options.objective.guidance, device=self.device)
        kept = nullcontext()
        if self.setting.offload and torch.is_grad_enabled():
            kept = torch.autograd.graph.save_on_cpu(pin_memory=self.device.type == "cuda")
        with self.autocast(), kept:
            return self.tree(latent, sigma, text, pooled, guidance, self.checkpointed, reference)

    def wanted(self, told: Tensor, *given: Tensor | None) -> Tensor:
        """The velocity to learn: what the pictures tell, or the teacher's for what `velocity` is given."""
        return told if self.teacher is None else self.teacher.velocity(self, *given)

    def autocast(self):
        """Computation in half precision where the options or the device ask for it."""
        if not computes_in_half(self.options, self.device):
            return nullcontext()
        half = torch.float16 if self.options.precision == "float16" else torch.bfloat16
        return torch.autocast(self.device.type, half)

    @contextmanager
    def standing(self) -> Iterator[None]:
        """The weights that stand for the run at this moment: the moving average, or a schedule-free optimiser's."""
        with ExitStack() as stack:
            if self.average and self.average.steps:
                stack.enter_context(self.average.in_place_of(self.parameters))
            else:
                stack.enter_context(optimizers.averaged(self.optimizer, self.parameters))
            yield

    @contextmanager
    def result(self) -> Iterator[int]:
        """The weights that become the LoRA, for the length of a block; gives the step they are of."""
        if self.options.result == "best" and self.best and self.run.best_file.is_file():
            before = {k: v.clone() for k, v in adapter.state(self.tree).items()}
            adapter.load_state(self.tree, read_tensors(self.run.best_file)[0])
            try:
                yield self.best[1]
            finally:
                adapter.load_state(self.tree, before)
            return
        with self.standing():
            yield self.step

    def judge(self) -> tuple[float, list[float]]:
        """Measure the validation loss of the standing weights, and keep them where they are the best so far."""
        assert self.validation is not None
        with self.standing():
            loss, levels = self.validation.loss(self)
            if self.best is None or loss < self.best[0]:
                self.best = (loss, self.step)
                if self.world.first:
                    write_tensors(
                        self.run.best_file, adapter.state(self.tree), {"step": str(self.step), "loss": repr(loss)}
                    )
        return loss, levels

    def note(self, text: str) -> None:
        """Tell something that the person should know, in the log, in the run's folder and with the next step."""
        log.warning("step %d: %s", self.step, text)
        self.notes.append(text)
        if self.world.first:
            self.run.add_note(self.step, text)

    def report_peak(self) -> None:
        """Say what the device really needed beside the model, beside what was expected; nothing on the CPU."""
        if self.device.type != "cuda" or not self.world.first:
            return
        peak = (torch.cuda.max_memory_allocated(self.device) - self.bytes_before) / 2**30
        expected = self.setting.device_bytes / 2**30
        text = f"measured: {peak:.2f} GiB beside the model, expected {expected:.2f}"
        log.info(text)
        append_line(self.run.plan_file, text)

    def step_down(self) -> bool:
        """Take the next setting that needs less memory; False if there is none."""
        lower = cheaper(self.setting)
        if lower is None:
            return False
        self.setting = lower
        self.checkpointed = plan_checkpoints(self.tree.shape.double, self.tree.shape.single, lower.share)
        return True


def check_options(options: TrainOptions, shape: FluxShape) -> None:
    """Look at everything in the options that can be wrong before pictures are encoded or a model is opened.

    Raises AtelierError for what does not fit.
    """
    with torch.device("meta"):
        chosen = targets.choose(FluxTree(shape), options.adapter)
    optimizers.check(options.optimizer, len({t.rate for t in chosen}))
    optimizers.learning_rates(options)


def device_bytes(device: torch.device) -> int:
    """Bytes that torch holds on a CUDA device, its peak counted anew from here; 0 on others."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def refuse_misfits(samples: list[Sample], options: TrainOptions) -> None:
    """Raise AtelierError for options that do nothing on these samples."""
    kinds = {s.split for s in samples}
    if "regularisation" not in kinds and options.objective.regularisation_share != 0.5:
        raise AtelierError(
            f"regularisation_share is {options.objective.regularisation_share}, but there is no regularisation set. "
            "Give one, or set it back to 0.5."
        )
    if options.data.class_word and not options.objective.prior_weight and "regularisation" not in kinds:
        raise AtelierError(
            f"class_word is {options.data.class_word!r}, but nothing uses it. Set prior_weight above 0, or leave it empty."
        )
    if options.data.mask != "none" and not any(s.mask for s in samples):
        where = "name.mask.png files beside the pictures" if options.data.mask == "file" else "transparent pictures"
        raise AtelierError(f"mask is {options.data.mask}, but there are no {where}. Add them, or set mask to none.")
    if any(s.control for s in samples) and not all(s.control for s in samples if s.split != "regularisation"):
        missing = next(s.name for s in samples if not s.control)
        raise AtelierError(
            f"{missing} has no picture to edit, others have. Add its name.control.png, or remove the others."
        )
