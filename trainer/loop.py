"""The training loop: a generator of steps over a session.

    session = Session.start(view, samples, cache, options, run)
    for step in train(session):
        ...

To cancel is to stop iterating: the state is saved on the way out, and a session on the same run folder goes on bit
for bit, because all a step draws is a function of (seed, step).
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..core.errors import AtelierError
from . import adapter, batches, objective
from .cache import Cache, Sample
from .config import TrainOptions
from .flux.forward import plan_checkpoints
from .flux.tree import FluxTree
from .run import Metrics, Run
from .state import newest_state, restore_optimizer, save_state
from .validation import Validation

log = logging.getLogger("flux_atelier")


@dataclass(frozen=True)
class Step:
    """What one optimiser step has to tell; `validation` only where it was measured."""

    step: int
    total: int
    loss: float
    learning_rate: float
    grad_norm: float
    seconds: float
    validation: float | None = None


def _go_on() -> None:
    """Nobody cancels."""


@dataclass
class Session:
    """A run in the making: the tree with its LoRA, the optimiser and what it trains on."""

    tree: FluxTree
    parameters: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    samples: list[Sample]
    cache: Cache
    options: TrainOptions
    run: Run
    device: torch.device
    empty_text: str
    step: int = 0
    saved_step: int = -1
    validation: Validation | None = None
    checkpointed: frozenset[str] = field(default_factory=frozenset)
    check: Callable[[], None] = _go_on  # raises when the person cancels; asked before every forward pass

    @classmethod
    def start(
        cls, tree: FluxTree, samples: list[Sample], cache: Cache, empty_text: str, options: TrainOptions, run: Run
    ) -> "Session":
        """Inject the LoRA, make the optimiser, and take up the run's newest state where there is one.

        tree        a TrainView or FluxTree on the device of the training
        samples     encoded; empty_text is the cache's key of the empty caption
        """
        parameters = adapter.inject(tree, options.adapter, options.seed)
        chosen = options.optimizer
        optimizer = torch.optim.AdamW(
            parameters, chosen.learning_rate, weight_decay=chosen.weight_decay, fused=True, betas=(0.9, 0.999)
        )
        training = [s for s in samples if s.split == "train"] or samples
        session = cls(
            tree, parameters, optimizer, training, cache, options, run, parameters[0].device, empty_text,
            checkpointed=plan_checkpoints(tree.shape.double, tree.shape.single, options.gradient_checkpointing),
        )  # fmt: skip
        if options.validate_every:
            held = [s for s in samples if s.split != "train"]
            if not held:
                log.warning("no picture is set aside, so the validation loss is that of training pictures")
                held = training
            session.validation = Validation.of(held[: options.validation_pictures], options)
        session._resume()
        return session

    def _resume(self) -> None:
        saved = newest_state(self.run.checkpoints)
        if saved is None:
            return
        adapter.load_factors(self.tree, saved.factors)
        restore_optimizer(self.optimizer, saved.moments)
        self.step = self.saved_step = saved.step
        log.info("going on from step %d of %s", saved.step, self.run.folder)

    def velocity(self, latent: Tensor, sigma: Tensor, text: Tensor, pooled: Tensor) -> Tensor:
        """The model's prediction as it trains: with the LoRA, the run's guidance and precision."""
        self.check()
        guidance = None
        if self.tree.shape.guidance:
            guidance = torch.full((len(latent),), self.options.objective.guidance, device=self.device)
        with self.autocast():
            return self.tree(latent, sigma, text, pooled, guidance, self.checkpointed)

    def autocast(self):
        """bfloat16 computation where the options or the device ask for it."""
        precision = self.options.precision
        if precision == "auto":
            able = self.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
            precision = "bfloat16" if able else "float32"
        if precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def save(self) -> None:
        """Write the state, unless there is nothing yet or this very step is saved already."""
        if self.step and self.step != self.saved_step:
            save_state(self.run.checkpoints, self.step, self.tree, self.optimizer, self.options.keep_states)
            self.saved_step = self.step


def train(session: Session) -> Iterator[Step]:
    """Train until the run's last step, yielding after each one.

    Raises AtelierError on a non-finite loss or gradient, with the last good state saved.
    """
    options, plan = (
        session.options,
        batches.Plan.of(session.samples, session.options.data.batch_size, session.options.seed),
    )
    rates = learning_rates(session.optimizer, options)
    metrics = Metrics(session.run, session.step)
    try:
        while session.step < options.steps:
            began = time.perf_counter()
            rate = rates(session.step)
            loss, norm = _optimizer_step(session, plan, rate)
            session.step += 1
            validation = None
            if session.validation and (session.step % options.validate_every == 0 or session.step == options.steps):
                validation = session.validation.loss(session)
            step = Step(session.step, options.steps, loss, rate, norm, time.perf_counter() - began, validation)
            metrics.add({k: v for k, v in vars(step).items() if v is not None and k != "total"})
            if session.step % options.save_every == 0:
                session.save()
            yield step
    finally:
        metrics.close()
        session.save()


def _optimizer_step(session: Session, plan: batches.Plan, rate: float) -> tuple[float, float]:
    """One step over `accumulation` batches; returns the mean loss and the gradient's norm before clipping."""
    options, total = session.options, 0.0
    count = options.data.accumulation
    for part in range(count):
        total += _backward(session, plan, session.step * count + part, 1 / count)
    limit = options.optimizer.max_grad_norm or math.inf
    norm = torch.nn.utils.clip_grad_norm_(session.parameters, limit).item()
    for what, value in (("loss", total), ("gradient's norm", norm)):
        if not math.isfinite(value):
            session.optimizer.zero_grad(set_to_none=True)
            raise AtelierError(
                f"The {what} is {value} at step {session.step + 1}. "
                "Lower the learning rate, or use float32 precision; the state before this step is saved."
            )
    for group in session.optimizer.param_groups:
        group["lr"] = rate
    session.optimizer.step()
    session.optimizer.zero_grad(set_to_none=True)
    return total, norm


def _backward(session: Session, plan: batches.Plan, number: int, weight: float) -> float:
    """Forward and backward over one batch; returns its mean loss times `weight`.

    Samples whose texts have different lengths go through separately, because Flux does not mask padding; each counts
    the same.
    """
    chosen = [session.samples[i] for i in plan.batch(number)]
    rng = batches.generator("batch", session.options.seed, number)
    draw = draw_batch(chosen, session, rng)
    total = 0.0
    for group in draw.by_text_length():
        latent, text, pooled, noise, sigma = (t.to(session.device) for t in group)
        velocity = session.velocity(objective.add_noise(latent, noise, sigma), sigma, text.float(), pooled)
        loss = objective.velocity_error(velocity, latent, noise).sum() * (weight / len(chosen))
        loss.backward()
        total += loss.item()
    return total


@dataclass(frozen=True)
class Draw:
    """One batch with all that is random about it; texts may differ in length."""

    latents: Tensor
    texts: list[Tensor]
    pooled: list[Tensor]
    noise: Tensor
    sigma: Tensor

    def by_text_length(self) -> Iterator[tuple[Tensor, ...]]:
        """The batch in parts that share a text length: (latents, texts, pooled, noise, sigma)."""
        for length in sorted({len(t) for t in self.texts}):
            at = [i for i, t in enumerate(self.texts) if len(t) == length]
            texts, pooled = torch.stack([self.texts[i] for i in at]), torch.stack([self.pooled[i] for i in at])
            yield self.latents[at], texts, pooled, self.noise[at], self.sigma[at]


def draw_batch(chosen: list[Sample], session: Session, rng: torch.Generator) -> Draw:
    """Fetch a batch's latents and texts and draw its noise, noise levels, captions and dropped captions."""
    options = session.options.objective
    latents = torch.stack([session.cache.get(s.latent)[0] for s in chosen])
    noise = torch.randn(latents.shape, generator=rng)
    sigma = objective.draw_sigma(len(chosen), chosen[0].tokens, options, rng)
    dropped = torch.rand(len(chosen), generator=rng) < options.caption_dropout
    which = torch.rand(len(chosen), generator=rng)
    texts, pooled = [], []
    for sample, drop, share in zip(chosen, dropped.tolist(), which.tolist(), strict=True):
        key = session.empty_text if drop else sample.texts[int(share * len(sample.texts))]
        states, vector = session.cache.get(key)
        texts.append(states)
        pooled.append(vector)
    return Draw(latents, texts, pooled, noise, sigma)


def learning_rates(optimizer: torch.optim.Optimizer, options: TrainOptions):
    """The learning rate as a function of the step: warmup, then the schedule (transformers' get_scheduler)."""
    from transformers import get_scheduler

    chosen = options.optimizer
    name = "constant_with_warmup" if chosen.schedule == "constant" else chosen.schedule
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=chosen.warmup, num_training_steps=options.steps)
    factor = scheduler.lr_lambdas[0]
    # Step 0 of a warmup would be a step of zero; count from one.
    return lambda step: chosen.learning_rate * factor(step + 1 if step < chosen.warmup else step)
