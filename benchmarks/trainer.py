"""One training step beside diffusers + peft on the same weights, batch and adapters; CPU time of one thread.

hidden 512, 2 double and 4 single blocks, 144 image and 64 text tokens, batch 1, rank 16. CPU time, because the
machines are shared; the two sides take turns, so that both see the same noise.
"""

import statistics
import time

import torch

from .__main__ import Figure

STEPS = 8
IMAGE, TEXT = (24, 24), 64


def run() -> list[Figure]:
    from diffusers import FluxTransformer2DModel
    from peft import LoraConfig, inject_adapter_in_model

    from flux_atelier.core.flux.layout import FluxShape, diffusers_config, to_diffusers
    from flux_atelier.trainer import adapter
    from flux_atelier.trainer.config import AdapterOptions
    from flux_atelier.trainer.flux.forward import plan_checkpoints
    from flux_atelier.trainer.flux.tree import FluxTree
    from flux_atelier.trainer.flux.view import TrainView, cast_plain

    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = FluxShape(hidden=512, double=2, single=4, channels=64, context=256, pooled=64, guidance=True, mlp=2048)
    tree = FluxTree(shape).requires_grad_(False)
    twin = FluxTransformer2DModel(**diffusers_config(shape))
    twin.load_state_dict(to_diffusers(tree.state_dict()))
    split = r".*attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)|.*ff(_context)?\.net\.(0\.proj|2)|single.*proj_(mlp|out)"
    inject_adapter_in_model(LoraConfig(r=16, lora_alpha=16, target_modules=split), twin)
    view = TrainView(tree, shape, cast_plain, torch.device("cpu"))
    adapter.inject(view, AdapterOptions(rank=16), 0)
    given = _batch(shape)
    everything = plan_checkpoints(2, 4, 1.0)
    rows = [
        ("step", lambda: _ours(view, given), lambda: _theirs(twin, given)),
        ("step, all blocks checkpointed", lambda: _ours(view, given, everything), lambda: _theirs(twin, given, True)),
    ]
    figures = []
    for name, ours, theirs in rows:
        a, b = _alternate(ours, theirs)
        figures.append(Figure(name, a, b, "s", least=0.85))
    kept = [_saved(ours) for ours in (rows[0][1], rows[1][1])], [_saved(theirs) for theirs in (rows[0][2],)]
    figures.append(Figure("MB kept for backward", kept[0][0], kept[1][0], "MB", least=0.9))
    figures.append(Figure("MB kept, all blocks checkpointed", kept[0][1], kept[0][0], "MB", least=4))
    return figures


def _batch(shape):
    rng = torch.Generator().manual_seed(0)
    latent = torch.randn(1, 16, *IMAGE, generator=rng)
    return (
        latent,
        torch.rand(1, generator=rng),
        torch.randn(1, TEXT, shape.context, generator=rng),
        torch.randn(1, shape.pooled, generator=rng),
        torch.ones(1),
    )


def _ours(view, given, checkpointed=()):
    view(*given, checkpointed).square().mean().backward()


def _theirs(twin, given, checkpointing=False):
    from diffusers import FluxPipeline

    latent, sigma, text, pooled, guidance = given
    b, c, h, w = latent.shape
    twin.train(checkpointing)
    twin.enable_gradient_checkpointing() if checkpointing else twin.disable_gradient_checkpointing()
    twin(
        hidden_states=FluxPipeline._pack_latents(latent, b, c, h, w), encoder_hidden_states=text, pooled_projections=pooled,
        timestep=sigma, guidance=guidance, img_ids=FluxPipeline._prepare_latent_image_ids(b, h // 2, w // 2, "cpu", torch.float32),
        txt_ids=torch.zeros(TEXT, 3), return_dict=False,
    )[0].square().mean().backward()  # fmt: skip


def _alternate(ours, theirs) -> tuple[float, float]:
    """Median CPU seconds of each, taking turns."""
    times: tuple[list, list] = ([], [])
    for i in range(STEPS + 1):
        for into, work in zip(times, (ours, theirs), strict=True):
            began = time.process_time()
            work()
            if i:
                into.append(time.process_time() - began)
    return statistics.median(times[0]), statistics.median(times[1])


def _saved(work) -> float:
    """Megabytes that autograd keeps, weights that live anyway left out."""
    sizes: dict[int, int] = {}

    def keep(tensor):
        if (not isinstance(tensor, torch.nn.Parameter) and tensor.grad_fn is not None) or not tensor.requires_grad:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        work()
    return sum(sizes.values()) / 1e6
