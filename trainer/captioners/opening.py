"""Captioners that are opened when the first picture is asked about: a job that has nothing to do loads no model."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image

from ...core.errors import AtelierError
from .endpoint import Endpoint
from .families import read_family
from .job import Captioner
from .ledger import check_author
from .options import EndpointOptions, TaggerOptions, VisionOptions
from .prompts import Ask
from .tagger import Tagger, read_tags


class WhenAsked:
    """A captioner by its name, default prompt and settings; `open` makes it when it is first asked.

    Raises AtelierError for a name that a model's captions cannot have.
    """

    def __init__(self, name: str, prompt: str, settings: dict, open: Callable[[], Captioner]):
        check_author(name)
        self.name, self.prompt, self.settings = name, prompt, settings
        self._open, self.opened = open, None

    def caption(self, pictures: Sequence[Image.Image], asks: Sequence[Ask]) -> list[str]:
        """One text a picture; raises what opening or asking raises."""
        self.opened = self.opened or self._open()
        return self.opened.caption(pictures, asks)

    @property
    def notes(self) -> list[str]:
        """What a person should know after the job."""
        limit = getattr(self.opened, "limit", sys.maxsize)
        return [f"Memory ran out; it went on with {limit} pictures at once. Lower batch_size."] * (limit < sys.maxsize)


def vision_captioner(folder: Path, options: VisionOptions, device: Callable[[], torch.device], name="") -> WhenAsked:
    """A vision-language model from a folder, looked at now and loaded when it is asked.

    device  gives the device when the model is loaded; the place to free memory first
    name    author of the captions; empty for the folder's name
    Raises AtelierError if a file is missing, or the model cannot be used.
    """
    from .vision import VisionCaptioner

    folder = Path(folder)
    prompt = read_family(folder).prompt
    settings = _known_as(name, folder.name, options.settings)
    return WhenAsked(name or folder.name, prompt, settings, lambda: VisionCaptioner(folder, options, device()))


def tagger_captioner(folder: Path, options: TaggerOptions, name="") -> WhenAsked:
    """A tagger from a folder; raises AtelierError if one of its two files is missing."""
    folder = Path(folder)
    check_tagger(folder)
    settings = _known_as(name, folder.name, options.settings)
    return WhenAsked(name or folder.name, Tagger.prompt, settings, lambda: Tagger(folder, options))


def check_tagger(folder: Path) -> None:
    """Raise AtelierError if a tagger's folder lacks its model or its tags."""
    read_tags(folder / "selected_tags.csv")
    if not (folder / "model.onnx").is_file():
        raise AtelierError(f"There is no file {folder / 'model.onnx'}. Copy the tagger's whole folder.")


def endpoint_captioner(options: EndpointOptions, name="") -> WhenAsked:
    """A model behind an address; raises AtelierError if the address is not one, or another machine's unasked."""
    endpoint = Endpoint(options)
    settings = _known_as(name, options.model, endpoint.settings)
    return WhenAsked(name or options.model, endpoint.prompt, settings, lambda: endpoint)


def _known_as(name: str, model: str, settings: dict) -> dict:
    """Under a name of a person's own, captions of different models must not pass for each other."""
    return settings | {"model": model} if name and name != model else settings
