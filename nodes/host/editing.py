"""Editing through SamplerCustomAdvanced: a guider with two texts, samplers that follow both, and a guide for layout.

Nothing of the model is exchanged. A guider's prediction gives the velocity, as Flux predicts along straight lines, and a
sampler of its own starts at the picture where ComfyUI's would start at noise.
"""

from collections.abc import Callable

import comfy.model_sampling
import comfy.samplers
from torch import Tensor

from ...core.counting import counted
from ...core.errors import AtelierError
from ...core.style.edit import (
    Edit,
    FlowEditOptions,
    InversionOptions,
    Velocity,
    flow_edit,
    invert_and_edit,
)
from ...core.style.structure import StructureOptions, from_strength, keep_structure
from .progress import check_cancel

SIDE = "flux_atelier.side"  # which of the two texts a prediction is asked for
LEAST = 1e-3  # noise level at which level 0 is asked: the velocity is a difference divided by it


class EditGuider(comfy.samplers.CFGGuider):
    """Predicts under the target's text, and under the source's where a sampler asks for that."""

    def __init__(self, model, source: list, target: list):
        super().__init__(model)
        self.inner_set_conds({"source": source, "target": target})

    def predict_noise(self, x: Tensor, timestep: Tensor, model_options: dict = {}, seed: int | None = None) -> Tensor:  # noqa: B006
        side = model_options.get("transformer_options", {}).get(SIDE, "target")
        return comfy.samplers.sampling_function(
            self.inner_model, x, timestep, None, self.conds[side], 1.0, model_options=model_options, seed=seed
        )


class EditSampler(comfy.samplers.Sampler):
    """A sampler that starts at the picture: it is given the latent and the noise apart, neither mixed nor scaled."""

    def __init__(self, run: Callable[[Edit, Tensor, int], Tensor], steps: Callable[[Tensor], int]):
        self.run, self.steps = run, steps

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):  # ComfyUI names and orders these
        if not isinstance(model_wrap, EditGuider):
            raise AtelierError(
                f"This sampler needs two texts, and {type(model_wrap).__name__} has one. Connect an Edit Guider."
            )
        done, total = 0, self.steps(sigmas)

        def report(latent: Tensor) -> None:
            nonlocal done
            if callback:
                callback(done, latent, latent, total)
            done += 1

        sides = [velocity(model_wrap, extra_args, side) for side in ("source", "target")]
        edit = Edit(latent_image, sigmas, *sides, where=denoise_mask, report=report)
        return self.run(edit, noise, extra_args["seed"])


def velocity(guider: EditGuider, extra_args: dict, side: str) -> Velocity:
    """What a guider predicts under one of its texts, as a velocity."""
    options = extra_args["model_options"]
    options = options | {"transformer_options": options["transformer_options"] | {SIDE: side}}

    def at(latent: Tensor, sigma: float) -> Tensor:
        check_cancel()
        level = max(sigma, LEAST)
        denoised = guider(latent, latent.new_full((len(latent),), level), options, extra_args["seed"])
        return (latent - denoised) / level

    return at


def edit_guider(model, source: list, target: list) -> EditGuider:
    """A guider with two texts; raises AtelierError for a model that is no flow model."""
    if not isinstance(model.get_model_object("model_sampling"), comfy.model_sampling.CONST):
        kind = type(model.model).__name__
        raise AtelierError(
            f"The MODEL ({kind}) does not go from noise to picture in straight lines. Load a Flux model."
        )
    return EditGuider(model, source, target)


def flow_edit_sampler(options: FlowEditOptions) -> EditSampler:
    """FlowEdit for an EditGuider; its noise is drawn from the seed of the NOISE that is connected."""
    return EditSampler(
        lambda edit, noise, seed: flow_edit(edit, options, seed),  # noqa: ARG005
        lambda sigmas: len(from_strength(sigmas, options.strength)) - 1,
    )


def inversion_sampler(options: InversionOptions) -> EditSampler:
    """RF-inversion for an EditGuider; gamma draws to the NOISE that is connected."""

    def run(edit: Edit, noise: Tensor, seed: int) -> Tensor:
        if options.gamma and options.strength and not noise.any():
            raise AtelierError(
                "gamma draws to the noise, and the noise is empty. Connect Random Noise, or set gamma to 0."
            )
        return invert_and_edit(edit, options, noise)

    return EditSampler(run, lambda sigmas: 2 * (len(from_strength(sigmas, options.strength)) - 1))


def guide_structure(model, latent: Tensor, options: StructureOptions):
    """A clone of a MODEL whose predictions keep the coarse shapes of a latent.

    latent  [1 or B, C, h, w] raw VAE scale
    Raises AtelierError where the latent has other channels than the model.
    """
    content = in_model_scale(model, latent)
    guided = model.clone()

    def guide(args: dict) -> Tensor:
        # The way along the source's text describes the picture as it is and needs no guide.
        if args["model_options"].get("transformer_options", {}).get(SIDE) == "source":
            return args["denoised"]
        denoised = args["denoised"]
        if len(content) not in (1, len(denoised)):
            raise AtelierError(
                f"There are {len(content)} latents whose layout is kept, for {counted(len(denoised), 'picture')}. "
                "Give one, or one for each."
            )
        return keep_structure(denoised, content, float(args["sigma"].flatten()[0]), options)

    guided.set_model_sampler_post_cfg_function(guide)
    return guided


def in_model_scale(model, latent: Tensor) -> Tensor:
    """A latent as a MODEL sees it; raises AtelierError where it is another model's."""
    channels = model.model.latent_format.latent_channels
    if latent.shape[1] != channels:
        raise AtelierError(
            f"The latent has {latent.shape[1]} channels and the MODEL {channels}. Encode the picture with the MODEL's VAE."
        )
    return model.model.process_latent_in(latent.float())
