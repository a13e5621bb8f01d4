"""The options of captioning: what is asked, how it is answered, and what each kind of captioner needs besides."""

from typing import Literal

from pydantic import Field

from ...core.options import Options

Precision = Literal["auto", "float32", "bfloat16", "float16"]


class AskOptions(Options):
    """What is asked of a captioner, and what becomes of its answer."""

    prompt: str = Field(
        "",
        max_length=20_000,
        description="What is asked; a line of three dashes parts turns. Empty asks what the model's family is used to.",
    )
    system: str = Field("", max_length=20_000, description="What a chat model is told before the first turn.")
    caption: str = Field(
        "{answer}",
        max_length=4000,
        description="The caption around the answer, with {answer}, {trigger}, {tags}, {style}, {name}, {folder}, {caption:name}.",
    )
    trigger: str = Field("", max_length=200, description="Value of {trigger}.")
    batch_size: int = Field(8, ge=1, le=256, description="Pictures per batch; halved where memory runs out.")


class AnswerOptions(Options):
    """How a language model writes."""

    max_tokens: int = Field(256, ge=1, le=8192, description="Most tokens of one answer.")
    temperature: float = Field(0.0, ge=0, le=2, description="Randomness; 0 always takes the likeliest token.")
    top_p: float = Field(0.9, gt=0, le=1, description="Above temperature 0: share of probability that is drawn from.")
    seed: int = Field(0, ge=0, le=2**63 - 1, description="Above temperature 0: seed of each batch.")
    longest_side: int = Field(
        1024, ge=0, le=8192, description="Pictures are made no longer than this in pixels; 0 is off."
    )

    @property
    def settings(self) -> dict:
        """What changes an answer besides what is asked."""
        names = {"max_tokens", "temperature", "longest_side"} | ({"seed", "top_p"} if self.temperature else set())
        return self.model_dump(include=names)


class VisionOptions(AnswerOptions):
    """A vision-language model in a folder."""

    beams: int = Field(1, ge=1, le=16, description="Sentences followed at once; more is slower and plainer.")
    precision: Precision = Field("auto", description="Precision; auto is bfloat16 on a GPU and float32 on a CPU.")

    @property
    def settings(self) -> dict:
        """What changes an answer besides what is asked."""
        return super().settings | self.model_dump(include={"beams", "precision"})


class TaggerOptions(Options):
    """A tagger in ONNX, and which of its tags are taken."""

    general: float = Field(0.35, ge=0, le=1, description="Least probability of a general tag.")
    character: float = Field(0.85, ge=0, le=1, description="Least probability of a character.")
    copyright: float = Field(0.85, ge=0, le=1, description="Least probability of a series or brand.")
    artist: float = Field(1.0, ge=0, le=1, description="Least probability of an artist; 1 is off.")
    rating: bool = Field(False, description="Put the likeliest rating after the tags.")
    left_out: str = Field("", max_length=20_000, description="Tags never taken, by commas.")
    spaces: bool = Field(True, description="Write spaces where the tagger has underscores.")

    @property
    def settings(self) -> dict:
        """What changes the tags."""
        return self.model_dump()


class EndpointOptions(AnswerOptions):
    """A chat endpoint in OpenAI's form: vLLM, llama.cpp, Ollama and others."""

    url: str = Field(
        "http://127.0.0.1:8080/v1", max_length=2000, description="Address up to and including /v1, on this machine."
    )
    model: str = Field("default", min_length=1, max_length=500, description="Name of the model at the endpoint.")
    allow_remote: bool = Field(False, description="Let pictures leave this machine for another host.")
    key_variable: str = Field("", max_length=200, description="Environment variable that holds the endpoint's key.")
    timeout: float = Field(120.0, gt=0, le=3600, description="Seconds until a request is given up.")
    retries: int = Field(2, ge=0, le=10, description="Further tries where the endpoint is busy or out of reach.")
    wait: float = Field(1.0, ge=0, le=60, description="Seconds before the first further try; doubled after each.")
    parallel: int = Field(4, ge=1, le=64, description="Requests at the same time.")


class StyleOptions(Options):
    """What is said of a picture's style, medium and artist."""

    vocabulary: str = Field(
        "", max_length=4000, description="JSON file with axes, templates and entries; empty for the pack's own."
    )
    axes: str = Field("", max_length=1000, description="Axes of the vocabulary to answer, by commas; empty for all.")
    threshold: float = Field(0.5, gt=0, le=1, description="Least probability; below it nothing is said.")
    temperature: float = Field(
        1.0, gt=0, le=100, description="Divides the model's logits: higher is less sure, so that less is said."
    )
    batch_size: int = Field(16, ge=1, le=256, description="Pictures per batch.")
    tags: bool = Field(True, description="Lay tags such as style:Impressionism on the rows.")
    captions: bool = Field(False, description="Also write what is found as a caption of the row.")


class FuseOptions(Options):
    """How several captions of a picture become one."""

    weight_rules: str = Field(
        "",
        max_length=20_000,
        description="One model a line with its weight, as joy: 1.5; models that are not named count 1, those of 0 only add order.",
    )
    threshold: float = Field(
        2.0, ge=0, le=1000, description="Sum of weights that a claim needs; 2 is two models of weight 1."
    )
    budget: int = Field(77, ge=1, le=4096, description="Most tokens of the fused caption: 77 for CLIP, 512 for T5.")
    prefix: str = Field("", max_length=2000, description="Text that stands first in any case, such as the trigger.")
    synonym_rules: str = Field(
        "", max_length=20_000, description="One pair a line, as puppy = dog: the first is compared as the second."
    )
    pull: float = Field(
        1.0, ge=0, le=100, description="With a CLIP model: how much a similarity of 1 counts beside full support."
    )


class LintOptions(Options):
    """What captions are held to, and what is mended."""

    trigger: str = Field("", max_length=200, description="Word that each caption must have; empty for none.")
    allowed: str = Field(
        "", max_length=4000, description="Phrases that may be in every caption, by commas, such as the class word."
    )
    share: float = Field(
        0.8, gt=0, le=1, description="A phrase in this share of the captions is a leak: the trigger does not learn it."
    )
    budget: int = Field(512, ge=1, le=4096, description="Most tokens of a caption: 512 for T5, 77 for CLIP.")
    alike: float = Field(
        0.9, gt=0, le=1, description="Share of common words from which two captions are nearly the same."
    )
    fix_leaks: bool = Field(True, description="Take leaked phrases out.")
    fix_triggers: bool = Field(True, description="Put the trigger before captions that lack it.")
    fix_refusals: bool = Field(True, description="Take refusals and error messages out.")
    fix_overflow: bool = Field(True, description="Cut what is over the budget after the last sentence that fits.")
    fix_alike: bool = Field(False, description="Empty captions that repeat an earlier one, so they are made anew.")
    human: bool = Field(False, description="Also mend captions that a person wrote, sidecar files among them.")


class EditOptions(Options):
    """Edits of captions, done in this order."""

    find: str = Field("", max_length=1000, description="Text to find; empty for none.")
    replacement: str = Field("", max_length=4000, description=r"What to put there; with regex, \1 is the first group.")
    regex: bool = Field(False, description="Read find as a regular expression of Python.")
    same_case: bool = Field(True, description="Find only with the same capitals.")
    whole_words: bool = Field(False, description="Find only whole words.")
    prefix: str = Field("", max_length=4000, description="Put before captions that do not begin with it.")
    suffix: str = Field("", max_length=4000, description="Put after captions that do not end with it.")
    dedupe: bool = Field(False, description="Keep the first of tags that are the same.")
    order: str = Field("", max_length=20_000, description="Tags to put first, in this order, by commas.")
    shuffle: bool = Field(False, description="Put tags into another order, drawn with the seed.")
    keep: int = Field(1, ge=0, le=1000, description="Tags at the start that a shuffle leaves in place.")
    seed: int = Field(0, ge=0, le=2**63 - 1, description="Seed of the shuffle.")
    human: bool = Field(False, description="Also edit captions that a person wrote, sidecar files among them.")
