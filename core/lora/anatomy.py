"""What the modules of each base are called: kinds of blocks and how many, and parts of blocks by words.

The names are those of formats/tables.py. A base's largest model counts: a LoRA for a smaller one lacks some blocks.
"""

from dataclasses import dataclass
from functools import cache

from .formats.bases import NAMES
from .formats.tables import ENCODERS, pieces_of, text_pieces
from .record import Base

TEXT = rf"(?:{'|'.join(ENCODERS)})(?:\.|$)"
TEXT_LAYERS = 32  # of the deepest text encoder


@dataclass(frozen=True)
class Kind:
    """A kind of block: the beginning of its modules' names, and how many a model has at most."""

    prefix: str
    count: int


@dataclass(frozen=True)
class Anatomy:
    """How a base's modules are sorted: kinds of blocks by name, parts as expressions for the beginning of names."""

    base: Base
    kinds: dict[str, Kind]
    parts: dict[str, str]

    @property
    def title(self) -> str:
        return NAMES[self.base]

    @property
    def blocks(self) -> str:
        """An expression for the beginning of any block's modules."""
        return "(?:" + "|".join(kind.prefix for kind in self.kinds.values()) + r")\.\d+(?:\.|$)"


FLUX_PARTS = {
    "attention": r"double_blocks\.\d+\.\w+_attn\b|single_blocks\.\d+\.linear1\b",
    "mlp": r"double_blocks\.\d+\.\w+_mlp\b|single_blocks\.\d+\.linear2\b",
    "modulation": r"double_blocks\.\d+\.\w+_mod\b|single_blocks\.\d+\.modulation\b|(?:double|single)_stream_modulation",
    "img": r"double_blocks\.\d+\.img_|double_stream_modulation_img\b",
    "txt": r"double_blocks\.\d+\.txt_|double_stream_modulation_txt\b",
    "qkv": r"double_blocks\.\d+\.\w+_attn\.qkv\b",
    "proj": r"double_blocks\.\d+\.\w+_attn\.proj\b",
}
SD3_PARTS = {
    "attention": r"joint_blocks\.\d+\.\w+\.attn2?\b",
    "mlp": r"joint_blocks\.\d+\.\w+\.mlp\b",
    "modulation": r"joint_blocks\.\d+\.\w+\.adaLN_modulation\b",
    "img": r"joint_blocks\.\d+\.x_block\b",
    "txt": r"joint_blocks\.\d+\.context_block\b",
    "qkv": r"joint_blocks\.\d+\.\w+\.attn2?\.qkv\b",
    "proj": r"joint_blocks\.\d+\.\w+\.attn2?\.proj\b",
}
UNET_PARTS = {
    "attention": r"\w+_blocks?\..*\.attn[12]\b",
    "mlp": r"\w+_blocks?\..*\.ff\b",
    "modulation": r"\w+_blocks?\..*\bemb_layers\b",
    "qkv": r"\w+_blocks?\..*\.attn[12]\.to_[qkv]\b",
    "proj": r"\w+_blocks?\..*\.attn[12]\.to_out\b",
}
UNET_KINDS = {"input": Kind("input_blocks", 9), "middle": Kind("middle_block", 3), "output": Kind("output_blocks", 9)}
ANATOMY: dict[Base, Anatomy] = {
    anatomy.base: anatomy
    for anatomy in (
        Anatomy("flux1", {"double": Kind("double_blocks", 19), "single": Kind("single_blocks", 38)}, FLUX_PARTS),
        Anatomy("flux2", {"double": Kind("double_blocks", 8), "single": Kind("single_blocks", 48)}, FLUX_PARTS),
        Anatomy("sd3", {"joint": Kind("joint_blocks", 38)}, SD3_PARTS),
        Anatomy("sdxl", UNET_KINDS, UNET_PARTS),
    )
}


@cache
def modules(base: Base) -> tuple[str, ...]:
    """The names of all modules of a base's largest model and its text encoders."""
    counts = {kind.prefix: kind.count for kind in ANATOMY[base].kinds.values()}
    names = []
    for piece in (*pieces_of(base), *text_pieces()):
        count = counts.get(piece.original.partition(".")[0], TEXT_LAYERS)
        numbers = range(count) if "#" in piece.original else (0,)
        names += [piece.original.replace("#", str(n)) for n in numbers]
    return tuple(names)
