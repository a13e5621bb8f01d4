"""Vision-language models from a folder: one batched path for every family that transformers knows.

At temperature 0 a picture's caption does not depend on the others of its batch, but for rounding in half precision:
decoder-only models are padded on the left, and models that go on from a text see only pictures with the same text
together.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ...core.errors import AtelierError
from .chat import ChatTexts
from .families import Family, read_family
from .options import VisionOptions
from .processors import load_processor
from .prompts import Ask, clean

log = logging.getLogger("flux_atelier")


class VisionCaptioner:
    """A model that writes about pictures. `name` is the author of its captions, `prompt` what it is asked by default."""

    def __init__(self, folder: Path, options: VisionOptions, device: torch.device):
        """Open a model folder; raises AtelierError if something in it is missing or does not fit."""
        folder = Path(folder)
        self.options, self.device, self.name = options, device, folder.name
        self.family: Family = read_family(folder)
        self.prompt = self.family.prompt
        self.dtype = _dtype(options.precision, device)
        self.processor = load_processor(folder, self.family.model_type)
        self.model = _load_model(folder, self.dtype).to(device)
        self.limit = sys.maxsize  # pictures per batch that memory is known to hold
        decoder_only = not getattr(self.model.config, "is_encoder_decoder", False)
        self.processor.tokenizer.padding_side = "left" if decoder_only else "right"
        self.chat = ChatTexts(self.processor, folder.name) if self.family.protocol == "chat" else None

    @property
    def settings(self) -> dict:
        """What changes an answer besides what is asked."""
        return self.options.settings

    def caption(self, pictures: Sequence[Image.Image], asks: Sequence[Ask]) -> list[str]:
        """Answer the last turn asked about each picture.

        pictures  RGB, any sizes
        asks      one a picture, all with as many turns
        ->        one text a picture
        Raises AtelierError if the family cannot be asked so, or one picture alone needs more memory than there is.
        """
        for ask in asks:
            self.family.check(ask)
        small = [_fitted(picture, self.options.longest_side) for picture in pictures]
        answers: list[tuple[str, ...]] = [()] * len(small)
        for _ in range(max((len(ask.turns) for ask in asks), default=0)):
            texts = [self._text(ask, said) for ask, said in zip(asks, answers, strict=True)]
            found = self._by_text(small, texts) if self.family.protocol == "prefix" else self._in_pieces(small, texts)
            answers = [(*said, clean(text)) for said, text in zip(answers, found, strict=True)]
        return [said[-1] for said in answers]

    def _text(self, ask: Ask, answers: tuple[str, ...]) -> str:
        return self.chat.text(ask, answers) if self.chat else ask.turns[0]

    def _by_text(self, pictures: list, texts: list[str]) -> list[str]:
        answers = [""] * len(texts)
        for text in dict.fromkeys(texts):
            places = [i for i, other in enumerate(texts) if other == text]
            for i, answer in zip(
                places, self._in_pieces([pictures[i] for i in places], [text] * len(places)), strict=True
            ):
                answers[i] = answer
        return answers

    def _in_pieces(self, pictures: list, texts: list[str]) -> list[str]:
        answers: list[str] = []
        while len(answers) < len(pictures):
            piece = slice(len(answers), min(len(answers) + self.limit, len(pictures)))
            try:
                found = self._answer(pictures[piece], texts[piece])
            except RuntimeError as error:
                if not isinstance(error, torch.OutOfMemoryError) and "out of memory" not in str(error):
                    raise
                found = []  # what the error holds on to must be gone before the next try
            if not found:
                self._halve(piece.stop - piece.start)
            answers += found
        return answers

    def _halve(self, size: int) -> None:
        if size == 1:
            raise AtelierError(
                f"{self.name} needs more memory for one picture than {self.device} has left. "
                "Lower longest_side, choose a smaller model, or free memory."
            )
        self.limit = size // 2
        log.warning("memory ran out with %d pictures; going on with %d. Lower batch_size.", size, self.limit)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def _answer(self, pictures: list, texts: list[str]) -> list[str]:
        batch = self._encode(pictures, texts).to(self.device)
        batch = {
            k: v.to(self.dtype) if isinstance(v, torch.Tensor) and v.is_floating_point() else v
            for k, v in batch.items()
        }
        sampled = self.options.temperature > 0
        how: dict[str, Any] = {"max_new_tokens": self.options.max_tokens, "do_sample": sampled}
        how |= {"num_beams": self.options.beams}
        if sampled:
            how |= {"temperature": self.options.temperature, "top_p": self.options.top_p}
        gpus = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=gpus, enabled=sampled):
            if sampled:
                torch.manual_seed(self.options.seed)
            written = self.model.generate(**batch, **how)
        return self._decode(_without_prompt(written, batch.get("input_ids")), texts)

    def _encode(self, pictures: list, texts: list[str]) -> Any:
        protocol, tokenizer = self.family.protocol, self.processor.tokenizer
        if protocol == "prefix" and not texts[0]:
            return self.processor(images=pictures, return_tensors="pt")
        if self.family.model_type == "git":  # its end token after the prompt would end the caption there
            texts = [(tokenizer.cls_token or "") + text for text in texts]
            return self.processor(text=texts, images=pictures, return_tensors="pt", add_special_tokens=False)
        if protocol != "chat":
            return self.processor(text=texts, images=pictures, return_tensors="pt", padding=True)
        # The template may have written the first token already; the tokenizer must not write it again.
        begun = bool(tokenizer.bos_token) and texts[0].startswith(tokenizer.bos_token)
        more = {"add_special_tokens": False} if begun else {}
        return self.processor(
            text=texts, images=[[picture] for picture in pictures], return_tensors="pt", padding=True, **more
        )

    def _decode(self, written: torch.Tensor, texts: list[str]) -> list[str]:
        answers = self.processor.batch_decode(written, skip_special_tokens=True)
        if self.family.protocol == "prefix":
            return [_after(answer.strip(), text) for answer, text in zip(answers, texts, strict=True)]
        return answers


def _dtype(precision: str, device: torch.device) -> torch.dtype:
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return getattr(torch, precision)


def _load_model(folder: Path, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForImageTextToText

    model, told = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=dtype, local_files_only=True, trust_remote_code=False, use_safetensors=True,
        ignore_mismatched_sizes=True, output_loading_info=True,
    )  # fmt: skip
    lacking = sorted(str(key) for key in [*told["missing_keys"], *told["mismatched_keys"]])
    if lacking:
        raise AtelierError(
            f"The weights of {folder.name} lack {len(lacking)} that the model needs, such as {lacking[0]}. "
            "Copy the folder again, or choose the version of this model made for transformers."
        )
    return model.eval()


def _fitted(picture: Image.Image, longest: int) -> Image.Image:
    if not longest or max(picture.size) <= longest:
        return picture
    small = picture.copy()
    small.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return small


def _without_prompt(written: torch.Tensor, prompt: torch.Tensor | None) -> torch.Tensor:
    """Some models give back the prompt before the answer, some do not: cut it only where it is there."""
    if prompt is None or written.shape[1] < prompt.shape[1]:
        return written
    length = prompt.shape[1]
    return written[:, length:] if torch.equal(written[:, :length], prompt) else written


def _after(answer: str, prompt: str) -> str:
    return answer[len(prompt) :].strip() if prompt and answer.casefold().startswith(prompt.casefold()) else answer
