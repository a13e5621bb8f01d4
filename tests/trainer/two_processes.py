"""A small training for torchrun: the same run as one process, dealt out to two."""

import sys
from pathlib import Path

import torch
from tiny import SHAPE, tiny_tree
from training import options, samples_in

from flux_atelier.core.files import write_tensors
from flux_atelier.trainer import adapter
from flux_atelier.trainer.cache import Cache
from flux_atelier.trainer.flux.view import TrainView, cast_plain
from flux_atelier.trainer.loop import train
from flux_atelier.trainer.packed import shard
from flux_atelier.trainer.run import Run, open_run
from flux_atelier.trainer.session import Extras, Session
from flux_atelier.trainer.world import join, leave

CHOSEN = dict(accumulation=2, batch_size=1, steps=6, save_every=2, validate_every=3, ema_decay=0.9)


def main(folder: Path, sharded: bool, die_at: int) -> None:
    torch.set_num_threads(1)
    world, chosen = join(torch.device("cpu")), options(**CHOSEN)
    cache, tree = Cache(folder / f"cache{world.rank}"), tiny_tree()
    samples = samples_in(cache)
    run = Run(folder / "run", "run")
    if world.first:
        open_run(run.folder, "run", chosen, "dataset", "model")
    world.wait()
    if sharded:
        shard(tree, torch.device("cpu"), world)
    view = TrainView(tree, SHAPE, cast_plain, torch.device("cpu"))
    session = Session.start(view, samples, cache, "empty", chosen, run, Extras(world=world))
    for step in train(session):
        if step.step == die_at and not world.first:
            sys.exit(7)
    write_tensors(folder / f"final{world.rank}.safetensors", adapter.state(view))
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] == "shard", int(sys.argv[3]))
