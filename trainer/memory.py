"""How much memory a training needs beside the model's weights: a rule of thumb, on the safe side."""

from ..core.flux.layout import FluxShape
from .cache import Sample
from .config import TrainOptions

KEPT, WORKING = 34, 60  # activations of a kept block and of the block at work, in numbers per token and hidden feature
STATE = 16  # bytes per trained number: float32 weight, gradient and AdamW's two moments


def training_bytes(
    shape: FluxShape, trained: int, samples: list[Sample], options: TrainOptions, words: int = 512
) -> int:
    """Bytes for the LoRA's state, the activations and one layer's weights.

    shape    the model's
    trained  number of trained parameters
    samples  the largest of them counts
    words    text tokens
    """
    tokens = max(s.tokens for s in samples) + words
    kept = (shape.double + shape.single) * (1 - options.gradient_checkpointing)
    boundaries = shape.double + shape.single  # what checkpointed blocks keep: their input
    numbers = tokens * shape.hidden * options.data.batch_size * (kept * KEPT + boundaries + WORKING)
    width = 2 if options.precision != "float32" else 4
    layer = 7 * shape.hidden**2 * width
    return int(trained * STATE + numbers * width + layer)


def lora_parameters(shape: FluxShape, rank: int) -> int:
    """Upper bound of a LoRA's parameters at a rank: every Linear of every block."""
    h, mlp = shape.hidden, shape.mlp
    double = 2 * ((h + 3 * h) + 2 * h + 2 * (h + mlp) + 7 * h)
    single = (h + 3 * h + mlp) + (2 * h + mlp) + 4 * h
    return rank * (shape.double * double + shape.single * single)
