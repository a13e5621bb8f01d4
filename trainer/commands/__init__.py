"""The commands: name -> (help, add arguments, run). Each `run` yields the lines to show."""

from . import (
    analysis,
    arranging,
    block_weights,
    captions,
    checkpoints,
    dataset,
    demo,
    distil,
    frames,
    lora,
    merge,
    nano,
    pictures,
    rank,
    registry,
    train,
)  # fmt: skip

COMMANDS = {
    **dataset.COMMANDS,
    **arranging.COMMANDS,
    **captions.COMMANDS,
    **train.COMMANDS,
    **pictures.COMMANDS,
    **lora.COMMANDS,
    **merge.COMMANDS,
    **block_weights.COMMANDS,
    **rank.COMMANDS,
    **checkpoints.COMMANDS,
    **distil.COMMANDS,
    **analysis.COMMANDS,
    **registry.COMMANDS,
    **frames.COMMANDS,
    **nano.COMMANDS,
    **demo.COMMANDS,
}
