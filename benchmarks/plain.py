"""diffusers + peft as a contender: the plain loop of its example script for Flux, written anew."""

import time
from pathlib import Path

import torch

from . import flux_mid
from .measures import Turns, flops, kept_for_backward


def plain(folder: Path, steps: int, turns: Turns, kept: bool, words: int = flux_mid.SCRIPT_TEXT) -> dict:
    data = flux_mid.read(folder)
    twin = load_twin(folder)
    t5, clip = flux_mid.text_encoders()
    turns.ready()
    parameters = add_lora(twin)
    optimizer = torch.optim.AdamW(parameters, flux_mid.LEARNING_RATE, weight_decay=1e-4)
    twin.train()
    if not kept:
        twin.enable_gradient_checkpointing()
    rng = torch.Generator().manual_seed(0)
    order = [i for _ in range(steps) for i in torch.randperm(flux_mid.PICTURES, generator=rng).tolist()]

    def one_step(i: int) -> None:
        began = time.process_time()
        with torch.no_grad():
            states, pooled = flux_mid.encode(t5, clip, data["t5_ids"][i : i + 1, :words], data["clip_ids"][i : i + 1])
        turns.rest = time.process_time() - began
        latent = data["scaled"][i : i + 1].to(torch.bfloat16)
        noise = torch.randn(latent.shape, generator=rng).to(latent)
        sigma = torch.rand(1, generator=rng).to(latent)
        noised = (1 - sigma) * latent + sigma * noise
        with torch.autocast("cpu", torch.bfloat16):
            velocity = twin_velocity(twin, noised, sigma, states, pooled)
        loss = (velocity.float() - (noise - latent).float()).square().mean()
        loss.item()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    for step in range(steps):
        one_step(order[step])
        turns.step_done(step == steps - 1)
    facts = {"trained": sum(p.numel() for p in parameters)}
    facts["flops"] = flops(lambda: one_step(0))
    with torch.autocast("cpu", torch.bfloat16):
        given = (data[k][:1] for k in ("scaled", "states", "pooled"))
        latent, states, pooled = (t.to(torch.bfloat16) for t in given)
        facts["kept"] = kept_for_backward(
            lambda: twin_velocity(twin, latent, torch.tensor([0.5]), states, pooled), twin
        )
    twin.float().eval()
    twin.disable_gradient_checkpointing()
    facts["loss"] = flux_mid.velocity_error(lambda *given: twin_velocity(twin, *given), data)
    twin.disable_adapters()
    facts["before"] = flux_mid.velocity_error(lambda *given: twin_velocity(twin, *given), data)
    return facts


def short(folder: Path, steps: int, turns: Turns, kept: bool) -> dict:
    return plain(folder, steps, turns, kept, flux_mid.TEXT)


def load_twin(folder: Path):
    """The same weights as a diffusers model in bf16."""
    from diffusers import FluxTransformer2DModel
    from safetensors.torch import load_file

    from flux_atelier.core.flux.layout import diffusers_config, to_diffusers

    with torch.device("meta"):
        twin = FluxTransformer2DModel(**diffusers_config(flux_mid.shape()))
    state = {k: v.clone() for k, v in to_diffusers(load_file(folder / flux_mid.MODEL)).items()}
    twin.load_state_dict(state, assign=True)
    return twin.requires_grad_(False)


def add_lora(twin) -> list[torch.nn.Parameter]:
    """The example script's LoRA: its default targets, alpha as large as the rank, in the weights' own bf16."""
    from peft import LoraConfig

    attention = [f"attn.{name}" for name in ("to_k", "to_q", "to_v", "to_out.0")]
    attention += [f"attn.{name}" for name in ("add_k_proj", "add_q_proj", "add_v_proj", "to_add_out")]
    feed_forward = ["ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"]
    rank = flux_mid.RANK
    twin.add_adapter(
        LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=attention + feed_forward)
    )
    return [p for p in twin.parameters() if p.requires_grad]


def twin_velocity(twin, noised, sigma, states, pooled):
    from diffusers import FluxPipeline

    b, c, h, w = noised.shape
    out = twin(
        hidden_states=FluxPipeline._pack_latents(noised, b, c, h, w), encoder_hidden_states=states,
        pooled_projections=pooled, timestep=sigma, guidance=torch.ones(b),
        img_ids=FluxPipeline._prepare_latent_image_ids(b, h // 2, w // 2, noised.device, noised.dtype),
        txt_ids=torch.zeros(states.shape[1], 3, dtype=noised.dtype), return_dict=False,
    )[0]  # fmt: skip
    return FluxPipeline._unpack_latents(out, 8 * h, 8 * w, 8)
