"""One training in the graph: encode, plan, train, and keep what is trained whatever happens."""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ..core.dataset.record import Dataset
from ..core.files import digest_of, digest_tensors, remove_unfinished, write_text
from ..core.images import save_picture
from ..core.lora.formats import parse_lora, write_lora
from ..core.lora.record import Lora
from ..trainer.cache import Cache, Sample, encode, encode_regularisation, put_text, sample_prompts
from ..trainer.config import DataOptions, TrainOptions
from ..trainer.memory import Plan, plan_run
from ..trainer.run import Run, open_run
from . import host, panel
from .registry import note_made

LoraModel = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Sources:
    """What comes in by wires."""

    model: Any
    clip: Any
    vae: Any
    dataset: Dataset
    regularisation: Dataset | None = None
    start_from: LoraModel | None = None
    training_adapter: LoraModel | None = None

    def lora(self, name: str) -> Lora | None:
        """One of the two LoRAs, read; None where nothing is connected."""
        tensors = getattr(self, name)
        return parse_lora(tensors, {}, name) if tensors else None

    @property
    def fingerprints(self) -> tuple[str, str, str]:
        """Digests of the pictures, the model, and the LoRAs that the run begins with."""
        pictures = self.dataset.fingerprint
        if self.regularisation:
            pictures = digest_of(pictures, self.regularisation.fingerprint)
        given = [digest_tensors(t) if t else "" for t in (self.start_from, self.training_adapter)]
        return pictures, host.fingerprint(self.model), "-".join(given) if any(given) else ""


def open_cache() -> Cache:
    """The cache that all trainings in ComfyUI share."""
    return Cache(host.output_folder("flux_atelier", "cache"))


def encode_all(dataset: Dataset, items, node_id: str | None) -> list[Sample]:
    """Encode what the cache lacks, showing how far it is; a cancel loses nothing."""
    progress, samples = host.Progress(len(dataset.kept), node_id), []
    for item in items:
        samples.append(item.sample)
        progress.at(item.done)
        progress.tell({"phase": "encode", "step": item.done, "total": item.total})
    return samples


def encode_dataset(sources: Sources, options: DataOptions, cache: Cache, node_id: str | None) -> list[Sample]:
    encoder = host.GraphEncoder(sources.model, sources.clip, sources.vae)
    return encode_all(sources.dataset, encode(sources.dataset, encoder, options, cache), node_id)


class Job:
    """A training from its sources to its LoRA."""

    def __init__(self, sources: Sources, name: str, options: TrainOptions, node_id: str | None):
        self.sources, self.name, self.options, self.node_id = sources, name, options, node_id
        self.target = host.lora_file(name)
        self.encoder = host.GraphEncoder(sources.model, sources.clip, sources.vae)
        self.cache = open_cache()

    def run(self) -> tuple[Lora, Run]:
        """Train, or go on; raises AtelierError for what does not fit, before anything is encoded where possible."""
        from ..trainer.session import check_options

        shape = host.flux_shape(self.sources.model)
        check_options(self.options, shape)
        begin, assistant = self.sources.lora("start_from"), self.sources.lora("training_adapter")
        fingerprints, folder = self.sources.fingerprints, host.run_folder(self.name)
        with torch.inference_mode(False):
            samples = self._encode()
            empty, _ = put_text("", self.encoder, self.cache)
            prompts = sample_prompts(self.options, self.sources.dataset, self.encoder, self.cache)
            run = open_run(folder, self.name, self.options, *fingerprints)
            remove_unfinished(self.target)
            free, weights = host.make_room(self.sources.model)
            plan = plan_run(shape, weights, samples, self.options, host.training_device(), free)
            write_text(run.plan_file, plan.page)
            return self._train(samples, run, empty, prompts, plan, begin, assistant), run

    def _encode(self) -> list[Sample]:
        data, prior = self.options.data, self.options.objective.prior_weight > 0
        dataset, other = self.sources.dataset, self.sources.regularisation
        samples = encode_all(dataset, encode(dataset, self.encoder, data, self.cache, prior), self.node_id)
        if other:
            samples += encode_all(other, encode_regularisation(other, self.encoder, data, self.cache), self.node_id)
        return samples

    def _train(self, samples, run: Run, empty: str, prompts, plan: Plan, begin, assistant) -> Lora:
        from ..trainer.export import to_lora
        from ..trainer.loop import Session, train
        from ..trainer.session import Extras

        progress = host.Progress(self.options.steps, self.node_id)
        facts = {"run": self.name, "total": self.options.steps}
        progress.tell(facts | {"phase": "plan", "step": 0, "plan": plan.line}, now=True)
        required = plan.chosen.device_bytes
        with self._told_when_done(progress, facts), host.training(self.sources.model, required) as view:
            extras = self._extras(Extras.of(begin, assistant, plan.chosen))
            session = Session.start(view, samples, self.cache, empty, self.options, run, extras)
            session.check = host.check_cancel
            try:
                with panel.live(self.name) as wishes, closing(train(session)) as steps:
                    for step in steps:
                        asked = wishes.take()
                        drawn = self._picture(session, prompts, required, "sample" in asked)
                        progress.at(step.step)
                        told = facts | {"phase": "train", "time": time.time()} | drawn
                        told |= {k: v for k, v in vars(step).items() if v is not None}
                        progress.tell(told, now=bool(step.note or drawn or step.validation is not None))
                        if "save" in asked:
                            session.save()
                            self._keep(to_lora(session), run)
                        if "stop" in asked:
                            break
            finally:  # cancelled, out of memory or done: what is trained is a LoRA already
                lora = to_lora(session)
                if session.step:
                    self._keep(lora, run)
            return lora

    def _extras(self, extras):
        """What the run has besides its pictures; a job of another kind adds to it."""
        return extras

    @contextmanager
    def _told_when_done(self, progress: host.Progress, facts: dict) -> Iterator[None]:
        """Tell the browser last of all, when the run's folder says everything."""
        try:
            yield
        finally:
            progress.tell(facts | {"phase": "done", "step": self.options.steps, "time": time.time()}, now=True)

    def _keep(self, lora: Lora, run: Run) -> None:
        from ..trainer.report import run_curves

        write_lora(run.lora_file, lora)
        write_lora(self.target, lora)
        note_made(self.target, lora)
        if run.metrics():
            save_picture(run.folder / "curves.png", run_curves(run))

    def _picture(self, session, prompts, required: int, asked: bool) -> dict[str, str]:
        """Draw samples where they are due or asked for, from the same noise every time; names the file."""
        every = self.options.sample_every
        if not asked and (not every or session.step % every):
            return {}
        from ..trainer.preview import sample_grid

        def decode(latents: torch.Tensor) -> torch.Tensor:
            pixels = self.encoder.decode(latents)
            host.reload(self.sources.model, required)  # the VAE may have pushed some of it out
            return pixels

        sample_grid(session, prompts, decode)
        return {"file": session.run.sample_file(session.step).name}
