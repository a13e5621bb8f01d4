"""Which keys ComfyUI's own loader reads: less than is read here, and what it does not know it leaves out."""

import re

from ..record import Base
from .names import generalise, is_text, module_name, part_of

# Of ComfyUI's weight adapters; other adapter names, biases of B and peft's magnitudes are not among them.
READ = re.compile(
    r"\.lora_(up|down)\.weight|\.lora_[AB](\.default)?\.weight|\.lora_[AB]|[._]lora\.(up|down)\.weight"
    r"|\.lora_linear_layer\.(up|down)\.weight|\.lora_mid\.weight|\.alpha|\.dora_scale|\.diff|\.diff_b|\.w_norm|\.b_norm"
    r"|\.lokr_\w+|\.hada_\w+|\.oft_blocks|\.rescale"
)
SPLIT: dict[Base, tuple[str, ...]] = {  # what may stand before diffusers' names
    "flux1": ("transformer.", "", "lora_transformer_", "lycoris_"),
    "flux2": ("transformer.", "", "lora_transformer_", "lycoris_"),
    "sd3": ("transformer.", "base_model.model.", "lora_transformer_", "lycoris_"),
    "sdxl": ("lora_unet_", "lycoris_"),
}
TEXT = ("lora_te_", "lora_te1_", "lora_te2_", "lora_te3_", "text_encoders.")


def read_by_comfyui(key: str, base: Base) -> bool:
    """Whether ComfyUI's loader takes a tensor's key for what it is here. Seen in ComfyUI 0.33."""
    module, part = part_of(key)
    place = module_name(module, base) if part else None
    if place is None or not READ.fullmatch(key[len(module) :]):
        return False
    if is_text(place.module):
        clip = module.startswith(("text_encoder.", "text_encoder_2.")) and not place.module.startswith("t5xxl")
        return clip or module.startswith(TEXT)
    if place.count == 0:
        return module in ("lora_unet_" + place.module.replace(".", "_"), f"diffusion_model.{place.module}")
    name = place.piece.diffusers[place.first].replace("#", generalise(module)[1])
    spelled = {p + (name.replace(".", "_") if p.endswith("_") else name) for p in SPLIT[base]}
    if base == "sdxl":
        old = name.replace(".to_", ".processor.to_").removesuffix(".0")
        spelled |= {old, f"unet.{old}"}
    return module in spelled
