"""The commands: name -> (help, add arguments, run). Each `run` yields the lines to show."""

from . import dataset, demo, frames, lora, nano, pictures, train

COMMANDS = {
    **dataset.COMMANDS,
    **train.COMMANDS,
    **pictures.COMMANDS,
    **lora.COMMANDS,
    **frames.COMMANDS,
    **nano.COMMANDS,
    **demo.COMMANDS,
}
