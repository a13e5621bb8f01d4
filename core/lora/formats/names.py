"""A key of any layout, taken apart: which module it belongs to, which rows of it, and what it holds of them."""

import re
from functools import cache, lru_cache
from typing import NamedTuple, get_args

from ...flux.layout import Piece
from ..record import Base
from .tables import ENCODERS, pieces_of, text_pieces

BLOCK = re.compile(
    r"(?P<kind>double_blocks|single_blocks|single_transformer_blocks|transformer_blocks|joint_blocks|encoder[._]layers|encoder[._]block)"
    r"(?P<before>[._])(?P<n>\d+)(?P<after>[._])"
)
PREFIXES = (
    "lora_unet_", "lora_transformer_", "lycoris_", "transformer.base_model.model.", "unet.base_model.model.",
    "base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "unet.", "",
)  # fmt: skip
TEXT_PREFIXES = {
    "lora_te1_": "clip_l", "lora_te2_": "clip_g", "lora_te3_": "t5xxl", "lora_te_": "clip_l",
    "text_encoders.clip_l.transformer.": "clip_l", "text_encoders.clip_g.transformer.": "clip_g",
    "text_encoders.t5xxl.transformer.": "t5xxl", "text_encoder.": "clip_l", "text_encoder_2.": "clip_g",
    "text_encoder_3.": "t5xxl",
}  # fmt: skip
XLABS = {  # module under XLabs' name: original module and the rows of it; qkv_lora of a single block are linear1's first three
    "double_blocks.#.processor.qkv_lora1": ("double_blocks.#.img_attn.qkv", 0, 3),
    "double_blocks.#.processor.qkv_lora2": ("double_blocks.#.txt_attn.qkv", 0, 3),
    "double_blocks.#.processor.proj_lora1": ("double_blocks.#.img_attn.proj", 0, 1),
    "double_blocks.#.processor.proj_lora2": ("double_blocks.#.txt_attn.proj", 0, 1),
    "single_blocks.#.processor.qkv_lora": ("single_blocks.#.linear1", 0, 3),
    "single_blocks.#.processor.proj_lora": ("single_blocks.#.linear2", 0, 1),
    "single_blocks.#.linear1_qkv": ("single_blocks.#.linear1", 0, 3),
}
OTHER_PARTS = (
    "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2",
    "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", "oft_blocks", "rescale",
)  # fmt: skip
XLABS_END = r"(?:(?<=\.qkv_lora)|(?<=\.proj_lora)|(?<=_lora1)|(?<=_lora2))"
ENDINGS = tuple(
    (re.compile(rf"(?:{pattern})$"), part)
    for pattern, part in (
        (XLABS_END + r"\.down\.weight", "down"),
        (XLABS_END + r"\.up\.weight", "up"),
        (r"\.lora_down\.weight|[._]lora\.down\.weight|\.lora_linear_layer\.down\.weight|\.lora_A(\.\w+)?(\.weight)?", "down"),
        (r"\.lora_up\.weight|[._]lora\.up\.weight|\.lora_linear_layer\.up\.weight|\.lora_B(\.(?!bias)\w+)?(\.weight)?", "up"),
        (r"\.lora_B(\.\w+)?\.bias", "bias"),
        (r"\.lora_mid\.weight", "mid"),
        (r"\.alpha", "alpha"),
        (r"\.dora_scale", "dora_scale"),
        (r"\.lora_magnitude_vector(\.\w+)?(\.weight)?", "magnitude"),
        (r"\.(?:diff_b|b_norm)|\.bias\.diff", "diff_b"),
        (r"\.w_norm|\.(?:weight|scale)\.diff|\.diff", "diff"),
        *((rf"\.{part}", part) for part in OTHER_PARTS),
    )
)  # fmt: skip


class Place(NamedTuple):
    """Where a key belongs: original module, its piece, and the diffusers parts it covers (count 0: named by the original)."""

    module: str
    piece: Piece
    first: int
    count: int


class Table(NamedTuple):
    """Every way to name a module of a base: block number as `#`, dots or underscores."""

    names: dict[str, tuple[Piece, int, int]]
    text: dict[str, Piece]


@lru_cache(maxsize=1 << 14)
def part_of(key: str) -> tuple[str, str]:
    """Module key and the part of it that a tensor is (down, up, alpha, ...); an empty part where it is none."""
    for pattern, part in ENDINGS:
        found = pattern.search(key)
        if found and found.start():
            return key[: found.start()], part
    return key, ""


@cache
def table_of(base: Base) -> Table:
    names: dict[str, tuple[Piece, int, int]] = {}
    for piece in pieces_of(base):
        for place, name in enumerate(piece.diffusers):
            names[name] = names[name.replace(".", "_")] = piece, place, 1
    for piece in pieces_of(base):  # last, because in Flux.2 both layouts share a few names
        names[piece.original] = names[piece.original.replace(".", "_")] = piece, 0, 0
    if base == "flux1":
        by_name = {piece.original: piece for piece in pieces_of(base)}
        for name, (module, first, count) in XLABS.items():
            whole = len(by_name[module].diffusers) == count
            names[name] = by_name[module], first, 0 if whole else count
    text: dict[str, Piece] = {}
    for piece in text_pieces():
        text[piece.original] = text[piece.original.replace(".", "_")] = piece
    return Table(names, text)


@lru_cache(maxsize=1 << 14)
def module_name(key: str, base: Base = "flux1") -> Place | None:
    """The place of a module key of any layout in a base model, or None."""
    table = table_of(base)
    encoder = next((e for p, e in TEXT_PREFIXES.items() if key.startswith(p)), None)
    if encoder:
        return _text_module(key, encoder, table)
    for prefix in PREFIXES:
        if not key.startswith(prefix):
            continue
        bare = key.removeprefix(prefix)
        general, number = (bare, "") if base == "sdxl" else generalise(bare)
        general = general.replace(".processor.to_", ".to_") if base == "sdxl" else general
        entry = table.names.get(general) or table.names.get(f"{general}.0")  # old diffusers' to_out is to_out.0
        if entry:
            return Place(entry[0].original.replace("#", number), *entry)
    return None


def place_of(key: str, base: Base) -> Place:
    """module_name of a key that has one; KeyError otherwise."""
    place = module_name(key, base)
    if place is None:
        raise KeyError(key)
    return place


def _text_module(key: str, encoder: str, table: Table) -> Place | None:
    prefix = next(p for p in TEXT_PREFIXES if key.startswith(p))
    bare, number = generalise(key.removeprefix(prefix))
    # OneTrainer counts Flux.1's T5 as the second encoder, kohya as the third: what it holds decides.
    if bare.startswith(("encoder.block", "encoder_block")):
        encoder = "t5xxl"
    piece = table.text.get(f"{encoder}{'.' if '.' in bare else '_'}{bare}")
    return Place(piece.original.replace("#", number), piece, 0, 0) if piece else None


def generalise(key: str) -> tuple[str, str]:
    """A key with its block's number as `#`, and the number."""
    block = BLOCK.search(key)
    if not block:
        return key, ""
    return f"{key[: block.start('n')]}#{key[block.end('n') :]}", block["n"]


def is_text(module: str) -> bool:
    """Whether an original module name is a text encoder's."""
    return module.startswith(tuple(f"{e}." for e in ENCODERS))


@cache
def piece_table(base: Base) -> dict[str, Piece]:
    """Pieces by original name, block numbers as `#`."""
    return {piece.original: piece for piece in (*pieces_of(base), *text_pieces())}


def piece_named(module: str, base: Base) -> tuple[Piece, str]:
    """The piece of an original module name and its block's number; KeyError if there is none."""
    general, number = (module, "") if base == "sdxl" and not is_text(module) else generalise(module)
    return piece_table(base)[general], number


BASES: tuple[Base, ...] = get_args(Base)
