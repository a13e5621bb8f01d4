"""The layouts that people exchange LoRAs in, as data.

*kohya*            fused, with `.alpha`; the default: ComfyUI's weight loader, its bypass loader and diffusers read it right
*comfy*            ComfyUI's generic names, fused, with `.alpha`
*core*             what ComfyUI's own saving node writes: generic names, the scale folded in, no alpha
*diffusers*        split; the scale folded into B, because `.alpha` and the header's alpha are each read by one side only
*diffusers_alpha*  the same names with `.alpha`: ai-toolkit, SimpleTuner
*onetrainer*       split, underscored, with `.alpha`
*lycoris*          SimpleTuner's LyCORIS: split, underscored, with `.alpha`
*bare*             diffusers' names without a prefix: DiffSynth
*peft*             raw peft: diffusers' names behind base_model.model.; ComfyUI loads none of it
*bfl*              Black Forest Labs' names without a prefix; ComfyUI loads none of it
*xlabs*            attention only, by processor; ComfyUI loads it where every block is there
"""

from dataclasses import dataclass
from typing import Literal

from ..record import Base, Layout


@dataclass(frozen=True)
class Scheme:
    """How a layout writes keys: a prefix, whose names, the separator, the factors' endings, and whether alpha is a key."""

    prefix: str
    names: Literal["original", "diffusers"]
    separator: str
    down: str
    up: str
    alpha: bool
    comfy: bool = True  # ComfyUI loads it
    diffusers: bool = True  # diffusers loads it

    def key(self, name: str) -> str:
        """A module's key from its dotted name."""
        return self.prefix + (name if self.separator == "." else name.replace(".", "_"))


AB = (".lora_A.weight", ".lora_B.weight")
UP_DOWN = (".lora_down.weight", ".lora_up.weight")
SCHEMES: dict[Layout, Scheme] = {
    "kohya": Scheme("lora_unet_", "original", "_", *UP_DOWN, alpha=True),
    "comfy": Scheme("diffusion_model.", "original", ".", *AB, alpha=True, diffusers=False),
    "core": Scheme("diffusion_model.", "original", ".", *UP_DOWN, alpha=False),
    "diffusers": Scheme("transformer.", "diffusers", ".", *AB, alpha=False),
    "diffusers_alpha": Scheme("transformer.", "diffusers", ".", *AB, alpha=True),
    "onetrainer": Scheme("lora_transformer_", "diffusers", "_", *UP_DOWN, alpha=True, diffusers=False),
    "lycoris": Scheme("lycoris_", "diffusers", "_", *UP_DOWN, alpha=True, diffusers=False),
    "bare": Scheme("", "diffusers", ".", *AB, alpha=False, diffusers=False),
    "peft": Scheme("base_model.model.", "diffusers", ".", *AB, alpha=False, comfy=False, diffusers=False),
    "bfl": Scheme("", "original", ".", *AB, alpha=False, comfy=False, diffusers=False),
    "xlabs": Scheme("", "original", ".", ".down.weight", ".up.weight", alpha=False, comfy=False),
}
# What each layout puts before the text encoders' names: CLIP-L, CLIP-G, T5.
KOHYA_TEXT = {"clip_l": "lora_te1_", "clip_g": "lora_te2_", "t5xxl": "lora_te3_"}
COMFY_TEXT = {e: f"text_encoders.{e}.transformer." for e in ("clip_l", "clip_g", "t5xxl")}
DIFFUSERS_TEXT = {"clip_l": "text_encoder.", "clip_g": "text_encoder_2.", "t5xxl": "text_encoder_2."}


def scheme_of(layout: Layout, base: Base) -> Scheme:
    """A layout's scheme for a base model; SDXL's denoiser is a unet, not a transformer."""
    scheme = SCHEMES[layout]
    if base == "sdxl" and scheme.prefix in ("transformer.", "lora_transformer_"):
        prefix = "unet." if scheme.separator == "." else "lora_unet_"
        return Scheme(prefix, scheme.names, scheme.separator, scheme.down, scheme.up, scheme.alpha)
    return scheme


def text_key(module: str, scheme: Scheme, base: Base) -> str:
    """The key of a text encoder's module, which begins with the encoder's name."""
    encoder, _, name = module.partition(".")
    if scheme.separator == "_":
        return KOHYA_TEXT[encoder] + name.replace(".", "_")
    if scheme.names == "original":
        return COMFY_TEXT[encoder] + name
    return ("text_encoder_3." if base == "sd3" and encoder == "t5xxl" else DIFFUSERS_TEXT[encoder]) + name


def layout_of(keys: list[str]) -> Layout:
    """The layout whose keys most of these are: by prefix, names and endings; kohya where there is nothing to tell by."""
    best, most = "kohya", -1
    alphas = any(k.endswith(".alpha") for k in keys)
    for layout, scheme in SCHEMES.items():
        if scheme.prefix:
            mine = [k for k in keys if k.startswith(scheme.prefix)]
        else:
            mine = [k for k in keys if not k.startswith(tuple(s.prefix for s in SCHEMES.values() if s.prefix))]
        split = [k for k in mine if "transformer_blocks" in k or "attn.to_" in k or "proj_mlp" in k or "ff.net" in k]
        told = split if scheme.names == "diffusers" else [k for k in mine if k not in set(split)]
        ended = [k for k in told if k.endswith((scheme.down, scheme.up))]
        if layout == "xlabs":
            ended = [k for k in ended if ".processor." in k]
        score = 4 * len(ended) + 2 * len(told) + (alphas == scheme.alpha)
        if score > most:
            best, most = layout, score
    return best
