"""Flux.1 dev's size on a GPU: seconds a step and peak memory beside what the plan expected, by precision and picture size.

The weights are random, so nothing has to be downloaded; a step costs what it costs on the real model. Only our own
figures: there is no peer in this room, and no claim rests on it.
"""

import sys
import tempfile
import time
from pathlib import Path

import torch

from .__main__ import Figure

STEPS, RANK, WORDS = 6, 16, 256
SIZES = (512, 768, 1024)


def run() -> list[Figure]:
    if not torch.cuda.is_available():
        sys.exit("The room gpu needs a CUDA device, and there is none. Run it on a machine that has one.")
    from flux_atelier.core.flux.layout import FluxShape

    dev = FluxShape(3072, 19, 38, 64, 4096, 768, True, 12288)
    figures = []
    print(f"{'weights':<8}{'pixels':>8}{'again':>7}{'s/step':>9}{'peak GiB':>10}{'expected':>10}")
    for weights in ("file", "fp8", "nf4"):
        tree = random_tree(dev, torch.device("cuda"), weights)
        for side in SIZES:
            seconds, peak, plan = measure(tree, torch.device("cuda"), side)
            name = "bf16" if weights == "file" else weights
            expected = plan.chosen.device_bytes / 2**30
            print(f"{name:<8}{side:>8}{plan.chosen.share:>7.0%}{seconds:>9.2f}{peak:>10.2f}{expected:>10.2f}")
            figures.append(Figure(f"{name} {side} px, GiB beside the model, expected", peak, expected, "GiB"))
        del tree
        torch.cuda.empty_cache()
    return figures


def random_tree(shape, device: torch.device, weights: str):
    """A frozen bf16 model of a shape with random weights, made where it is used, block weights packed as asked."""
    from flux_atelier.trainer.flux.tree import FluxTree
    from flux_atelier.trainer.packed import quantise

    with torch.device("meta"):
        tree = FluxTree(shape)
    tree = tree.to(torch.bfloat16).to_empty(device=device).requires_grad_(False)
    for name, value in tree.named_parameters():
        value.fill_(1.0) if name.endswith("scale") else value.normal_(0, 0.02)
    quantise(tree, weights)
    return tree


def measure(tree, device: torch.device, side: int):
    """Median seconds of a step, its peak in GiB beside the model, and the plan, over a few steps at a picture size."""
    from flux_atelier.core.options import nest, parse
    from flux_atelier.trainer.cache import Cache, Sample
    from flux_atelier.trainer.config import TrainOptions
    from flux_atelier.trainer.flux.view import TrainView, cast_plain
    from flux_atelier.trainer.loop import train
    from flux_atelier.trainer.memory import plan_run
    from flux_atelier.trainer.run import open_run
    from flux_atelier.trainer.session import Extras, Session

    given = {"steps": STEPS, "rank": RANK, "resolution": side, "validate_every": 0, "save_every": 1000}
    options, times = parse(TrainOptions, nest(TrainOptions, given), "bench"), []
    with tempfile.TemporaryDirectory() as place:
        cache = Cache(Path(place) / "cache")
        cache.put("latent", torch.randn(16, side // 8, side // 8))
        cache.put("text", torch.randn(WORDS, tree.shape.context).half(), torch.randn(tree.shape.pooled))
        samples = [Sample("0", "0", side // 8, side // 8, "latent", ("text",))]
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 8 << 30
        plan = plan_run(tree.shape, 0, samples, options, device, free, WORDS)
        run = open_run(Path(place) / "run", "run", options, "", "")
        view = TrainView(tree, tree.shape, cast_plain, device)
        session = Session.start(view, samples, cache, "text", options, run, Extras(setting=plan.chosen))
        steps = train(session)
        for _ in range(STEPS):
            began = time.perf_counter()
            step = next(steps)
            times.append(time.perf_counter() - began)
        steps.close()
    peak = ((step.memory or 0) - session.bytes_before) / 2**30
    return sorted(times[1:])[len(times) // 2], peak, plan
