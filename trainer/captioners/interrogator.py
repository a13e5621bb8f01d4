"""Style, medium and artist of a picture, by comparing it with the words of a vocabulary (zero-shot).

Any folder with a CLIP or SigLIP model does. The words lie in vocabulary.json, which a person may copy and edit: axes
with templates and entries, each entry with one phrase or more. Where no entry stands out the answer is none; how far
one must stand out can be fitted to pictures whose entry is known.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.optimize import minimize_scalar
from torch import Tensor

from ...core.errors import AtelierError

VOCABULARY = Path(__file__).with_name("vocabulary.json")


@dataclass(frozen=True)
class Axis:
    """One question with its possible answers: templates with {}, and each entry's phrases."""

    templates: tuple[str, ...]
    entries: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Calibration:
    """What turns logits into probabilities, and the probability below which nothing is said."""

    temperature: float = 1.0
    threshold: float = 0.5


@dataclass(frozen=True)
class Verdict:
    """The likeliest entry with its probability; `name` is "" where none stands out."""

    name: str
    likeliest: str
    probability: float


def read_vocabulary(file: Path = VOCABULARY) -> dict[str, Axis]:
    """Read the axes of a vocabulary.

    Raises AtelierError that names the axis which is not as it should be.
    """
    try:
        axes = json.loads(Path(file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AtelierError(f"There is no file {file}. Give the path of a vocabulary.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise AtelierError(f"{file} is not JSON ({error}). Correct that place.") from None
    return {name: _axis(name, axis, Path(file)) for name, axis in axes.items()}


def _axis(name: str, axis: Any, file: Path) -> Axis:
    try:
        templates = tuple(axis["templates"])
        entries = {entry: tuple(phrases) for entry, phrases in axis["entries"].items()}
    except (KeyError, TypeError, AttributeError):
        templates, entries = (), {}
    whole = templates and len(entries) > 1 and all(entries.values()) and all("{}" in t for t in templates)
    if not whole:
        raise AtelierError(
            f"{file.name}: {name} needs templates with {{}} and at least two entries with phrases. Write it like vocabulary.json."
        )
    return Axis(templates, entries)


def probabilities(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Softmax over the last axis.

    logits       [..., K] float
    temperature  above 0; higher is less sure
    ->           [..., K] float64 that sums to 1
    """
    scaled = np.asarray(logits, np.float64) / temperature
    raised = np.exp(scaled - scaled.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def calibrate(logits: np.ndarray, labels: np.ndarray, accuracy: float = 0.8) -> Calibration:
    """Fit how sure the answers may be (Guo et al. 2017, temperature scaling) and when to say nothing (Geifman and
    El-Yaniv 2017, selective classification).

    logits    [N, K] of pictures whose entry is known
    labels    [N] int, their entries
    accuracy  0..1, share of the answers given that shall be right; as many as possible are given
    ->        threshold 1 if no share of answers is right that often
    Raises AtelierError if there are fewer than ten pictures.
    """
    if len(labels) < 10:
        raise AtelierError(f"{len(labels)} labelled pictures are too few to calibrate with. Give ten or more.")
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        chances = probabilities(logits, float(np.exp(log_temperature)))
        return -float(np.log(chances[rows, labels] + 1e-12).mean())

    temperature = float(np.exp(minimize_scalar(loss, bounds=(-5, 5), method="bounded").x))
    chances = probabilities(logits, temperature)
    top = chances.max(-1)
    order = np.argsort(-top, kind="stable")
    right = np.cumsum(chances.argmax(-1)[order] == np.asarray(labels)[order])
    ends = np.append(top[order][:-1] > top[order][1:], True)  # equal probabilities are answered together
    good = np.flatnonzero(ends & (right / (rows + 1) >= accuracy))
    return Calibration(temperature, float(top[order][good[-1]]) if len(good) else 1.0)


def judge(logits: np.ndarray, names: Sequence[str], calibration: Calibration) -> Verdict:
    """The entry that stands out among logits [K], or none."""
    chances = probabilities(logits, calibration.temperature)
    best = int(chances.argmax())
    sure = chances[best] >= calibration.threshold
    return Verdict(names[best] if sure else "", names[best], float(chances[best]))


class Interrogator:
    """A CLIP or SigLIP model beside a vocabulary; the words are looked at once."""

    def __init__(self, folder: Path, device: torch.device, vocabulary: Mapping[str, Axis] | None = None):
        """Open a model folder; raises AtelierError if it holds no model that compares pictures with words."""
        self.device = device
        self.axes = dict(read_vocabulary() if vocabulary is None else vocabulary)
        self.model, self.processor = _open(Path(folder))
        self.model.to(device)
        self.words = {name: self._entries(axis) for name, axis in self.axes.items()}

    @torch.inference_mode()
    def logits(self, pictures: Sequence[Image.Image]) -> dict[str, np.ndarray]:
        """By axis, how well each entry fits each picture: cosines times the model's own scale, [N, K] float32."""
        batch = self.processor(images=list(pictures), return_tensors="pt").to(self.device)
        seen = _unit(self.model.get_image_features(**batch))
        scale = self.model.logit_scale.exp()
        return {name: (scale * seen @ words.T).float().cpu().numpy() for name, words in self.words.items()}

    def verdicts(
        self, pictures: Sequence[Image.Image], calibrations: Mapping[str, Calibration] | None = None
    ) -> list[dict[str, Verdict]]:
        """Each picture's verdict on every axis; axes without a calibration are answered from a half upwards."""
        known = calibrations or {}
        logits = self.logits(pictures)
        return [
            {
                name: judge(logits[name][i], list(axis.entries), known.get(name, Calibration()))
                for name, axis in self.axes.items()
            }
            for i in range(len(pictures))
        ]

    @torch.inference_mode()
    def _entries(self, axis: Axis) -> Tensor:
        """[K, D]: the mean direction of an entry's phrases in every template (Radford et al. 2021, section 3.1.4)."""
        rows = []
        for phrases in axis.entries.values():
            texts = [template.replace("{}", phrase) for template in axis.templates for phrase in phrases]
            rows.append(_directions(self.model, self.processor, texts, self.device).mean(0))
        return torch.nn.functional.normalize(torch.stack(rows), dim=-1)


class Likeness:
    """How like a picture a phrase is, by a CLIP or SigLIP model: the cosine of their directions."""

    def __init__(self, folder: Path, device: torch.device):
        """Open a model folder; raises AtelierError if it holds no model that compares pictures with words."""
        self.device = device
        self.model, self.processor = _open(Path(folder))
        self.model.to(device)
        self._words: dict[str, Tensor] = {}

    @torch.inference_mode()
    def to(self, picture: Image.Image) -> Callable[[str], float]:
        """The likeness to one picture, in [-1, 1], of any phrase."""
        batch = self.processor(images=[picture], return_tensors="pt").to(self.device)
        seen = _unit(self.model.get_image_features(**batch))[0]
        return lambda phrase: float(self._direction(phrase) @ seen)

    @torch.inference_mode()
    def _direction(self, phrase: str) -> Tensor:
        if phrase not in self._words:
            self._words[phrase] = _directions(self.model, self.processor, [f"a picture of {phrase}"], self.device)[0]
        return self._words[phrase]


def check_clip(folder: Path) -> None:
    """Raise AtelierError if a folder holds no CLIP or SigLIP model, from its small files only."""
    config = folder / "config.json"
    if not config.is_file():
        raise AtelierError(f"{folder} has no config.json. Give a folder of a CLIP or SigLIP model.")
    kind = json.loads(config.read_text(encoding="utf-8")).get("model_type", "")
    if kind not in ("clip", "siglip", "siglip2"):
        raise AtelierError(f"{folder.name} is a {kind or 'model without a type'}. Give a CLIP or SigLIP model.")
    if not any(folder.glob("*.safetensors")):
        raise AtelierError(f"{folder} has no .safetensors file; pickled weights are not opened. Get the safetensors.")


def _open(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoProcessor

    check_clip(folder)
    offline = {"local_files_only": True, "trust_remote_code": False}
    model = AutoModel.from_pretrained(folder, use_safetensors=True, **offline)
    return model.eval(), AutoProcessor.from_pretrained(folder, **offline)


def _directions(model: Any, processor: Any, texts: list[str], device: torch.device) -> Tensor:
    """[N, D] float32, unit length, of N texts."""
    # SigLIP was trained on texts of 64 tokens whatever their length, CLIP on masked ones.
    padding = "max_length" if model.config.model_type.startswith("siglip") else True
    batch = processor(text=texts, padding=padding, truncation=True, return_tensors="pt").to(device)
    return _unit(model.get_text_features(**batch))


def _unit(features: Any) -> Tensor:
    pooled = getattr(features, "pooler_output", features)  # transformers gave the bare tensor before 5
    return torch.nn.functional.normalize(pooled.float(), dim=-1)
