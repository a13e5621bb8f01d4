"""merge and inspect: LoRA files."""

from collections.abc import Iterator
from pathlib import Path

import torch

from ...core.errors import AtelierError
from ...core.lora.factors import Factors
from ...core.lora.formats import read_lora, write_lora
from ...core.lora.merge import merge

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def add_merge(parser) -> None:
    parser.add_argument("loras", nargs="+", help="files, each with its weight: style.safetensors=0.8")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument("--rank", type=int, default=0, help="rank of the result; 0 keeps the sum exact")
    parser.add_argument("--layout", choices=("kohya", "comfy", "diffusers"), default="kohya", help="key layout")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float16", help="precision of the factors")


def run_merge(args) -> Iterator[str]:
    parts = []
    for word in args.loras:
        name, _, weight = word.rpartition("=") if "=" in word else (word, "", "1")
        try:
            number = float(weight)
        except ValueError:
            raise AtelierError(f"{word} has the weight {weight!r}, which is no number. Write file=0.8.") from None
        parts.append((Path(name).stem, number, read_lora(Path(name))))
    merged = merge(parts, args.rank)
    write_lora(args.out, merged.lora, args.layout, DTYPES[args.dtype])
    yield f"{args.out}: {len(parts)} LoRAs, rank {merged.lora.rank}, {merged.kept:.2%} of the sum's energy kept"


def add_inspect(parser) -> None:
    parser.add_argument("lora", type=Path, help="LoRA file")


def run_inspect(args) -> Iterator[str]:
    lora = read_lora(args.lora)
    ranks = sorted({f.rank for f in lora.modules.values()})
    alphas = sorted({f.alpha for f in lora.modules.values() if isinstance(f, Factors)})
    yield f"{args.lora.name}: {lora.layout} layout, {len(lora.modules)} layers, rank {ranks}, alpha {alphas}"
    for key, value in lora.metadata.items():
        yield f"  {key}: {value if len(value) < 120 else value[:117] + '...'}"
    for key in lora.unknown:
        yield f"  not understood: {key}"


COMMANDS = {
    "merge": ("Add LoRAs up exactly, re-compressed to a rank if wanted.", add_merge, run_merge),
    "inspect": ("Say what a LoRA file is.", add_inspect, run_inspect),
}
