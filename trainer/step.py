"""One optimiser step: draw a batch, predict, compare, move the adapter - unless the guard objects."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from . import adapter, batches, objective, optimizers
from .cache import Sample
from .session import Session


@dataclass(frozen=True)
class Outcome:
    """What a step came to; `objection` says why it was skipped."""

    loss: float
    grad_norm: float
    objection: str | None = None


def optimizer_step(session: Session, mixture: batches.Mixture, rate: float) -> Outcome:
    """One step over `accumulation` batches, those of other processes included.

    rate  learning rate; the guard's factor is already in it
    """
    count = session.options.data.accumulation
    total = torch.zeros((), device=session.device)
    for part in session.world.share(count):
        total += _backward(session, mixture, session.step * count + part, 1 / count)
    total = session.world.sum(total, session.parameters)
    session.scaler.unscale_(session.optimizer)
    limit = session.options.optimizer.max_grad_norm or math.inf
    norm = torch.nn.utils.clip_grad_norm_(session.parameters, limit)
    loss, size = torch.stack([total, norm.to(total)]).tolist()  # the step's one wait for the device
    session.torn = True  # until the loop has counted the step
    objection = _objection(session, loss, size)
    if objection is None:
        optimizers.set_rate(session.optimizer, rate)
        session.optimizer.step()
        if session.average:
            session.average.update(session.parameters)
    if session.scaler.is_enabled():
        session.scaler.update()
    session.optimizer.zero_grad(set_to_none=True)
    session.torn = objection is None
    return Outcome(loss, size, objection)


def _objection(session: Session, loss: float, norm: float) -> str | None:
    """What speaks against taking the step; a float16 overflow is the scaler's to mend, not the guard's to count."""
    overflowed = session.scaler.is_enabled() and math.isfinite(loss) and not math.isfinite(norm)
    if overflowed and session.scaler.get_scale() > 1:
        return "float16 overflowed, the scale is halved"
    return session.guard.objection(loss, norm)


def _backward(session: Session, mixture: batches.Mixture, number: int, weight: float) -> Tensor:
    """Forward and backward over one batch; returns its mean loss times `weight`, on the device.

    Samples whose texts have different lengths go through separately, because Flux does not mask padding; each counts
    the same.
    """
    chosen = [session.samples[i] for i in mixture.batch(number)]
    rng = batches.generator("batch", session.options.seed, number)
    total = torch.zeros((), device=session.device)
    for draw in draw_batch(chosen, session, rng):
        for loss in _losses(session, draw, weight / len(chosen)):
            session.scaler.scale(loss).backward()
            total += loss.detach()
    return total


def _losses(session: Session, draw: "Draw", weight: float) -> Iterator[Tensor]:
    """The losses of a part of a batch, one graph at a time: what is learnt, and what is to stay as it was."""
    options = session.options.objective
    noisy = objective.add_noise(draw.latents, draw.noise, draw.sigma)
    shown = noisy, draw.sigma, draw.texts, draw.pooled, draw.references
    wanted = session.wanted(draw.noise - draw.latents, *shown)
    velocity = session.velocity(*shown)
    yield objective.training_error(velocity, wanted, draw.sigma, options, draw.masks).sum() * weight
    if draw.prior_texts is None or draw.prior_pooled is None:
        return
    given = noisy, draw.sigma, draw.prior_texts, draw.prior_pooled, draw.references
    with torch.no_grad(), adapter.disabled(session.tree):
        before = session.velocity(*given)
    error = objective.training_error(session.velocity(*given), before, draw.sigma, options)
    yield options.prior_weight * error.sum() * weight


@dataclass(frozen=True)
class Draw:
    """Samples that share a text length, on the device, with all that is random about them."""

    latents: Tensor
    texts: Tensor
    pooled: Tensor
    noise: Tensor
    sigma: Tensor
    masks: Tensor | None = None
    references: Tensor | None = None
    prior_texts: Tensor | None = None
    prior_pooled: Tensor | None = None


def draw_batch(chosen: list[Sample], session: Session, rng: torch.Generator) -> Iterator[Draw]:
    """Fetch a batch's latents and texts and draw its noise, noise levels, captions and dropped captions.

    The draws do not depend on the texts' lengths, so a batch is the same batch however it is parted.
    """
    options, cache = session.options.objective, session.cache
    latents = torch.stack([cache.get(s.latent)[0] for s in chosen])
    noise = torch.randn(latents.shape, generator=rng)
    sigma = objective.draw_sigma(len(chosen), chosen[0].tokens, options, rng)
    dropped = torch.rand(len(chosen), generator=rng) < options.caption_dropout
    which = torch.rand(len(chosen), generator=rng)
    at = [int(share * len(s.texts)) for s, share in zip(chosen, which.tolist(), strict=True)]
    keys = [session.empty_text if d else s.texts[i] for s, d, i in zip(chosen, dropped.tolist(), at, strict=True)]
    masks = _stacked(session, [s.mask for s in chosen])
    references = _stacked(session, [s.control for s in chosen])
    texts = [cache.get(key) for key in keys]
    keep = options.prior_weight > 0 and all(s.priors for s in chosen)
    priors = [cache.get(s.priors[i]) for s, i in zip(chosen, at, strict=True)] if keep else None
    lengths = [(len(t[0]), len(priors[i][0]) if priors else 0) for i, t in enumerate(texts)]

    def there(values: Tensor) -> Tensor:
        return values.to(session.device, non_blocking=True)

    for length in sorted(set(lengths)):
        rows = [i for i, other in enumerate(lengths) if other == length]
        states, pooled = (there(torch.stack([texts[i][k] for i in rows])) for k in (0, 1))
        prior = [there(torch.stack([priors[i][k] for i in rows])) for k in (0, 1)] if priors else (None, None)
        yield Draw(
            there(latents[rows]), states.float(), pooled, there(noise[rows]), there(sigma[rows]),
            None if masks is None else there(masks[rows]), None if references is None else there(references[rows]),
            None if prior[0] is None else prior[0].float(), prior[1],
        )  # fmt: skip


def _stacked(session: Session, keys: list[str]) -> Tensor | None:
    """Cached tensors of a batch, or None where no sample has one; a sample without a mask counts everywhere."""
    found = [session.cache.get(key)[0] if key else None for key in keys]
    like = next((f for f in found if f is not None), None)
    return None if like is None else torch.stack([torch.ones_like(like) if f is None else f for f in found])
