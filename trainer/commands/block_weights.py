"""block-weights: a LoRA file with its blocks weighted."""

from collections.abc import Iterator
from pathlib import Path

from ...core.files import refuse_overwriting
from ...core.lora.blocks import apply_weights, parse_weights, summary
from ...core.lora.formats import read_lora, write_lora
from .lora import DTYPES


def add_block_weights(parser) -> None:
    parser.add_argument("lora", type=Path, help="LoRA file")
    parser.add_argument(
        "--weights", required=True, help='entries such as "single = 0, double.0-9 = 0.5", or a vector of 57 numbers'
    )
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float16", help="precision of the factors")


def run_block_weights(args) -> Iterator[str]:
    refuse_overwriting(args.out, [args.lora])
    lora = read_lora(args.lora)
    weights = parse_weights(args.weights, lora.base)
    write_lora(args.out, apply_weights(lora, weights), "kohya", DTYPES[args.dtype])
    yield summary(lora, weights)
    yield str(args.out)


COMMANDS = {
    "block-weights": (
        "Multiply a LoRA's layers by weights, block by block.",
        add_block_weights,
        run_block_weights,
    )
}
