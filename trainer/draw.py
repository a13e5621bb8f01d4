"""Drawing pictures without ComfyUI: text to image with the training forward; restyling and editing through diffusers."""

import torch
from einops import rearrange
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from ..core.errors import AtelierError
from ..core.flux import layout
from ..core.images import to_picture, to_tensor
from ..core.lora.factors import Factors
from ..core.lora.formats import to_layout
from ..core.lora.kinds import plain
from ..core.lora.record import Lora
from ..core.options import Options, parse
from ..core.style.edit import Edit, FlowEditOptions, InversionOptions, Velocity, flow_edit, invert_and_edit, redraw
from ..core.style.structure import TOKEN, blended, continued, free_places, from_strength, layout_kept, with_structure
from . import batches
from .encoders import FileEncoder
from .flux.forward import to_patches
from .flux.view import TrainView, fitting_layer
from .models import ModelFiles, load_transformer, read_transformer
from .sampling import euler, sigma_schedule


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


class Restyling(Options):
    """How a picture is drawn again."""

    strength: float = Field(
        0.6, ge=0, le=1, description="Share of the steps back to noise: 0 keeps the picture, 1 forgets it."
    )
    structure: float = Field(
        0.3, ge=0, le=1, description="How far the coarse shapes follow the picture: 0 off, 1 fully."
    )
    structure_until: float = Field(0.3, ge=0, le=1, description="Noise level down to which they do: 0 to the end.")
    steps: int = Field(20, ge=1, le=1000, description="Sampling steps of the whole way.")
    guidance: float = Field(3.5, ge=0, le=100, description="Flux guidance.")
    seed: int = Field(0, ge=0, description="Seed of the noise.")


class Editing(Options):
    """Two texts, and how a picture goes from one to the other."""

    source: str
    target: str
    options: FlowEditOptions | InversionOptions
    steps: int = Field(28, ge=1, le=1000, description="Sampling steps of the whole way.")
    seed: int = Field(0, ge=0, description="Seed of the noise.")
    source_guidance: float = Field(1.5, ge=0, le=100, description="Flux guidance under the source's text.")
    target_guidance: float = Field(5.5, ge=0, le=100, description="Flux guidance under the target's text.")


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


class PipelineArtist:
    """Draws pictures again and edits them with the parts of a diffusers pipeline, one picture at a time."""

    def __init__(self, pipe, t5_length: int):
        """Take a pipeline's parts.

        pipe       from flux_pipeline
        t5_length  tokens that T5 pads to
        """
        self.pipe, self.t5_length = pipe, t5_length

    def velocity(self, prompt: str, guidance: float) -> Velocity:
        """What the transformer predicts under a prompt, for latents [1, 16, h, w] in the model's own scale."""
        device, transformer = self.pipe.device, self.pipe.transformer
        with torch.no_grad():
            states, pooled, text_places = self.pipe.encode_prompt(prompt, None, max_sequence_length=self.t5_length)
        given = torch.full((1,), guidance, device=device) if transformer.config.guidance_embeds else None

        @torch.no_grad()
        def at(latent: Tensor, sigma: float) -> Tensor:
            h, w = (side // 2 for side in latent.shape[-2:])
            places = torch.cartesian_prod(torch.tensor([0]), torch.arange(h), torch.arange(w)).to(states)
            out = transformer(
                hidden_states=to_patches(latent).to(states), timestep=torch.full((1,), sigma, device=device),
                guidance=given, encoder_hidden_states=states, pooled_projections=pooled, txt_ids=text_places,
                img_ids=places, return_dict=False,
            )[0]  # fmt: skip
            return rearrange(out.float(), "b (h w) (c p q) -> b c (h p) (w q)", h=h, w=w, p=2, q=2)

        return at

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """[B, 3, H, W] in 0..1 -> [B, 16, H / 8, W / 8] in the model's own scale, the mode where the VAE is uncertain."""
        vae = self.pipe.vae
        found = vae.encode((pictures * 2 - 1).to(self.pipe.device, vae.dtype))
        latent = found.latent_dist.mode() if hasattr(found, "latent_dist") else found.latents
        return (latent.float() - (vae.config.shift_factor or 0)) * vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """[B, 16, h, w] in the model's own scale -> [B, 3, 8 h, 8 w] in 0..1 on the CPU."""
        vae = self.pipe.vae
        raw = latents / vae.config.scaling_factor + (vae.config.shift_factor or 0)
        return (vae.decode(raw.to(vae.dtype)).sample.float() / 2 + 0.5).clamp(0, 1).cpu()

    def stylise(
        self, picture: Tensor, prompt: str, how: Restyling, mask: Tensor | None = None, sigmas: Tensor | None = None
    ) -> Tensor:
        """Draw a picture again from its own layout.

        picture  [3, H, W] in 0..1
        mask     [1, H, W] in 0..1, where it is drawn again
        sigmas   noise levels of the whole way; those of the picture's size if None
        ->       [3, H, W] in 0..1
        """
        sigmas = levels_for(picture, how.steps) if sigmas is None else sigmas
        levels = from_strength(sigmas, how.strength)
        if len(levels) == 1:
            return picture
        clean = self.encode(continued(picture[None]))
        field = self.velocity(prompt, how.guidance)
        if how.structure:
            field = with_structure(
                field, clean, layout_kept(how.structure, how.structure_until, tuple(picture.shape[1:]))
            )
        edit = Edit(clean, sigmas, field, field, latent_where(mask))
        return over(picture, self.decode(redraw(edit, levels, first_noise(clean, how.seed))), mask)

    def edit(self, picture: Tensor, how: Editing, mask: Tensor | None = None, sigmas: Tensor | None = None) -> Tensor:
        """Change what two texts differ in, by FlowEdit or by RF-inversion, as the options' kind says.

        picture  [3, H, W] in 0..1
        mask     [1, H, W] in 0..1, where it is edited
        sigmas   noise levels of the whole way; those of the picture's size if None
        ->       [3, H, W] in 0..1
        """
        clean = self.encode(continued(picture[None]))
        sides = self.velocity(how.source, how.source_guidance), self.velocity(how.target, how.target_guidance)
        levels = levels_for(picture, how.steps) if sigmas is None else sigmas
        edit = Edit(clean, levels, *sides, where=latent_where(mask))
        if isinstance(how.options, FlowEditOptions):
            latent = flow_edit(edit, how.options, how.seed)
        else:
            latent = invert_and_edit(edit, how.options, first_noise(clean, how.seed))
        return over(picture, self.decode(latent), mask)


def levels_for(picture: Tensor, steps: int) -> Tensor:
    """Flux's noise levels for a picture [3, H, W], whose number of tokens shifts them."""
    height, width = (-(-side // TOKEN) for side in picture.shape[-2:])
    return sigma_schedule(steps, height * width)


def first_noise(like: Tensor, seed: int) -> Tensor:
    """Noise as ComfyUI and diffusers draw it from a seed."""
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed)).to(like)


def latent_where(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else free_places(continued(mask[None]))


def over(picture: Tensor, drawn: Tensor, mask: Tensor | None) -> Tensor:
    """A picture [3, H, W] as it was drawn, [1, 3, H' >= H, W' >= W], where a mask [1, H, W] is white."""
    return blended(picture, drawn[0, :, : picture.shape[1], : picture.shape[2]], mask)


def stylise(
    pipe, pictures: list[Image.Image], prompts: list[str], amount: float, steps: int, seed: int, t5_length: int
) -> list[Image.Image]:
    """Draw pictures again from their own layout, the seed rising by one each.

    amount     share of the steps that are gone back to noise, 0..1
    t5_length  tokens that T5 pads to
    Raises AtelierError for an amount outside that range.
    """
    artist, out = PipelineArtist(pipe, t5_length), []
    for i, (picture, prompt) in enumerate(zip(pictures, prompts, strict=True)):
        how = parse(Restyling, {"strength": amount, "steps": steps, "seed": seed + i}, "Stylise")
        out.append(to_picture(artist.stylise(to_tensor(picture), prompt, how)))
    return out
