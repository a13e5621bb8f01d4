"""The two key layouts of a Flux.1 transformer, of any width and depth, and the bit-exact way between them.

*original*: Black Forest Labs' single file (`double_blocks.0.img_attn.qkv.weight`), which ComfyUI reads.
*diffusers*: `FluxTransformer2DModel` (`transformer_blocks.0.attn.to_q.weight`).
They differ in names, in fused against split projections, and in the order of the last modulation's halves. One table
of `Piece`s says all of it; the LoRA key maps are read from the same table.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import AtelierError

PREFIXES = ("model.diffusion_model.", "diffusion_model.")


@dataclass(frozen=True)
class FluxShape:
    """What a Flux.1 transformer's tensors say about it; sizes in features, depths in blocks."""

    hidden: int
    double: int
    single: int
    channels: int
    context: int
    pooled: int
    guidance: bool
    mlp: int

    @property
    def heads(self) -> int:
        return self.hidden // 128


@dataclass(frozen=True)
class Piece:
    """One original module and the diffusers modules that hold its rows, with their row counts in units of `hidden`."""

    original: str
    diffusers: tuple[str, ...]
    rows: tuple[int, ...] = ()  # empty: one module, all rows
    swapped: bool = False  # the halves (shift, scale) change places

    def sizes(self, total: int, hidden: int) -> list[int]:
        """Row counts of the diffusers modules; the last takes what is left of `total`."""
        if len(self.diffusers) == 1:
            return [total]
        head = [r * hidden for r in self.rows[:-1]]
        return [*head, total - sum(head)]


def bare(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop ComfyUI's checkpoint prefixes from the keys."""
    for prefix in PREFIXES:
        if any(k.startswith(prefix) for k in state):
            return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    return dict(state)


def shape_of(state: Mapping[str, Tensor]) -> FluxShape:
    """Read a Flux.1 transformer's shape from its original-layout tensors (values are not looked at).

    Raises AtelierError that names what the tensors are when they are no Flux.1 transformer.
    """
    refuse_other_models(state)
    hidden, channels = state["img_in.weight"].shape
    return FluxShape(
        hidden=hidden,
        channels=channels,
        double=count_blocks(state, "double_blocks."),
        single=count_blocks(state, "single_blocks."),
        context=state["txt_in.weight"].shape[1],
        pooled=state["vector_in.in_layer.weight"].shape[1],
        guidance="guidance_in.in_layer.weight" in state,
        mlp=state["double_blocks.0.img_mlp.0.weight"].shape[0],
    )


def count_blocks(keys: Iterable[str], prefix: str) -> int:
    return 1 + max((int(k[len(prefix) :].split(".")[0]) for k in keys if k.startswith(prefix)), default=-1)


def refuse_other_models(state: Mapping[str, Tensor]) -> None:
    """Raise AtelierError that names the kind of model, unless the keys are an original-layout Flux.1 transformer's."""
    signs = {
        "double_stream_modulation_img.lin.weight": "a Flux.2 transformer",
        "transformer_blocks.0.attn.add_q_proj.weight": "a diffusers-layout transformer",
        "joint_blocks.0.x_block.attn.qkv.weight": "a Stable Diffusion 3 transformer",
        "input_blocks.0.0.weight": "a Stable Diffusion UNet",
        "decoder.conv_in.weight": "a VAE",
        "taesd_decoder.1.weight": "a tiny VAE (TAESD)",
        "text_model.encoder.layers.0.mlp.fc1.weight": "a CLIP text encoder",
        "encoder.block.0.layer.0.SelfAttention.q.weight": "a T5 text encoder",
    }
    for sign, name in signs.items():
        if sign in state:
            raise AtelierError(f"The model is {name}, not a Flux.1 transformer. Choose a Flux.1 diffusion model file.")
    if any(".lora_" in k or k.endswith(".alpha") for k in state):
        raise AtelierError("The file is a LoRA, not a Flux.1 transformer. Choose a Flux.1 diffusion model file.")
    needed = ("img_in.weight", "txt_in.weight", "vector_in.in_layer.weight", "double_blocks.0.img_mlp.0.weight")
    missing = [k for k in needed if k not in state]
    if missing:
        raise AtelierError(
            f"The model has {len(state)} tensors but no {missing[0]}, so it is not a whole Flux.1 transformer. "
            "Choose a Flux.1 diffusion model file, or download it again if it was cut short."
        )


def pieces(shape: FluxShape) -> list[Piece]:
    """Every module of the transformer, in both layouts."""
    table = [
        Piece("img_in", ("x_embedder",)),
        Piece("txt_in", ("context_embedder",)),
        Piece("final_layer.linear", ("proj_out",)),
        Piece("final_layer.adaLN_modulation.1", ("norm_out.linear",), swapped=True),
    ]
    embedders = {"time_in": "timestep_embedder", "vector_in": "text_embedder"}
    if shape.guidance:
        embedders["guidance_in"] = "guidance_embedder"
    for ours, theirs in embedders.items():
        table.append(Piece(f"{ours}.in_layer", (f"time_text_embed.{theirs}.linear_1",)))
        table.append(Piece(f"{ours}.out_layer", (f"time_text_embed.{theirs}.linear_2",)))
    for i in range(shape.double):
        table += _double_pieces(f"double_blocks.{i}", f"transformer_blocks.{i}")
    for i in range(shape.single):
        table += _single_pieces(f"single_blocks.{i}", f"single_transformer_blocks.{i}")
    return table


def _double_pieces(a: str, b: str) -> list[Piece]:
    return [
        Piece(f"{a}.img_mod.lin", (f"{b}.norm1.linear",)),
        Piece(f"{a}.txt_mod.lin", (f"{b}.norm1_context.linear",)),
        Piece(f"{a}.img_attn.qkv", tuple(f"{b}.attn.to_{c}" for c in "qkv"), (1, 1, 1)),
        Piece(f"{a}.txt_attn.qkv", tuple(f"{b}.attn.add_{c}_proj" for c in "qkv"), (1, 1, 1)),
        Piece(f"{a}.img_attn.proj", (f"{b}.attn.to_out.0",)),
        Piece(f"{a}.txt_attn.proj", (f"{b}.attn.to_add_out",)),
        Piece(f"{a}.img_mlp.0", (f"{b}.ff.net.0.proj",)),
        Piece(f"{a}.img_mlp.2", (f"{b}.ff.net.2",)),
        Piece(f"{a}.txt_mlp.0", (f"{b}.ff_context.net.0.proj",)),
        Piece(f"{a}.txt_mlp.2", (f"{b}.ff_context.net.2",)),
        Piece(f"{a}.img_attn.norm.query_norm", (f"{b}.attn.norm_q",)),
        Piece(f"{a}.img_attn.norm.key_norm", (f"{b}.attn.norm_k",)),
        Piece(f"{a}.txt_attn.norm.query_norm", (f"{b}.attn.norm_added_q",)),
        Piece(f"{a}.txt_attn.norm.key_norm", (f"{b}.attn.norm_added_k",)),
    ]


def _single_pieces(a: str, b: str) -> list[Piece]:
    return [
        Piece(f"{a}.modulation.lin", (f"{b}.norm.linear",)),
        Piece(f"{a}.linear1", (*(f"{b}.attn.to_{c}" for c in "qkv"), f"{b}.proj_mlp"), (1, 1, 1, 4)),
        Piece(f"{a}.linear2", (f"{b}.proj_out",)),
        Piece(f"{a}.norm.query_norm", (f"{b}.attn.norm_q",)),
        Piece(f"{a}.norm.key_norm", (f"{b}.attn.norm_k",)),
    ]


def swap_halves(rows: Tensor) -> Tensor:
    """Exchange the first and second half of the rows: shift and scale of the last modulation."""
    first, second = rows.chunk(2, 0)
    return torch.cat([second, first], 0)


def to_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename and split an original-layout transformer into diffusers' layout, bit for bit.

    Raises AtelierError if the tensors are not a Flux.1 transformer's.
    """
    state = bare(state)
    shape = shape_of(state)
    out = {}
    for piece in pieces(shape):
        for kind, names in (("weight", ("weight", "scale")), ("bias", ("bias",))):
            value = next((state[f"{piece.original}.{n}"] for n in names if f"{piece.original}.{n}" in state), None)
            if value is None:
                continue
            value = swap_halves(value) if piece.swapped else value
            for name, part in zip(piece.diffusers, value.split(piece.sizes(len(value), shape.hidden)), strict=True):
                out[f"{name}.{kind}"] = part.contiguous()
    return out


def to_original(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename and fuse a diffusers-layout transformer into the original layout, bit for bit."""
    shape = shape_of_diffusers(state)
    out = {}
    for piece in pieces(shape):
        for kind in ("weight", "bias"):
            if f"{piece.diffusers[0]}.{kind}" not in state:
                continue
            value = torch.cat([state[f"{name}.{kind}"] for name in piece.diffusers], 0)
            suffix = "scale" if kind == "weight" and value.dim() == 1 else kind
            out[f"{piece.original}.{suffix}"] = (swap_halves(value) if piece.swapped else value).contiguous()
    return out


def shape_of_diffusers(state: Mapping[str, Tensor]) -> FluxShape:
    """Read a Flux.1 transformer's shape from its diffusers-layout tensors."""
    if "x_embedder.weight" not in state or "transformer_blocks.0.ff.net.0.proj.weight" not in state:
        raise AtelierError("The tensors are not a diffusers Flux transformer's. Choose a folder saved by diffusers.")
    hidden, channels = state["x_embedder.weight"].shape
    return FluxShape(
        hidden=hidden,
        channels=channels,
        double=count_blocks(state, "transformer_blocks."),
        single=count_blocks(state, "single_transformer_blocks."),
        context=state["context_embedder.weight"].shape[1],
        pooled=state["time_text_embed.text_embedder.linear_1.weight"].shape[1],
        guidance="time_text_embed.guidance_embedder.linear_1.weight" in state,
        mlp=state["transformer_blocks.0.ff.net.0.proj.weight"].shape[0],
    )


def diffusers_config(shape: FluxShape) -> dict:
    """The arguments of diffusers' FluxTransformer2DModel for this shape."""
    return {
        "patch_size": 1,
        "in_channels": shape.channels,
        "num_layers": shape.double,
        "num_single_layers": shape.single,
        "attention_head_dim": 128,
        "num_attention_heads": shape.heads,
        "joint_attention_dim": shape.context,
        "pooled_projection_dim": shape.pooled,
        "guidance_embeds": shape.guidance,
        "axes_dims_rope": (16, 56, 56),
    }
