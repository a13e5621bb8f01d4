"""Drawing pictures without ComfyUI: text to image with the training forward, image to image through diffusers."""

import torch
from PIL import Image
from torch import Tensor, nn

from ..core.errors import AtelierError
from ..core.flux import layout
from ..core.images import to_picture
from ..core.lora.factors import Factors
from ..core.lora.formats import to_layout
from ..core.lora.kinds import plain
from ..core.lora.record import Lora
from . import batches
from .encoders import FileEncoder
from .flux.view import TrainView, fitting_layer
from .models import ModelFiles, load_transformer, read_transformer
from .sampling import euler


class LoraLinear(nn.Module):
    """A Linear with a LoRA's delta added to what it gives; a DoRA's rows are scaled besides."""

    def __init__(self, base: nn.Module, factors: Factors, strength: float):
        super().__init__()
        folded = factors.folded()
        device = base.weight.device
        self.base = base
        self.register_buffer("up", (folded.up * strength).to(device), persistent=False)
        self.register_buffer("down", folded.down.to(device), persistent=False)
        self.register_buffer("gain", self._gain(folded), persistent=False)

    def _gain(self, folded: Factors) -> Tensor | None:
        """What a DoRA multiplies each row of weight and delta with, [out]."""
        if not folded.normed:
            return None
        like = torch.zeros((), device=self.base.weight.device)
        weight, _, release = self.base.cast(self.base.source, like)
        if folded.magnitude is None:
            gain = folded.dora_scale.to(like) / weight.norm(dim=1)
        else:
            gain = folded.magnitude.to(like) / (weight + self.up @ self.down).norm(dim=1)
        release()
        return gain

    def forward(self, x: Tensor) -> Tensor:
        change = ((x.float() @ self.down.T) @ self.up.T).to(x.dtype)
        if self.gain is None:
            return self.base(x) + change
        like = torch.zeros((), device=x.device, dtype=x.dtype)
        _, bias, release = self.base.cast(self.base.source, like)
        out = self.base(x) + change
        out = out * self.gain if bias is None else (out - bias) * self.gain + bias
        release()
        return out.to(x.dtype)


def apply_lora(tree: TrainView, lora: Lora, strength: float = 1.0) -> None:
    """Add a LoRA to a view in place, layer by layer.

    Raises AtelierError if a layer is not in the model or has another size, or for a DoRA at another strength than 1.
    """
    for name, layer in lora.modules.items():
        factors = layer if isinstance(layer, Factors) else plain(layer)
        if factors.normed and strength != 1.0:
            raise AtelierError(
                f"The LoRA is a DoRA, which is drawn at strength 1, not {strength}. Set the strength to 1."
            )
        base = fitting_layer(tree, name, factors)
        parent, _, child = name.rpartition(".")
        setattr(tree.get_submodule(parent), child, LoraLinear(base, factors, strength))


class Painter:
    """Text to image with a model from files, with or without a LoRA."""

    def __init__(self, files: ModelFiles, encoder: FileEncoder, lora: Lora | None = None, strength: float = 1.0):
        self.encoder = encoder
        self.view = load_transformer(files.transformer, encoder.device)
        if lora:
            apply_lora(self.view, lora, strength)

    @torch.no_grad()
    def draw(self, prompts: list[str], seeds: list[int], size: tuple[int, int], steps: int, guidance: float) -> Tensor:
        """Draw one picture per prompt, all at once where their texts have one length.

        size      width and height in pixels, multiples of 16
        guidance  fed to models with a guidance embedding
        ->        [B, 3, H, W] in 0..1 on the CPU
        """
        device, out = self.encoder.device, []
        texts = [self.encoder.encode_text(p) for p in prompts]
        width, height = size
        lengths = {len(t) for t, _ in texts}
        groups = [range(len(prompts))] if len(lengths) == 1 else [[i] for i in range(len(prompts))]
        for group in groups:
            noise = torch.stack([self.noise(seeds[i], height // 8, width // 8) for i in group]).to(device)
            states, pooled = (torch.stack([texts[i][k] for i in group]).to(device) for k in (0, 1))
            out.append(self.encoder.decode(euler(self._velocity(guidance), noise, states, pooled, steps)).cpu())
        return torch.cat(out)

    def _velocity(self, guidance: float):
        def velocity(latent: Tensor, sigma: Tensor, text: Tensor, pooled: Tensor) -> Tensor:
            given = torch.full((len(latent),), guidance, device=latent.device) if self.view.shape.guidance else None
            half = latent.device.type == "cuda"
            with torch.autocast(latent.device.type, torch.bfloat16, enabled=half):
                return self.view(latent, sigma, text, pooled, given).float()

        return velocity

    @staticmethod
    def noise(seed: int, h: int, w: int) -> Tensor:
        return torch.randn(16, h, w, generator=batches.generator("draw", seed))


def flux_pipeline(files: ModelFiles, encoder: FileEncoder, lora: Lora | None, strength: float):
    """diffusers' image-to-image pipeline over the files, with a LoRA loaded by diffusers itself."""
    import accelerate
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxImg2ImgPipeline, FluxTransformer2DModel

    state = read_transformer(files.transformer)
    shape = layout.shape_of(state)
    dtype = torch.bfloat16 if encoder.device.type == "cuda" else torch.float32
    state = unscaled(state, dtype)
    with accelerate.init_empty_weights(include_buffers=False):
        transformer = FluxTransformer2DModel(**layout.diffusers_config(shape))
    transformer.load_state_dict(layout.to_diffusers(state), assign=True)
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
    text = encoder.text
    pipe = FluxImg2ImgPipeline(
        scheduler, encoder.vae, text.clip, text.clip_tokenizer, text.t5, text.t5_tokenizer, transformer.to(dtype)
    ).to(encoder.device)
    pipe.set_progress_bar_config(disable=True)
    if lora:
        pipe.load_lora_weights(to_layout(lora, "diffusers", dtype), adapter_name="lora")
        pipe.set_adapters(["lora"], [strength])
    return pipe


def unscaled(state: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """A transformer's weights in one precision, the scales of scaled fp8 multiplied in.

    Raises AtelierError for a quantisation that has other parts.
    """
    odd = next((k for k in state if "comfy_quant" in k or k.endswith((".weight_scale", ".weight_scale_2"))), None)
    if odd:
        raise AtelierError(f"The model is quantised in a way that only ComfyUI reads ({odd}). Use its bf16 file here.")
    weights = {k: v for k, v in state.items() if not k.endswith((".scale_weight", ".scale_input", "scaled_fp8"))}
    out = {}
    for key, value in weights.items():
        scale = state.get(key.removesuffix(".weight") + ".scale_weight") if key.endswith(".weight") else None
        out[key] = value.to(dtype) if scale is None else value.to(dtype) * scale.to(dtype)
    return out


def stylise(
    pipe, pictures: list[Image.Image], prompts: list[str], amount: float, steps: int, seed: int, t5_length: int
) -> list[Image.Image]:
    """Draw pictures again from their own layout.

    amount     share of the way back to noise, above 0 and up to 1
    t5_length  tokens that T5 pads to
    Raises AtelierError for an amount outside that range.
    """
    if not 0 < amount <= 1:
        raise AtelierError(f"The strength is {amount}. Choose a value above 0 and up to 1.")
    out = []
    for i, picture in enumerate(pictures):
        width, height = (max(16, side // 16 * 16) for side in picture.size)
        drawn = pipe(
            prompt=prompts[i], image=picture.crop((0, 0, width, height)), width=width, height=height, strength=amount,
            num_inference_steps=max(steps, round(1 / amount + 0.5)), guidance_scale=3.5, max_sequence_length=t5_length,
            generator=torch.Generator().manual_seed(seed + i), output_type="pt",
        ).images[0]  # fmt: skip
        out.append(to_picture(drawn))
    return out
