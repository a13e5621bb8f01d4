"""Encoding and drawing with the graph's own CLIP, VAE and samplers."""

import comfy.sample
import comfy.sd
import comfy.utils
import torch
from torch import Tensor

from ...core.errors import AtelierError
from ...core.lora.formats import parse_lora
from ...core.lora.formats.bases import NAMES
from ...core.lora.formats.names import is_text
from ...core.lora.tiles import size_of
from .model import fingerprint
from .progress import check_cancel


class GraphEncoder:
    """Latents and text states from the graph's VAE and CLIP: an Encoder, see trainer/cache.py."""

    def __init__(self, model, clip, vae):
        self.model, self.clip, self.vae = model, clip, vae
        self.vae_id = fingerprint(vae.patcher)
        self.text_id = fingerprint(clip.patcher, clip.layer_idx, getattr(clip, "tokenizer_options", None))

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] in -1..1 -> [B, 16, H / 8, W / 8] in the model's own scale."""
        with torch.inference_mode():
            raw = self.vae.encode((pixels / 2 + 0.5).permute(0, 2, 3, 1))
            latent = self.model.model.process_latent_in(raw)
        if latent.shape[1] != 16:
            raise AtelierError(f"The VAE makes {latent.shape[1]} channels, Flux.1 needs 16. Load a Flux VAE.")
        return latent.clone()

    def decode(self, latents: Tensor) -> Tensor:
        """[B, 16, h, w] in the model's own scale -> [B, 3, 8 h, 8 w] in 0..1."""
        with torch.inference_mode():
            pixels = self.vae.decode(self.model.model.process_latent_out(latents.detach().float().cpu()))
        return pixels.clone().permute(0, 3, 1, 2).float()

    def encode_text(self, text: str) -> tuple[Tensor, Tensor]:
        """A prompt -> T5 states [N, D] and CLIP's pooled vector [P]."""
        with torch.inference_mode():
            states, extra = condition(self.clip, text)[0]
        if extra.get("pooled_output") is None:
            raise AtelierError(
                "The CLIP gives no pooled vector, so it is not Flux's. Load CLIP-L and T5-XXL of type flux."
            )
        return states[0].clone().float(), extra["pooled_output"][0].clone().float()


def condition(clip, text: str, guidance: float | None = None) -> list:
    """Encode a prompt as ComfyUI's own text node does, with guidance where it is given."""
    extra = {} if guidance is None else {"guidance": guidance}
    return clip.encode_from_tokens_scheduled(clip.tokenize(text), add_dict=extra)


def with_lora(model, lora: dict[str, Tensor], strength: float):
    """A clone of a MODEL with a LORA_MODEL applied.

    Raises AtelierError for a LoRA of another model, which ComfyUI would only log.
    """
    refuse_misfit(model, lora)
    return comfy.sd.load_lora_for_models(model, None, lora, strength, 0)[0]


def refuse_misfit(model, lora: dict[str, Tensor]) -> None:
    """Refuse a LoRA none of whose layers is the MODEL's, or one of which has another size."""
    record = parse_lora(dict(lora), getattr(lora, "metadata", {}), "The LoRA")
    inner, fitting = model.model.diffusion_model, 0
    for name, layer in record.modules.items():
        if is_text(name):
            fitting += 1
            continue
        try:
            module = inner.get_submodule(name)
        except AttributeError:
            continue
        fitting += 1
        mine, theirs = (getattr(module, "out_features", None), getattr(module, "in_features", None)), size_of(layer)
        if None not in mine and (mine[0] != theirs[0] or theirs[1] not in (None, mine[1])):
            raise AtelierError(
                f"{name} is {mine[0]} x {mine[1]} in the MODEL, and {theirs[0]} x {theirs[1] or mine[1]} in the LoRA. "
                "Take a LoRA that was made for this model."
            )
    if record.modules and not fitting:
        raise AtelierError(
            f"The LoRA is for {NAMES[record.base]}, and none of its layers is the MODEL's. Take a LoRA that was made for it."
        )


def sample(model, positive: list, latent: Tensor, seed: int, steps: int) -> Tensor:
    """Sample with ComfyUI's Euler sampler and simple schedule at cfg 1.

    latent  [B, 16, h, w] raw VAE scale; zeros for text to image
    ->      [B, 16, h, w] raw VAE scale
    """
    noise = comfy.sample.prepare_noise(latent, seed)
    bar = comfy.utils.PROGRESS_BAR_ENABLED
    return comfy.sample.sample(
        model, noise, steps, 1.0, "euler", "simple", positive, positive, latent,
        disable_pbar=not bar, seed=seed, callback=lambda *_: check_cancel(),
    )  # fmt: skip
