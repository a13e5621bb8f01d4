"""extract, to-lora, bake and unbake: LoRAs and whole model files."""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import torch

from ...core.flux.checkpoint import Checkpoint
from ...core.lora.bake import BakeOptions, UnbakeOptions, bake, unbake
from ...core.lora.extract import Extracted, ExtractOptions, convert, extract
from ...core.lora.formats import read_lora, write_lora
from ...core.options import parse
from ...core.tensor_stream import open_tensors

TENTHS = 10


def add_fields(parser, kind) -> None:
    """A flag for each option of a model; those not given stay absent."""
    from ..cli import add_options

    add_options(parser, kind)


def options_of(kind, args):
    return parse(kind, {k: v for k, v in vars(args).items() if k in kind.model_fields}, "the command line")


def walk(steps: Iterator) -> Iterator:
    """Go through a long work, telling every tenth; the last thing given is the result."""
    told, step = 0, None
    with closing(steps):  # type: ignore[type-var]
        for step in steps:
            tenth = TENTHS * step.done // max(1, step.total)
            if tenth > told and step.result is None:
                told = tenth
                yield f"{100 * tenth // TENTHS} %"
    yield step.result  # type: ignore[union-attr]


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def write_made(steps: Iterator, out: Path) -> Iterator[str]:
    for line in walk(steps):
        if isinstance(line, Extracted):
            write_lora(out, line.lora)
            line = f"{out}\n{line.report()}"
        yield line


def add_extract(parser) -> None:
    parser.add_argument("tuned", type=Path, help="model file with the change: safetensors or GGUF, of any precision")
    parser.add_argument("base", type=Path, help="model file without the change")
    parser.add_argument("--out", type=Path, required=True, help="LoRA file to write")
    add_fields(parser, ExtractOptions)


def run_extract(args) -> Iterator[str]:
    options = options_of(ExtractOptions, args)
    with open_tensors(args.tuned) as tuned, open_tensors(args.base) as base:
        yield from write_made(extract(Checkpoint(tuned), Checkpoint(base), options, device()), args.out)


def add_to_lora(parser) -> None:
    parser.add_argument("lora", type=Path, help="LoRA file of any kind: DoRA, LoKr, LoHa, OFT, BOFT, whole differences")
    parser.add_argument("--base", type=Path, help="model file it was made for; DoRA, OFT and BOFT need it")
    parser.add_argument("--out", type=Path, required=True, help="LoRA file to write")
    add_fields(parser, ExtractOptions)


def run_to_lora(args) -> Iterator[str]:
    options, lora = options_of(ExtractOptions, args), read_lora(args.lora)
    with ExitStack() as stack:
        base = Checkpoint(stack.enter_context(open_tensors(args.base))) if args.base else None
        yield from write_made(convert(lora, base, options, device(), args.lora.stem), args.out)


def add_bake(parser) -> None:
    parser.add_argument("checkpoint", type=Path, help="model file: bf16, fp16, fp32, fp8 or GGUF; it is left as it is")
    parser.add_argument("lora", type=Path, help="LoRA file of any kind")
    parser.add_argument("--out", type=Path, required=True, help="model file to write")
    add_fields(parser, BakeOptions)


def run_bake(args) -> Iterator[str]:
    options = options_of(BakeOptions, args)
    steps = bake(args.checkpoint, args.out, read_lora(args.lora), args.lora.stem, options)
    yield from (line if isinstance(line, str) else line.report() for line in walk(steps))


def add_unbake(parser) -> None:
    parser.add_argument("checkpoint", type=Path, help="model file that bake wrote; it is left as it is")
    parser.add_argument("lora", type=Path, help="the LoRA file that was put in")
    parser.add_argument("--base", type=Path, help="model file from before, to measure what rounding leaves")
    parser.add_argument("--out", type=Path, required=True, help="model file to write")
    add_fields(parser, UnbakeOptions)


def run_unbake(args) -> Iterator[str]:
    options = options_of(UnbakeOptions, args)
    steps = unbake(args.checkpoint, args.out, read_lora(args.lora), args.base, options)
    yield from (line if isinstance(line, str) else line.report() for line in walk(steps))


COMMANDS = {
    "extract": ("Take the difference of two model files as a LoRA.", add_extract, run_extract),
    "to-lora": ("Make a plain LoRA of one of another kind.", add_to_lora, run_to_lora),
    "bake": ("Put a LoRA into a model file for good.", add_bake, run_bake),
    "unbake": ("Take a LoRA out of a model file that it was put into.", add_unbake, run_unbake),
}
