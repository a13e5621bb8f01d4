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


class VisionOptions(AnswerOptions):
    """A vision-language model in a folder."""

    beams: int = Field(1, ge=1, le=16, description="Sentences followed at once; more is slower and plainer.")
    precision: Precision = Field("auto", description="Precision; auto is bfloat16 on a GPU and float32 on a CPU.")


class TaggerOptions(Options):
    """A tagger in ONNX, and which of its tags are taken."""

    general: float = Field(0.35, ge=0, le=1, description="Least probability of a general tag.")
    character: float = Field(0.85, ge=0, le=1, description="Least probability of a character.")
    copyright: float = Field(0.85, ge=0, le=1, description="Least probability of a series or brand.")
    artist: float = Field(1.0, ge=0, le=1, description="Least probability of an artist; 1 is off.")
    rating: bool = Field(False, description="Put the likeliest rating after the tags.")
    left_out: str = Field("", max_length=20_000, description="Tags never taken, by commas.")
    spaces: bool = Field(True, description="Write spaces where the tagger has underscores.")


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
