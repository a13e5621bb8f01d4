"""inspect and convert: LoRA files."""

from collections.abc import Iterator
from pathlib import Path

import torch

from ...core.files import read_tensors, refuse_overwriting
from ...core.lora.formats import read_lora, write_lora
from ...core.lora.formats.layouts import SCHEMES
from ...core.lora.inspection import inspect_lora

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def add_inspect(parser) -> None:
    parser.add_argument("lora", type=Path, help="LoRA file")
    parser.add_argument("--layers", action="store_true", help="list every layer")


def run_inspect(args) -> Iterator[str]:
    tensors, metadata = read_tensors(args.lora)
    yield inspect_lora(tensors, metadata, args.lora.name).text(args.layers)


def add_convert(parser) -> None:
    parser.add_argument("lora", type=Path, help="LoRA file")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument("--layout", choices=tuple(SCHEMES), default="kohya", help="key layout")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float16", help="precision of the factors")


def run_convert(args) -> Iterator[str]:
    refuse_overwriting(args.out, [args.lora])
    write_lora(args.out, read_lora(args.lora), args.layout, DTYPES[args.dtype])
    tensors, metadata = read_tensors(args.out)
    yield inspect_lora(tensors, metadata, args.out.name).text()


COMMANDS = {
    "inspect": ("Say what a LoRA file is.", add_inspect, run_inspect),
    "convert": ("Write a LoRA in another key layout or precision.", add_convert, run_convert),
}
