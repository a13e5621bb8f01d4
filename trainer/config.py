"""The options of a training run: the TOML tables, the command's flags and the node's widgets all come from here."""

from typing import Literal

from pydantic import Field

from ..core.options import Options

Targets = Literal["attention", "attention+mlp", "all"]
Schedule = Literal["constant", "linear", "cosine"]
SigmaSampler = Literal["logit_normal", "uniform"]
Precision = Literal["auto", "float32", "bfloat16"]


class AdapterOptions(Options):
    """What is trained."""

    rank: int = Field(16, ge=1, le=1024, description="Rank of the LoRA: how much it can hold.")
    alpha: float = Field(16.0, gt=0, le=4096, description="Strength of the LoRA; it is scaled by alpha / rank.")
    targets: Targets = Field("attention+mlp", description="Which layers carry a LoRA.")


class OptimizerOptions(Options):
    """How the weights move: AdamW with a learning-rate schedule."""

    learning_rate: float = Field(1e-4, gt=0, le=1.0, description="Peak learning rate of AdamW.")
    schedule: Schedule = Field("cosine", description="How the learning rate falls after the warmup.")
    warmup: int = Field(20, ge=0, le=100_000, description="Steps over which the learning rate rises from zero.")
    weight_decay: float = Field(0.01, ge=0, le=1.0, description="Decoupled weight decay of AdamW.")
    max_grad_norm: float = Field(1.0, ge=0, le=1000.0, description="Gradients are scaled down to this norm; 0 is off.")


class ObjectiveOptions(Options):
    """What is minimised: the squared error of the velocity at random noise levels."""

    sigma_sampler: SigmaSampler = Field("logit_normal", description="How noise levels are drawn before the shift.")
    shift: Literal["resolution", "none"] = Field(
        "resolution", description="Shift noise levels by picture size as Flux does at inference, or not."
    )
    guidance: float = Field(1.0, ge=0, le=100, description="Guidance fed to models with a guidance embedding.")
    caption_dropout: float = Field(0.05, ge=0, le=1, description="Share of samples trained with an empty caption.")


class DataOptions(Options):
    """How pictures become batches."""

    resolution: int = Field(512, ge=64, le=2048, multiple_of=16, description="Side in pixels of a square of the area.")
    buckets: bool = Field(True, description="Keep each picture's aspect ratio in buckets; off crops squares.")
    batch_size: int = Field(1, ge=1, le=256, description="Pictures per forward pass.")
    accumulation: int = Field(1, ge=1, le=256, description="Forward passes per optimiser step.")
    trigger: str = Field("", max_length=200, description="Word put before every caption that lacks it; empty for none.")


class TrainOptions(Options):
    """A whole run."""

    steps: int = Field(1000, ge=1, le=1_000_000, description="Optimiser steps of the whole run.")
    seed: int = Field(0, ge=0, le=2**63 - 1, description="Seed of the adapter, the order, the noise and the dropout.")
    gradient_checkpointing: float = Field(
        1.0, ge=0, le=1, description="Share of blocks computed again in backward: 1 saves most memory, 0 is fastest."
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
    sample_prompt: str = Field("", max_length=4000, description="Prompt of the samples; empty takes a caption.")
    adapter: AdapterOptions = AdapterOptions()
    optimizer: OptimizerOptions = OptimizerOptions()
    objective: ObjectiveOptions = ObjectiveOptions()
    data: DataOptions = DataOptions()
