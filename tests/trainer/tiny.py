"""Tiny random Flux models, the same for the same seed."""

import torch

from flux_atelier.core.flux.layout import FluxShape, diffusers_config, to_diffusers
from flux_atelier.trainer.flux.tree import FluxTree

SHAPE = FluxShape(hidden=256, double=2, single=2, channels=64, context=48, pooled=24, guidance=True, mlp=1024)


def tiny_tree(seed: int = 0, shape: FluxShape = SHAPE) -> FluxTree:
    """A random model whose every weight matters, norms included."""
    torch.manual_seed(seed)
    tree = FluxTree(shape)
    with torch.no_grad():
        for name, value in tree.named_parameters():
            if name.endswith("scale"):
                value.uniform_(0.5, 1.5)
            elif value.dim() == 2:
                value.normal_(0, 0.7 * value.shape[1] ** -0.5)
            else:
                value.normal_(0, 0.05)
    return tree.requires_grad_(False)


def tiny_batch(count: int = 2, seed: int = 1, size=(6, 4), words: int = 7, shape: FluxShape = SHAPE):
    """latent, noise, sigma, text, pooled, guidance."""
    rng = torch.Generator().manual_seed(seed)
    latent, noise = (torch.randn(count, 16, *size, generator=rng) for _ in range(2))
    sigma = torch.rand(count, generator=rng)
    text = torch.randn(count, words, shape.context, generator=rng)
    pooled = torch.randn(count, shape.pooled, generator=rng)
    return latent, noise, sigma, text, pooled, torch.full((count,), 1.0)


def diffusers_twin(tree: FluxTree):
    """The same weights in diffusers' own class."""
    from diffusers import FluxTransformer2DModel

    twin = FluxTransformer2DModel(**diffusers_config(tree.shape))
    twin.load_state_dict(to_diffusers(tree.state_dict()))
    return twin.requires_grad_(False).eval()


def diffusers_velocity(twin, latent, sigma, text, pooled, guidance):
    """diffusers' forward in our convention, packed and unpacked by its own pipeline's functions."""
    from diffusers import FluxPipeline

    b, c, h, w = latent.shape
    ids = FluxPipeline._prepare_latent_image_ids(b, h // 2, w // 2, latent.device, latent.dtype)
    out = twin(
        hidden_states=FluxPipeline._pack_latents(latent, b, c, h, w), encoder_hidden_states=text,
        pooled_projections=pooled, timestep=sigma, guidance=guidance, img_ids=ids,
        txt_ids=torch.zeros(text.shape[1], 3), return_dict=False,
    )[0]  # fmt: skip
    return FluxPipeline._unpack_latents(out, h * 8, w * 8, 8)
