"""A small training that needs no model files; run as a script it is what the kill test kills."""

import sys
from pathlib import Path

import torch
from tiny import SHAPE, tiny_tree

from flux_atelier.core.options import nest, parse
from flux_atelier.trainer.cache import Cache, Sample
from flux_atelier.trainer.config import TrainOptions
from flux_atelier.trainer.flux.view import TrainView, cast_plain
from flux_atelier.trainer.loop import Session
from flux_atelier.trainer.run import open_run

SMALL = dict(steps=8, rank=4, alpha=4.0, learning_rate=1e-3, warmup=2, batch_size=2, save_every=3, validate_every=4)


def options(**changes) -> TrainOptions:
    return parse(TrainOptions, nest(TrainOptions, SMALL | changes), "test")


def samples_in(cache: Cache, count: int = 5) -> list[Sample]:
    """Random latents in two sizes and texts of two lengths."""
    rng = torch.Generator().manual_seed(9)
    cache.put("empty", torch.zeros(4, SHAPE.context), torch.zeros(SHAPE.pooled))
    found = []
    for i in range(count):
        h, w = (4, 6) if i % 2 else (4, 4)
        cache.put(f"latent{i}", torch.randn(16, h, w, generator=rng))
        words = 4 if i < 3 else 6
        cache.put(
            f"text{i}",
            torch.randn(words, SHAPE.context, generator=rng).half(),
            torch.randn(SHAPE.pooled, generator=rng),
        )
        found.append(Sample(str(i), f"{i}.png", h, w, f"latent{i}", (f"text{i}",)))
    return found


def session_in(folder: Path, chosen: TrainOptions, tree=None) -> Session:
    cache = Cache(folder / "cache")
    samples = samples_in(cache)
    run = open_run(folder / "run", "run", chosen, "dataset", "model")
    view = TrainView(tree or tiny_tree(), SHAPE, cast_plain, torch.device("cpu"))
    return Session.start(view, samples, cache, "empty", chosen, run)


if __name__ == "__main__":
    from flux_atelier.trainer.loop import train

    torch.set_num_threads(1)
    for step in train(session_in(Path(sys.argv[1]), options())):
        print(step.step, flush=True)
        if step.step == 5:
            sys.stdin.read()  # wait here to be killed
