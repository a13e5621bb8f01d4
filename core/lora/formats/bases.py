"""Which base model a LoRA is for, and what it is where it is for none that is known here."""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from ..record import Base
from .names import BASES, module_name

SIGNS = (  # what other files' keys look like, the most telling first
    (r"distilled_guidance_layer", "a LoRA for Chroma"),
    (r"(lora_unet__?|diffusion_model\.|^)blocks[._]\d+[._](self|cross)_attn", "a LoRA for Wan"),
    (r"double_blocks[._]\d+[._](img|txt)_attn_(qkv|proj)|refiner_blocks", "a LoRA for HunyuanVideo"),
    (r"transformer_blocks[._]\d+[._](img|txt)_(mlp|mod)", "a LoRA for Qwen-Image"),
    (r"layers[._]\d+[._](attention|feed_forward|adaLN)", "a LoRA for Z-Image or Lumina"),
    (r"(double|single)_stream_blocks", "a LoRA for HiDream"),
    (r"transformer_blocks[._]\d+[._]attn[12][._]", "a LoRA for LTX-Video or PixArt"),
    (r"model\.layers\.\d+\.(self_attn|mlp)", "a LoRA for a language model"),
    (r"^(decoder|encoder)\.(conv_in|up|down|mid)|^taesd_|^decoder\.layers\.\d+\.(conv|weight)|^\d+\.conv\.\d", "a VAE"),
    (r"emb_params|string_to_param", "an embedding (textual inversion)"),
    (r"(double_blocks|single_blocks)\.\d+\..*\.weight$", "a Flux transformer, not a LoRA"),
    (r"(input_blocks|down_blocks)\.\d+\..*\.weight$", "a Stable Diffusion checkpoint or ControlNet, not a LoRA"),
    (r"shared\.weight|text_model\.embeddings", "a text encoder, not a LoRA"),
)
NAMES: dict[Base, str] = {"flux1": "Flux.1", "flux2": "Flux.2", "sdxl": "SDXL", "sd3": "Stable Diffusion 3"}
SD3_WIDTHS, FLUX2_WIDTHS = (1536, 2432), (4096, 6144)
BASE_KEY = "flux_atelier.base"  # of a header, for LoRAs whose layers alone may not tell it
SECOND_CLIP = re.compile(r"(lora_te2_|text_encoder_2\.)text|text_encoders\.clip_g")  # which Flux has none of
SPECIFICATION = re.compile(r"flux[-_. ]?2|klein", re.IGNORECASE)

Parts = Mapping[str, Mapping[str, Tensor]]


def base_of(found: Parts, metadata: Mapping[str, str]) -> Base:
    """The base model of a LoRA's modules: by names that only one has, the header, and sizes; else Flux.1."""
    told_base: Base | None = next((base for base in BASES if base == metadata.get(BASE_KEY)), None)
    if told_base and any(module_name(m, told_base) for m in found):
        return told_base
    known = {base: [m for m in found if module_name(m, base)] for base in BASES}
    most = max(len(v) for v in known.values())
    likely: list[Base] = [base for base in BASES if len(known[base]) == most]
    if any(SECOND_CLIP.match(m) for m in found):
        likely = [base for base in likely if base in ("sdxl", "sd3")] or likely
    if len(likely) == 1:
        return likely[0]
    told = " ".join(metadata.get(k, "") for k in ("modelspec.architecture", "ss_base_model_version"))
    if "flux2" in likely and SPECIFICATION.search(told):
        return "flux2"
    if "sd3" in likely and re.search(r"stable-diffusion-v?3|sd3", told, re.IGNORECASE):
        return "sd3"
    return _by_size({m: found[m] for m in known[likely[0]]}, likely)


def _by_size(found: Parts, likely: list[Base]) -> Base:
    """Tell models of the same names apart by the layers' sizes."""
    widths = set()
    for module, parts in found.items():
        if "down" not in parts or "up" not in parts:
            continue
        out, width = parts["up"].shape[0], parts["down"].flatten(1).shape[1] if parts["down"].dim() > 1 else 0
        if re.search(r"linear1$|single_blocks_\d+_linear1$", module):
            widths.add(width)
            if "flux2" in likely and out == 9 * width:
                return "flux2"
        if re.search(r"(img|txt)_mlp[._]0$", module) and "flux2" in likely and out == 6 * width:
            return "flux2"
        if re.search(r"(qkv|to_[qkv]|add_[qkv]_proj|to_out([._]0)?|to_add_out|attn[._]proj)$", module):
            widths.add(width)
    if "sd3" in likely and widths & set(SD3_WIDTHS):
        return "sd3"
    if "flux2" in likely and widths & set(FLUX2_WIDTHS):
        return "flux2"
    return "flux1" if "flux1" in likely else likely[0]


def what_else(keys: Iterable[str]) -> str:
    """What a file is whose keys are no known base model's LoRA; empty where nothing tells."""
    keys = list(keys)
    for pattern, what in SIGNS:
        sign = re.compile(pattern)
        if any(sign.search(k) for k in keys):
            return what
    return ""
