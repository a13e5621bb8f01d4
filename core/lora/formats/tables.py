"""The modules of every base model that LoRAs are read for, under their original names and diffusers'.

`#` stands for a block's number. Sources: the checkpoints of Black Forest Labs and Stability AI, and diffusers' models
for Flux.1, Flux.2, SDXL and SD3.
"""

import re
from collections.abc import Iterator
from dataclasses import replace

from ...flux.layout import FluxShape, Piece, pieces
from ..record import Base

ENCODERS = ("clip_l", "clip_g", "t5xxl")
ATTENTION = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0")
ATTENTION += tuple(name.replace("attn1", "attn2") for name in ATTENTION)
TRANSFORMER = (*ATTENTION, "ff.net.0.proj", "ff.net.2", "norm1", "norm2", "norm3")
RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
DEPTHS = (0, 2, 10)  # transformer blocks at SDXL's three sizes


def pieces_of(base: Base) -> list[Piece]:
    """Every module of a base model's denoiser."""
    return {"flux1": _flux1, "flux2": _flux2, "sd3": _sd3, "sdxl": lambda: list(_sdxl())}[base]()


def text_pieces() -> list[Piece]:
    """Every layer of the text encoders, under names that begin with the encoder's."""
    clip = [f"self_attn.{c}_proj" for c in ("q", "k", "v", "out")] + ["mlp.fc1", "mlp.fc2"]
    t5 = [f"layer.0.SelfAttention.{c}" for c in "qkvo"] + [
        f"layer.1.DenseReluDense.{c}" for c in ("wi_0", "wi_1", "wo")
    ]
    names = [f"{e}.text_model.encoder.layers.#.{n}" for e in ("clip_l", "clip_g") for n in clip]
    names += ["clip_l.text_projection", "clip_g.text_projection", *(f"t5xxl.encoder.block.#.{n}" for n in t5)]
    return [Piece(name, (name,)) for name in names]


def _flux1() -> list[Piece]:
    numbered = re.compile(r"_blocks\.0\.")
    table = pieces(FluxShape(128, 1, 1, 64, 64, 64, True, 512))
    return [
        replace(p, original=numbered.sub("_blocks.#.", p.original), diffusers=tuple(numbered.sub("_blocks.#.", d) for d in p.diffusers))
        for p in table
    ]  # fmt: skip


def _flux2() -> list[Piece]:
    kept = [p for p in _flux1() if "_mod." not in p.original and "modulation.lin" not in p.original]
    table = []
    for piece in kept:
        name = piece.original
        if name.startswith("vector_in"):
            continue
        if name.startswith(("time_in", "guidance_in")):
            piece = replace(piece, diffusers=(piece.diffusers[0].replace("time_text_embed", "time_guidance_embed"),))
        elif "_mlp." in name:
            side = "ff_context" if "txt" in name else "ff"
            end = "linear_in" if name.endswith(".0") else "linear_out"
            piece = Piece(name, (f"transformer_blocks.#.{side}.{end}",))
        elif name.endswith("linear1"):
            piece = Piece(name, ("single_transformer_blocks.#.attn.to_qkv_mlp_proj",))
        elif name.endswith("linear2"):
            piece = Piece(name, ("single_transformer_blocks.#.attn.to_out",))
        table.append(piece)
    streams = ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation")
    return [*table, *(Piece(f"{s}.lin", (f"{s}.linear",)) for s in streams)]


def _sd3() -> list[Piece]:
    ours, theirs = "joint_blocks.#", "transformer_blocks.#"
    table = [
        Piece("context_embedder", ("context_embedder",)),
        Piece("x_embedder.proj", ("pos_embed.proj",)),
        Piece("final_layer.linear", ("proj_out",)),
        Piece("final_layer.adaLN_modulation.1", ("norm_out.linear",), swapped=True),
    ]
    for a, b in (("t_embedder", "timestep_embedder"), ("y_embedder", "text_embedder")):
        table += [Piece(f"{a}.mlp.{i}", (f"time_text_embed.{b}.linear_{1 + i // 2}",)) for i in (0, 2)]
    sides = (("x_block", "", ("to_q", "to_k", "to_v"), "to_out.0"), ("context_block", "_context", ("add_q_proj", "add_k_proj", "add_v_proj"), "to_add_out"))  # fmt: skip
    for side, ending, qkv, out in sides:
        table += [
            Piece(f"{ours}.{side}.attn.qkv", tuple(f"{theirs}.attn.{c}" for c in qkv), (1, 1, 1)),
            Piece(f"{ours}.{side}.attn.proj", (f"{theirs}.attn.{out}",)),
            Piece(f"{ours}.{side}.mlp.fc1", (f"{theirs}.ff{ending}.net.0.proj",)),
            Piece(f"{ours}.{side}.mlp.fc2", (f"{theirs}.ff{ending}.net.2",)),
            Piece(f"{ours}.{side}.adaLN_modulation.1", (f"{theirs}.norm1{ending}.linear",)),
        ]
    second = tuple(f"{theirs}.attn2.to_{c}" for c in "qkv")
    table.append(Piece(f"{ours}.x_block.attn2.qkv", second, (1, 1, 1)))
    return [*table, Piece(f"{ours}.x_block.attn2.proj", (f"{theirs}.attn2.to_out.0",))]


def _sdxl() -> Iterator[Piece]:
    named = {
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "label_emb.0.0": "add_embedding.linear_1",
        "label_emb.0.2": "add_embedding.linear_2",
        "input_blocks.0.0": "conv_in",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
    }
    yield from (Piece(a, (b,)) for a, b in named.items())
    for level, depth in enumerate(DEPTHS):
        for i in range(2):
            yield from _unet_block(f"input_blocks.{1 + 3 * level + i}", f"down_blocks.{level}", i, depth)
        if level < 2:
            yield Piece(f"input_blocks.{3 * level + 3}.0.op", (f"down_blocks.{level}.downsamplers.0.conv",))
    for a, b in ((0, 0), (2, 1)):
        yield from _resnet(f"middle_block.{a}", f"mid_block.resnets.{b}")
    yield from _attention("middle_block.1", "mid_block.attentions.0", DEPTHS[-1])
    for level, depth in enumerate(reversed(DEPTHS)):
        for i in range(3):
            yield from _unet_block(f"output_blocks.{3 * level + i}", f"up_blocks.{level}", i, depth)
        if level < 2:
            yield Piece(f"output_blocks.{3 * level + 2}.2.conv", (f"up_blocks.{level}.upsamplers.0.conv",))


def _unet_block(ours: str, theirs: str, place: int, depth: int) -> Iterator[Piece]:
    yield from _resnet(f"{ours}.0", f"{theirs}.resnets.{place}")
    if depth:
        yield from _attention(f"{ours}.1", f"{theirs}.attentions.{place}", depth)


def _resnet(ours: str, theirs: str) -> Iterator[Piece]:
    yield from (Piece(f"{ours}.{a}", (f"{theirs}.{b}",)) for a, b in RESNET.items())


def _attention(ours: str, theirs: str, depth: int) -> Iterator[Piece]:
    yield from (Piece(f"{ours}.{n}", (f"{theirs}.{n}",)) for n in ("norm", "proj_in", "proj_out"))
    for block in range(depth):
        for name in TRANSFORMER:
            yield Piece(f"{ours}.transformer_blocks.{block}.{name}", (f"{theirs}.transformer_blocks.{block}.{name}",))
