"""The options of a training run: the TOML tables, the command's flags and the node's widgets all come from here."""

from typing import Literal

from pydantic import Field, model_validator

from ..core.options import Options, flat, leaves

AdapterType = Literal["lora", "rslora", "dora", "lokr", "loha"]
Targets = Literal["attention", "attention+mlp", "all", "style blocks", "subject blocks"]
OptimizerType = Literal[
    "adamw", "adamw8bit", "paged_adamw8bit", "adafactor", "lion", "prodigy", "prodigy_plus", "schedule_free", "came"
]
Schedule = Literal[
    "constant", "linear", "cosine", "cosine_with_restarts", "cosine_with_min_lr", "polynomial", "inverse_sqrt",
    "warmup_stable_decay",
]  # fmt: skip
SigmaSampler = Literal["logit_normal", "uniform", "mode"]
Weighting = Literal["none", "cosmap", "sigma_sqrt", "sigma_squared"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]


class AdapterOptions(Options):
    """What is trained."""

    rank: int = Field(16, ge=1, le=1024, description="Rank of the LoRA: how much it can hold.")
    alpha: float = Field(16.0, gt=0, le=4096, description="Strength of the LoRA; it is scaled by alpha / rank.")
    targets: Targets = Field("attention+mlp", description="Which layers carry a LoRA.")
    adapter_type: AdapterType = Field(
        "lora", description="lora; rslora scales by alpha / sqrt(rank); dora trains magnitudes too; lokr and loha."
    )
    lokr_factor: int = Field(
        8, ge=-1, le=256, description="LoKr only: size of the small factor; -1 is the square root."
    )
    layer_rules: str = Field(
        "",
        max_length=20_000,
        description="Rank, alpha and rate by layer, one rule a line: pattern: rank=32 alpha=16 rate=0.5. rank=0 leaves out.",
    )


class OptimizerOptions(Options):
    """How the weights move: an optimiser and the course of its learning rate."""

    learning_rate: float = Field(1e-4, gt=0, le=10.0, description="Peak learning rate; 1 for the Prodigy optimisers.")
    schedule: Schedule = Field("cosine", description="How the learning rate falls after the warmup.")
    warmup: int = Field(20, ge=0, le=100_000, description="Steps over which the learning rate rises from zero.")
    weight_decay: float = Field(0.01, ge=0, le=1.0, description="Decoupled weight decay of the optimiser.")
    max_grad_norm: float = Field(1.0, ge=0, le=1000.0, description="Gradients are scaled down to this norm; 0 is off.")
    optimizer_type: OptimizerType = Field(
        "adamw", description="What moves the weights; some need a package of their own."
    )
    optimizer_arguments: str = Field(
        "", max_length=1000, description="More arguments for the optimiser, such as betas=(0.9, 0.99), d_coef=2."
    )
    schedule_arguments: str = Field(
        "", max_length=1000, description="More arguments for the schedule, such as num_cycles=3 or min_lr_rate=0.1."
    )


class ObjectiveOptions(Options):
    """What is minimised: the error of the velocity at random noise levels."""

    sigma_sampler: SigmaSampler = Field("logit_normal", description="How noise levels are drawn before the shift.")
    shift: Literal["resolution", "none", "constant"] = Field(
        "resolution",
        description="Shift noise levels by picture size as Flux does at inference, by shift_factor, or not.",
    )
    guidance: float = Field(1.0, ge=0, le=100, description="Guidance fed to models with a guidance embedding.")
    caption_dropout: float = Field(0.05, ge=0, le=1, description="Share of samples trained with an empty caption.")
    sigma_mean: float = Field(0.0, ge=-10, le=10, description="logit_normal only: mean before the sigmoid.")
    sigma_std: float = Field(
        1.0, gt=0, le=10, description="logit_normal only: deviation before the sigmoid; others call it sigmoid scale."
    )
    mode_scale: float = Field(1.29, ge=-1, le=1.75, description="mode only: how far the middle is preferred.")
    shift_factor: float = Field(
        3.0, gt=0, le=100, description="constant shift only: the factor; above 1 is more noise."
    )
    weighting: Weighting = Field("none", description="Weight of the loss by noise level, in velocity space.")
    loss: Literal["mse", "huber", "l1"] = Field("mse", description="How errors of the velocity are counted.")
    huber_delta: float = Field(0.5, gt=0, le=100, description="huber only: errors beyond this count linearly.")
    unmasked_weight: float = Field(
        0.0, ge=0, le=1, description="Masked loss only: weight of what lies outside the mask."
    )
    prior_weight: float = Field(
        0.0,
        ge=0,
        le=100,
        description="Keep what the model knows: weight of staying with it where the trigger is absent.",
    )
    regularisation_share: float = Field(
        0.5, ge=0, lt=1, description="Regularisation pictures only: their share of all batches."
    )


class DataOptions(Options):
    """How pictures become batches."""

    resolution: int = Field(512, ge=64, le=2048, multiple_of=16, description="Side in pixels of a square of the area.")
    buckets: bool = Field(True, description="Keep each picture's aspect ratio in buckets; off crops squares.")
    batch_size: int = Field(1, ge=1, le=256, description="Pictures per forward pass.")
    accumulation: int = Field(1, ge=1, le=256, description="Forward passes per optimiser step, over all processes.")
    trigger: str = Field("", max_length=200, description="Word put before every caption that lacks it; empty for none.")
    class_word: str = Field(
        "", max_length=200, description="What the trigger is, such as dog; takes its place where the prior is kept."
    )
    caption_lines: bool = Field(False, description="Each line of a caption is a caption of its own.")
    shuffled_captions: int = Field(
        0, ge=0, le=64, description="Further copies of each caption with its comma-separated parts in other orders."
    )
    kept_tags: int = Field(
        1, ge=0, le=64, description="Parts at the start of a caption that shuffling leaves in place."
    )
    mask: Literal["none", "file", "alpha"] = Field(
        "none", description="Where the loss counts: everywhere, in name.mask.png beside a picture, or in its alpha."
    )


class TrainOptions(Options):
    """A whole run."""

    steps: int = Field(1000, ge=1, le=1_000_000, description="Optimiser steps of the whole run.")
    seed: int = Field(0, ge=0, le=2**63 - 1, description="Seed of the adapter, the order, the noise and the dropout.")
    gradient_checkpointing: float = Field(
        -1.0,
        ge=-1,
        le=1,
        description="Share of blocks computed again in backward: 1 saves most memory, 0 is fastest, -1 what fits.",
    )
    precision: Precision = Field("auto", description="Precision of the computation; the LoRA itself is float32.")
    save_every: int = Field(100, ge=1, le=1_000_000, description="Steps between saved states; cancel saves too.")
    keep_states: int = Field(2, ge=1, le=1000, description="Saved states kept.")
    validate_every: int = Field(
        50,
        ge=0,
        le=1_000_000,
        description="Steps between validation losses, on pictures set aside or else on training pictures; 0 is off.",
    )
    validation_pictures: int = Field(4, ge=1, le=256, description="Pictures of the fixed validation set.")
    sample_every: int = Field(0, ge=0, le=1_000_000, description="Steps between sample pictures; 0 is off.")
    sample_prompt: str = Field(
        "", max_length=4000, description="Prompts of the samples, one a line; empty takes captions."
    )
    offload_activations: bool = Field(False, description="Keep what backward needs in RAM instead of on the device.")
    compile: bool = Field(False, description="Compile the blocks: slow to start, a little faster after.")
    ema_decay: float = Field(
        0.0, ge=0, lt=1, description="Moving average of the weights for samples, validation and the LoRA; 0 is off."
    )
    result: Literal["last", "best"] = Field(
        "last", description="Which weights become the LoRA: the last, or those with the lowest validation loss."
    )
    skip_limit: int = Field(
        5, ge=0, le=1000, description="Steps in a row that may be skipped for a runaway loss before rolling back."
    )
    rollbacks: int = Field(
        2, ge=0, le=100, description="Times the run may roll back and halve its rate before it stops."
    )
    tracker: Literal["none", "tensorboard", "wandb"] = Field(
        "none", description="Where metrics go beside metrics.jsonl; wandb sends them to its servers."
    )
    comment: str = Field("", max_length=2000, description="A note kept in the LoRA's header.")
    adapter: AdapterOptions = AdapterOptions()
    optimizer: OptimizerOptions = OptimizerOptions()
    objective: ObjectiveOptions = ObjectiveOptions()
    data: DataOptions = DataOptions()

    @model_validator(mode="after")
    def _refuse_what_does_nothing(self):
        values, defaults = flat(self), {name: field.default for name, field in leaves(TrainOptions).items()}
        for name, (other, needed) in NEEDS.items():
            if values[name] != defaults[name] and values[other] not in needed:
                raise ValueError(
                    f"{name} = {values[name]} does nothing while {other} is {values[other]}. "
                    f"Set {other} to {needed[0]}, or {name} back to {defaults[name] or 'its default'}"
                )
        if self.result == "best" and not self.validate_every:
            raise ValueError("result = best needs a validation loss. Set validate_every above 0")
        if self.data.kept_tags != 1 and not self.data.shuffled_captions:
            raise ValueError("kept_tags does nothing while shuffled_captions is 0. Set shuffled_captions above 0")
        return self


# An option that acts only with certain values of another: setting it elsewhere is a mistake, and is told as one.
NEEDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "sigma_mean": ("sigma_sampler", ("logit_normal",)),
    "sigma_std": ("sigma_sampler", ("logit_normal",)),
    "mode_scale": ("sigma_sampler", ("mode",)),
    "shift_factor": ("shift", ("constant",)),
    "huber_delta": ("loss", ("huber",)),
    "unmasked_weight": ("mask", ("file", "alpha")),
    "lokr_factor": ("adapter_type", ("lokr",)),
}
