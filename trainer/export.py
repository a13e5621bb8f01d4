"""A trained adapter as a LoRA file with its provenance in the header, and the settings back out of such a header."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from ..core.errors import AtelierError
from ..core.evaluation.grid import running_mean
from ..core.lora.record import Lora
from ..core.options import flat, parse
from . import adapter
from .config import TrainOptions
from .session import Session

CONFIG = "flux_atelier.config"


def to_lora(session: Session) -> Lora:
    """The weights that a run stands for as a LoRA, with its training in the metadata."""
    with session.result() as step:
        layers = adapter.layers(session.tree)
    return Lora(layers, "kohya", provenance(session, step))


def provenance(session: Session, step: int) -> dict[str, str]:
    """The header's metadata in the ss_* and modelspec conventions, with the whole config and what it came to."""
    options, run, facts = session.options, session.run, session.run.facts()
    pictures = sum(s.split != "regularisation" for s in session.samples)
    dev = session.tree.shape.guidance
    said = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"flux-1-{'dev' if dev else 'schnell'}/lora",
        "modelspec.implementation": "flux_atelier",
        "modelspec.title": run.name,
        "modelspec.date": datetime.now(UTC).isoformat(timespec="seconds"),
        "modelspec.resolution": f"{options.data.resolution}x{options.data.resolution}",
        "modelspec.prediction_type": "flow",
        "modelspec.trigger_phrase": options.data.trigger,
        "modelspec.description": options.comment,
        "ss_base_model_version": "flux1",
        "ss_output_name": run.name,
        "ss_network_module": "networks.lora_flux",
        "ss_network_dim": options.adapter.rank,
        "ss_network_alpha": options.adapter.alpha,
        "ss_network_args": {"type": options.adapter.adapter_type, "targets": options.adapter.targets},
        "ss_optimizer": options.optimizer.optimizer_type,
        "ss_lr_scheduler": options.optimizer.schedule,
        "ss_lr_warmup_steps": options.optimizer.warmup,
        "ss_learning_rate": options.optimizer.learning_rate,
        "ss_steps": step,
        "ss_max_train_steps": options.steps,
        "ss_num_train_images": pictures,
        "ss_num_reg_images": len(session.samples) - pictures,
        "ss_batch_size_per_device": options.data.batch_size,
        "ss_gradient_accumulation_steps": options.data.accumulation,
        "ss_seed": options.seed,
        "ss_guidance_scale": options.objective.guidance if dev else "",
        "ss_timestep_sampling": options.objective.sigma_sampler,
        "ss_loss_type": options.objective.loss,
        "ss_training_comment": options.comment,
        "flux_atelier.dataset": facts.get("dataset", ""),
        "flux_atelier.model": facts.get("model", ""),
        "flux_atelier.losses": loss_summary(session, step),
        CONFIG: options.model_dump(),
    }
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in said.items() if v not in ("", None)}


def loss_summary(session: Session, step: int) -> dict[str, Any]:
    """What the run's losses came to: the first and last running mean, and the lowest validation loss with its step."""
    records = [r for r in session.run.metrics() if r["step"] <= step and not r.get("skipped")]
    means = running_mean([r["loss"] for r in records])
    found: dict[str, Any] = {"skipped_steps": session.guard.skipped, "roll_backs": session.guard.rolled_back}
    if means:
        found |= {"first": round(means[0], 6), "last": round(means[-1], 6)}
    if session.best:
        found |= {"best_validation": round(session.best[0], 6), "best_step": session.best[1]}
    return found


def settings_of(metadata: Mapping[str, str], name: str) -> dict[str, Any]:
    """The options that a LoRA of this pack was trained with, by their bare names.

    Raises AtelierError if the header has none.
    """
    if CONFIG not in metadata:
        maker = metadata.get("modelspec.implementation") or metadata.get("ss_network_module")
        told = f" It was made by {maker}." if maker else ""
        raise AtelierError(
            f"{name} does not say how it was trained.{told} Choose a LoRA that was trained with this pack."
        )
    return flat(parse(TrainOptions, json.loads(metadata[CONFIG]), name))
