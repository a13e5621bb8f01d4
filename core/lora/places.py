"""Where in a model a layer stands, read from its name: block, stream and component, for any base model."""

import re
from dataclasses import dataclass

BLOCK = re.compile(r"(?P<stem>.*?)\.(?P<number>\d+)\.(?P<rest>.+)")
KINDS = (  # the first word that a name has says what it is
    ("attention", re.compile(r"attn|attention|to_[qkv]\b|to_out|[qkv]_proj|proj_(in|out)\b")),
    ("modulation", re.compile(r"mod|adaln", re.IGNORECASE)),
    ("mlp", re.compile(r"mlp|\bff\b|\bfc\d|\bwi|\bwo\b|DenseReluDense")),
)
FUSED = re.compile(r"single_blocks\.\d+\.linear[12]$")
ENCODERS = ("clip_l", "clip_g", "t5xxl")


@dataclass(frozen=True)
class Place:
    """A layer's place.

    stem    of its row of blocks: double, single, input; others for what stands in no block
    number  of the block in its row; None in no block
    rest    its name inside the block
    """

    stem: str
    number: int | None
    rest: str

    @property
    def block(self) -> str:
        """double.0, single.37, others."""
        return self.stem if self.number is None else f"{self.stem}.{self.number}"

    @property
    def stream(self) -> str:
        """img or txt in Flux's double blocks, else the row of blocks."""
        named = re.match(r"(img|txt)_", self.rest)
        return named[1] if named and self.number is not None else self.stem


def place_of(module: str) -> Place:
    """The place of a module ("double_blocks.0.img_attn.qkv"), or of a vector by its parameter's name."""
    found = BLOCK.match(module)
    if not found:
        return Place(next((e for e in ENCODERS if module.startswith(e + ".")), "others"), None, module)
    return Place(found["stem"].removesuffix("s").removesuffix("_block"), int(found["number"]), found["rest"])


def component_of(module: str) -> str:
    """attention, mlp, modulation or other; "attention+mlp" for Flux's fused layers of single blocks."""
    if FUSED.search(module):
        return "attention+mlp"
    rest = place_of(module).rest
    return next((kind for kind, words in KINDS if words.search(rest)), "other")
