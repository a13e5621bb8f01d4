"""Latents and text states on disk, keyed by what they are made from and found by sample, never by step.

A latent's key is the picture's bytes, its bucket and the VAE; a text's key is the caption and the text encoders. So an
edited caption encodes that text again and nothing else, and two runs share what they have in common.
"""

import logging
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..core.dataset.buckets import Bucket, choose_bucket, make_buckets
from ..core.dataset.captions import CaptionPlan, prior_caption, training_captions
from ..core.dataset.folder import open_mask, open_picture
from ..core.dataset.record import Caption, Companion, Dataset, Row
from ..core.dataset.replay import replay, replay_beside
from ..core.dataset.scan import open_header
from ..core.errors import AtelierError
from ..core.files import check_tensors, digest_of, read_tensors, write_tensors
from ..core.images import fit_to, to_tensor
from .config import DataOptions, TrainOptions

log = logging.getLogger("flux_atelier")


class Encoder(Protocol):
    """Makes latents and text states; the graph's VAE and CLIP, or diffusers and transformers."""

    vae_id: str
    text_id: str

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] in -1..1 -> [B, 16, H / 8, W / 8] in the model's own scale."""
        ...

    def encode_text(self, text: str) -> tuple[Tensor, Tensor]:
        """A prompt -> T5 states [N, D] and CLIP's pooled vector [P]."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """[B, 16, h, w] in the model's own scale -> [B, 3, 8 h, 8 w] in 0..1."""
        ...


@dataclass(frozen=True)
class Sample:
    """One training picture: where its latent and its texts lie in the cache."""

    id: str
    name: str
    height: int
    width: int
    latent: str
    texts: tuple[str, ...]
    split: str = "train"  # train, validation, test, or regularisation
    priors: tuple[str, ...] = ()  # the same texts without the trigger, where the prior is kept
    mask: str = ""
    control: str = ""
    repeats: int = 1  # how often an epoch shows it

    @property
    def tokens(self) -> int:
        return self.height * self.width // 4


class Cache:
    """A folder of tensors by key, with those used last kept in memory up to a limit."""

    def __init__(self, folder: Path, limit: int = 2 << 30):
        """Open a cache; `limit` is in bytes of memory."""
        self.folder, self.limit = Path(folder), limit
        self._held: OrderedDict[str, tuple[Tensor, ...]] = OrderedDict()
        self._bytes = 0

    def _hold(self, key: str, tensors: tuple[Tensor, ...]) -> None:
        self._held[key] = tensors
        self._bytes += sum(t.nbytes for t in tensors)
        while self._bytes > self.limit and len(self._held) > 1:
            _, dropped = self._held.popitem(last=False)
            self._bytes -= sum(t.nbytes for t in dropped)

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def put(self, key: str, *tensors: Tensor) -> None:
        ready = tuple(t.detach().cpu().contiguous() for t in tensors)
        write_tensors(self.path(key), {str(i): t for i, t in enumerate(ready)})
        self._hold(key, ready)

    def get(self, key: str) -> tuple[Tensor, ...]:
        if key not in self._held:
            tensors, _ = read_tensors(self.path(key))
            self._hold(key, tuple(tensors[str(i)] for i in range(len(tensors))))
        self._held.move_to_end(key)
        return self._held[key]

    def usable(self, key: str) -> bool:
        """Whether a key can be read; a damaged file is removed so that it is made again."""
        if key in self._held:
            return True
        if not self.path(key).is_file():
            return False
        try:
            check_tensors(self.path(key))
        except AtelierError as error:
            log.warning("A cached tensor could not be read and is made again: %s", error)
            self.path(key).unlink(missing_ok=True)
            return False
        return True


@dataclass(frozen=True)
class Encoded:
    """One sample, as the encoding goes on; `made` says whether anything had to be encoded."""

    sample: Sample
    done: int
    total: int
    made: bool


def text_key(text: str, encoder: Encoder) -> str:
    return digest_of("text", text, encoder.text_id)


def put_text(text: str, encoder: Encoder, cache: Cache) -> tuple[str, bool]:
    """Encode a text into the cache unless it is there; returns its key and whether it was made."""
    key = text_key(text, encoder)
    if cache.usable(key):
        return key, False
    states, pooled = encoder.encode_text(text)
    if not (torch.isfinite(states).all() and torch.isfinite(pooled).all()):
        raise AtelierError(
            f"The text encoders made non-finite values for {text[:60]!r}. Run them in bf16 or float32 (--fp32-text-enc)."
        )
    cache.put(key, states.half() if states.abs().max() < 6e4 else states.bfloat16(), pooled.float())
    return key, True


def encode(
    dataset: Dataset, encoder: Encoder, options: DataOptions, cache: Cache, prior: bool = False
) -> Iterator[Encoded]:
    """Encode the kept rows of a dataset that the cache does not hold yet, one sample at a time.

    Stopping in the middle loses nothing; the next call goes on.

    prior  encode what the captions say without the trigger too
    Raises AtelierError if no picture is left, or one has no caption and there is no trigger word.
    """
    rows = [row for row in dataset.rows if row.kept]
    if not rows:
        raise AtelierError(
            f"None of the {len(dataset.rows)} pictures of {dataset.root} is kept. Loosen the curation or add pictures."
        )
    if options.mask == "file" and not any(row.mask for row in rows):
        raise AtelierError(
            "mask is file, but there are no name.mask.png files beside the pictures. Add them, or set mask to none."
        )
    plan, buckets = caption_plan(options), buckets_of(options)
    put_text("", encoder, cache)
    for done, row in enumerate(rows, 1):
        captions = training_captions(row, plan)
        without = [prior_caption(c, plan, options.class_word) for c in captions] if prior else []
        bucket = choose_bucket(row.width, row.height, buckets)
        key, made = _put_latent(row, dataset, bucket, encoder, cache)
        control = ("", False)
        if row.control:
            control = _put_latent(row, dataset, bucket, encoder, cache, row.control)
        texts, priors = ([put_text(text, encoder, cache) for text in group] for group in (captions, without))
        sample = Sample(
            id=row.id, name=row.path, height=bucket.height // 8, width=bucket.width // 8, latent=key,
            texts=tuple(k for k, _ in texts), split=row.split, priors=tuple(k for k, _ in priors),
            mask=_put_mask(row, dataset, bucket, options, cache), control=control[0], repeats=row.repeats,
        )  # fmt: skip
        yield Encoded(sample, done, len(rows), made or control[1] or any(m for _, m in (*texts, *priors)))


def encode_regularisation(dataset: Dataset, encoder: Encoder, options: DataOptions, cache: Cache) -> Iterator[Encoded]:
    """Encode a regularisation set: without trigger and masks; the class word captions what has no caption."""
    plain = options.model_copy(update={"trigger": "", "mask": "none"})
    rows = [
        r if r.captions or not options.class_word else replace(r, captions=(Caption(options.class_word, "class"),))
        for r in dataset.rows
    ]
    for item in encode(dataset.with_rows(rows), encoder, plain, cache):
        yield replace(item, sample=replace(item.sample, split="regularisation"))


def sample_prompts(options: TrainOptions, dataset: Dataset, encoder: Encoder, cache: Cache) -> list[tuple[str, str]]:
    """The prompts of the sample pictures with their keys: those of the options, else the first captions."""
    prompts = [line.strip() for line in options.sample_prompt.splitlines() if line.strip()]
    if not prompts:
        plan = caption_plan(options.data)
        prompts = list(dict.fromkeys(training_captions(row, plan)[0] for row in dataset.kept[:4]))
    return [(prompt, put_text(prompt, encoder, cache)[0]) for prompt in prompts]


def caption_plan(options: DataOptions) -> CaptionPlan:
    return CaptionPlan(options.trigger, options.caption_lines, options.shuffled_captions, options.kept_tags)


def buckets_of(options: DataOptions) -> list[Bucket]:
    """The sizes that pictures are brought to."""
    return make_buckets(options.resolution) if options.buckets else [Bucket(options.resolution, options.resolution)]


def _put_mask(row: Row, dataset: Dataset, bucket: Bucket, options: DataOptions, cache: Cache) -> str:
    """Encode where a picture counts, [h, w] in 0..1 at the latent's size; no key where it counts everywhere."""
    if options.mask == "none" or (options.mask == "file" and row.mask is None):
        return ""
    source = row.mask if options.mask == "file" and row.mask else row
    key = digest_of("mask", options.mask, _content(row, source), bucket.width, bucket.height)
    if not cache.usable(key):
        mask = _beside(row, dataset, open_mask(dataset.file(source), options.mask == "alpha"))
        picture = fit_to(mask, bucket.width, bucket.height)
        cache.put(key, F.avg_pool2d(to_tensor(picture.convert("RGB"))[None, :1], 8)[0, 0])
    return key


def _put_latent(
    row: Row, dataset: Dataset, bucket: Bucket, encoder: Encoder, cache: Cache, control: Companion | None = None
) -> tuple[str, bool]:
    """Encode a row's picture, or the picture that is to be edited into it."""
    source = control or row
    key = digest_of("latent", _content(row, source), bucket.width, bucket.height, encoder.vae_id)
    if cache.usable(key):
        return key, False
    opened = open_picture(dataset.file(source))
    done = _beside(row, dataset, opened) if control else replay(opened, row.crop, row.ops)
    picture = fit_to(done, bucket.width, bucket.height)
    latent = encoder.encode_pixels(to_tensor(picture)[None] * 2 - 1)[0].float()
    if not torch.isfinite(latent).all():
        raise AtelierError(f"The VAE made a non-finite latent of {row.path}. Run the VAE in float32 (--fp32-vae).")
    cache.put(key, latent)
    return key, True


def _content(row: Row, source: Row | Companion) -> str:
    """Digest of a row's picture, or of what lies beside it, as it is encoded."""
    done = row.crop or row.ops
    return digest_of(source.digest, row.crop, row.ops) if done else source.digest


def _beside(row: Row, dataset: Dataset, picture: Image.Image) -> Image.Image:
    """A mask or control picture, cropped and turned as the row's picture is; its size may differ."""
    if not (row.crop or row.ops):
        return picture
    header = open_header(dataset.file(row).read_bytes())
    return replay_beside(picture, header.width, header.height, row.crop, row.ops)
