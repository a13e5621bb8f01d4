"""One contender of the trainer's benchmark in a process of its own: `python -m benchmarks.contender NAME FOLDER STEPS`.

It loads its model, says so, and then trains one step each time its standard input says so, telling the CPU time that
the step took; in between it sleeps, so that contenders take turns on the same noise. At the end it tells its peak
memory beside the loaded model, its loss by the common judge and the arithmetic of one step.

ours            nodes.host.training and the pack's own loop on the MODEL that ComfyUI loaded; cached latents and text
core            ComfyUI's TrainLoraNode as it comes: defaults but for rank and steps; it is called, not copied
plain           diffusers' FluxTransformer2DModel with peft, trained as diffusers' example script for Flux does: bf16
                LoRA beside bf16 weights under autocast, its default targets, torch's AdamW as it comes, and the
                caption encoded by T5 and CLIP every step, padded as it pads. Latents are cached for it, which they are
                not by default.
short           the same with no more text than the others
The suffixes say what differs: -kept keeps every activation (no gradient checkpointing), -bypass is core's bypass_mode.
"""

import argparse
import contextlib
import os
import sys
from pathlib import Path

import torch

from . import flux_mid, plain
from .__main__ import load_package
from .measures import Turns, flops, kept_for_backward

NAMES = ("ours-kept", "ours", "core", "core-bypass", "plain-kept", "plain", "short-kept", "short")


def ours(folder: Path, steps: int, turns: Turns, kept: bool) -> dict:
    from flux_atelier.trainer.loop import Session, train

    data = flux_mid.read(folder)
    with opened_view(folder, turns) as view:
        session = Session.start(view, *samples_of(data, folder, kept, steps))
        for step in train(session):
            turns.step_done(step.step == steps)
        facts = {"loss": flux_mid.velocity_error(judged(view), data)}
        facts["trained"] = sum(p.numel() for p in session.parameters)
        facts |= weigh_ours(session, data)
        with torch.no_grad():
            for parameter in session.parameters:
                parameter.zero_()
        facts["before"] = flux_mid.velocity_error(judged(view), data)
    return facts


@contextlib.contextmanager
def opened_view(folder: Path, turns: Turns):
    """A TrainView of the MODEL that ComfyUI loads from the file; of the pack's own tree where there is no ComfyUI."""
    import peft  # noqa: F401 - what is imported counts as loaded
    import transformers.optimization  # noqa: F401

    if comfyui():
        with torch.inference_mode():  # as ComfyUI runs its nodes
            model = load_model(folder, torch.bfloat16)
        from flux_atelier.nodes import host

        turns.ready()
        with torch.inference_mode(), host.training(model) as view:
            yield view
        return
    from safetensors.torch import load_file

    from flux_atelier.trainer.flux.tree import FluxTree
    from flux_atelier.trainer.flux.view import TrainView, cast_plain

    with torch.device("meta"):
        tree = FluxTree(flux_mid.shape())
    tree.load_state_dict({k: v.clone() for k, v in load_file(folder / flux_mid.MODEL).items()}, assign=True)
    turns.ready()
    yield TrainView(tree.requires_grad_(False), flux_mid.shape(), cast_plain, torch.device("cpu"))


def samples_of(data: dict, folder: Path, kept: bool, steps: int):
    """What Session.start takes after the view."""
    from flux_atelier.core.options import nest, parse
    from flux_atelier.trainer.cache import Cache, Sample
    from flux_atelier.trainer.config import TrainOptions
    from flux_atelier.trainer.run import Run

    name = "ours-kept" if kept else "ours"
    cache, samples = Cache(folder / name / "cache"), []
    height, width = flux_mid.IMAGE
    for i in range(flux_mid.PICTURES):
        cache.put(f"latent{i}", data["scaled"][i])
        cache.put(f"text{i}", data["states"][i].half(), data["pooled"][i])
        samples.append(Sample(str(i), str(i), height, width, f"latent{i}", (f"text{i}",)))
    flat = {
        "steps": steps, "rank": flux_mid.RANK, "alpha": float(flux_mid.RANK), "learning_rate": flux_mid.LEARNING_RATE,
        "schedule": "constant", "warmup": 0, "precision": "bfloat16", "caption_dropout": 0.0, "validate_every": 0,
        "gradient_checkpointing": 0.0 if kept else 1.0, "save_every": 10_000,
    }  # fmt: skip
    options = parse(TrainOptions, nest(TrainOptions, flat), "the benchmark")
    run = Run(folder / name / "run", name)
    run.checkpoints.mkdir(parents=True)
    return samples, cache, "text0", options, run


def judged(view):
    return lambda latent, sigma, states, pooled: view(latent, sigma, states, pooled, torch.ones(1))


def weigh_ours(session, data: dict) -> dict:
    """The arithmetic of a forward and of a backward pass, and what is kept between them."""
    from flux_atelier.trainer import objective

    sigma, noise, out = torch.tensor([0.5]), torch.randn(1, 16, *flux_mid.IMAGE), []
    latent, states, pooled = (data[k][:1] for k in ("scaled", "states", "pooled"))

    def forward():
        out.append(session.velocity(objective.add_noise(latent, noise, sigma), sigma, states, pooled))
        return out[-1]

    kept = kept_for_backward(forward, session.tree)
    return {"kept": kept, "flops": flops(forward, lambda: out[-1].square().mean().backward())}


# --- ComfyUI core --------------------------------------------------------------------------------------------------------


def comfyui() -> Path | None:
    path = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "ComfyUI")
    return path if (path / "comfy_api" / "latest").is_dir() else None


def enter_comfyui() -> None:
    """ComfyUI on the CPU, with the attention that it uses on a GPU; its own CPU default is slower."""
    sys.path.insert(0, str(comfyui()))
    import comfy.options

    comfy.options.enable_args_parsing(False)
    from comfy.cli_args import args

    args.cpu = args.use_pytorch_cross_attention = True


def load_model(folder: Path, dtype: torch.dtype):
    """The MODEL from its file, every weight read; ComfyUI on a CPU would make float32 of it unless told."""
    import comfy.sd

    model = comfy.sd.load_diffusion_model(str(folder / flux_mid.MODEL), model_options={"dtype": dtype})
    for value in model.model.state_dict().values():
        value.flatten()[::512].float().sum()  # what is mapped from the file counts as loaded
    return model


def core(folder: Path, steps: int, turns: Turns, bypass: bool) -> dict:
    import comfy.utils
    import comfy_extras.nodes_train  # noqa: F401 - what is imported counts as loaded

    data = flux_mid.read(folder)
    with torch.inference_mode():  # as ComfyUI runs its nodes
        model = load_model(folder, torch.bfloat16)
        turns.ready()
        comfy.utils.set_progress_bar_global_hook(lambda value, total, *_, **__: turns.step_done(value == total))
        lora = train_lora_node(model, data, steps, bypass)
        comfy.utils.set_progress_bar_global_hook(None)
        counted = flops(lambda: train_lora_node(model, data, 1, bypass))
        base = load_model(folder, torch.float32)
    before, loss = judge_lora(base, None, data), judge_lora(base, lora, data)
    trained = sum(v.numel() for v in lora.values())
    return {"before": before, "loss": loss, "flops": counted, "trained": trained}


def train_lora_node(model, data: dict, steps: int, bypass: bool) -> dict:
    """Run the node with the defaults of its own schema, but for steps, rank and the seed."""
    from comfy_extras.nodes_train import TrainLoraNode

    schema = TrainLoraNode.define_schema()
    values = {i.id: i.default for i in schema.inputs if getattr(i, "default", None) is not None}
    values |= {"steps": steps, "rank": flux_mid.RANK, "bypass_mode": bypass}
    conditioning = [
        [[data["states"][i : i + 1], {"pooled_output": data["pooled"][i : i + 1], "guidance": 1.0}]]
        for i in range(flux_mid.PICTURES)
    ]
    latents = [{"samples": latent[None]} for latent in data["latents"]]
    single = {k: [v] for k, v in values.items()}
    return TrainLoraNode.execute(model=[model], latents=latents, positive=conditioning, **single).args[0]


def judge_lora(base, lora: dict | None, data: dict) -> float:
    """The judge's loss of a LORA_MODEL, put on float32 weights by ComfyUI's own loader."""
    from flux_atelier.nodes import host

    with torch.inference_mode():
        patched = base.clone() if lora is None else host.with_lora(base, {k: v.clone() for k, v in lora.items()}, 1.0)
        with host.training(patched) as view:
            return flux_mid.velocity_error(judged(view), data)


# --- diffusers and peft --------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("steps", type=int)
    given = parser.parse_args()
    torch.set_num_threads(1)
    turns = Turns()
    kind, _, suffix = given.name.partition("-")
    if kind in ("ours", "core") and comfyui():
        enter_comfyui()
    load_package()
    contender = {"ours": ours, "core": core, "plain": plain.plain, "short": plain.short}[kind]
    facts = contender(given.folder, given.steps, turns, suffix in ("kept", "bypass"))
    turns.say(**facts, peak=turns.peak)


if __name__ == "__main__":
    main()
