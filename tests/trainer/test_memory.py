"""The rule of thumb for memory: it counts the LoRA exactly and grows where training does."""

import torch
from tiny import SHAPE, tiny_tree
from training import options

from flux_atelier.core.flux.layout import FluxShape
from flux_atelier.trainer import adapter
from flux_atelier.trainer.cache import Sample
from flux_atelier.trainer.config import AdapterOptions
from flux_atelier.trainer.flux.view import TrainView, cast_plain
from flux_atelier.trainer.memory import lora_parameters, training_bytes

DEV = FluxShape(hidden=3072, double=19, single=38, channels=64, context=4096, pooled=768, guidance=True, mlp=12288)


def test_parameters_are_those_that_peft_makes():
    view = TrainView(tiny_tree(), SHAPE, cast_plain, torch.device("cpu"))
    made = sum(p.numel() for p in adapter.inject(view, AdapterOptions(rank=3, targets="all"), 0))
    assert made == lora_parameters(SHAPE, 3)


def test_it_grows_with_batch_size_resolution_and_kept_blocks():
    def need(side=64, **changes):
        samples = [Sample("", "", side, side, "", ())]
        return training_bytes(
            DEV,
            lora_parameters(DEV, 16),
            samples,
            options(**{"gradient_checkpointing": 1.0, "batch_size": 1} | changes),
        )

    small = need()
    assert 1e9 < small < 4e9  # 512 px, batch 1, everything checkpointed
    assert need(side=128) > small
    assert need(batch_size=4) > 1.5 * small
    assert need(gradient_checkpointing=0.0) > 4 * small
