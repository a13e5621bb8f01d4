"""What a dataset's figures suggest for its training: repeats, steps, rank and size, each with its reason; and what they do not tell.

These are the field's rules of thumb, not measurements: trainers disagree, so every value has limits and says whose rule
it is. The same figures give the same advice.
"""

import math
from dataclasses import dataclass

VIEWS = (
    100  # steps of one picture that a subject needs, about (hollowstrawberry/kohya-colab#54, fast-stable-diffusion#610)
)
FEWEST_STEPS, MOST_STEPS = 500, 4000  # at batch 1: the range of ai-toolkit's example for 24 GB, whose default is 2000
EPOCH = 200  # pictures times repeats of an epoch, 200 to 400 (hollowstrawberry/kohya-colab#54)
MOST_REPEATS = 20
ENOUGH = (10, 20)  # pictures (XLabs-AI/x-flux#82)
RANKS = ((15, 8), (100, 16), (math.inf, 32))  # below so many pictures: this rank
FLAT, STEEP = 0.01, 0.05  # share of diversity that the last tenth of pictures brings


@dataclass(frozen=True)
class Figures:
    """What advice is drawn from.

    pictures    pictures of the train split that are kept
    effective   how many of them count: distinct ones, by weight
    last_tenth  share of the diversity that the last tenth brought, None if it was not measured
    by_looks    whether diversity was measured on colours and layout only
    """

    pictures: int
    effective: float
    last_tenth: float | None = None
    by_looks: bool = True


@dataclass(frozen=True)
class Suggestion:
    """A value for a setting, the limits it was kept within, and why."""

    name: str
    value: int
    low: int
    high: int
    reason: str


def advise(figures: Figures) -> tuple[Suggestion, ...]:
    """Suggest steps, rank, repeats and the number of pictures; nothing for an empty dataset.

    The rules: about 100 steps a distinct picture at batch 1, from 500 to 4000 (ai-toolkit's default of 2000 is 20
    pictures); rank 16 is the default of ai-toolkit, sd-scripts' recipe and OneTrainer, half for few pictures and twice
    for many; repeats so that an epoch has about 200 steps.
    """
    if figures.pictures < 1:
        return ()
    steps = _steps(figures)
    return (steps, _rank(figures), _repeats(figures, steps.value), _size(figures))


def _steps(figures: Figures) -> Suggestion:
    wanted = VIEWS * figures.effective
    value = int(min(MOST_STEPS, max(FEWEST_STEPS, round(wanted / 50) * 50)))
    reason = f"About {VIEWS} steps at batch 1 for each of {figures.effective:.0f} pictures that count"
    if value != round(wanted / 50) * 50:
        reason += f" would be {wanted:.0f}; trainers' recipes stay between {FEWEST_STEPS} and {MOST_STEPS}"
    return Suggestion("steps", value, FEWEST_STEPS, MOST_STEPS, f"{reason}. Divide by the batch size.")


def _rank(figures: Figures) -> Suggestion:
    value = next(rank for below, rank in RANKS if figures.effective < below)
    why = {
        8: "Few pictures are learnt by heart at a high rank; small ranks first is SimpleTuner's rule.",
        16: "The default of ai-toolkit and OneTrainer and of sd-scripts' recipe for Flux.",
        32: "So many pictures can use more than the usual 16.",
    }[value]
    if value > 8 and figures.last_tenth is not None and figures.last_tenth < FLAT and not figures.by_looks:
        value //= 2
        why += f" Halved, since the last tenth of the pictures brought only {figures.last_tenth:.1%} of the diversity."
    return Suggestion("rank", value, RANKS[0][1], RANKS[-1][1], why)


def _repeats(figures: Figures, steps: int) -> Suggestion:
    value = min(MOST_REPEATS, max(1, math.ceil(EPOCH / figures.pictures)))
    seen = figures.pictures * value
    reason = f"{figures.pictures} pictures times {value} make an epoch of {seen} steps at batch 1"
    reason += f"; {EPOCH} to {2 * EPOCH} is usual" if value > 1 else ", which needs no more"
    return Suggestion("repeats", value, 1, MOST_REPEATS, f"{reason}. {steps} steps are {steps / seen:.1f} epochs.")


def _size(figures: Figures) -> Suggestion:
    """How many pictures to have: more where they are few or each still brings something, else as many as there are."""
    low, good = ENOUGH
    kind = "in colours and layout" if figures.by_looks else "by the embeddings"
    told = (
        ""
        if figures.last_tenth is None
        else f" The last tenth brought {figures.last_tenth:.1%} of the diversity {kind}"
    )
    if figures.effective < low:
        return Suggestion(
            "pictures", good, low, good, f"{low} to {good} different pictures are the least that is usual."
        )
    have = figures.pictures
    if figures.last_tenth is None:
        return Suggestion(
            "pictures", have, low, have, "There are enough by the usual count; diversity was not measured."
        )
    if figures.last_tenth > STEEP:
        more = math.ceil(have * 1.5)
        return Suggestion("pictures", more, have, more, f"More pictures would add something.{told}.")
    if figures.last_tenth < FLAT:
        return Suggestion(
            "pictures", have, low, have, f"More of the same would add little.{told}; add other kinds instead."
        )
    return Suggestion("pictures", have, low, have, f"There are enough.{told}.")


@dataclass(frozen=True)
class Known:
    """What was looked at, for N kept pictures: by what there is, and how many pictures lack it."""

    pictures: int
    captions: int
    embedded: bool
    thumbnails: bool
    unread: int  # thumbnails that could not be opened
    unscored: int
    unlooked: int  # without boxes
    compared: bool  # whether copies were looked for


def not_measured(known: Known, by_looks: str) -> tuple[str, ...]:
    """What the figures do not tell, so that nobody takes silence for a good sign; never empty.

    by_looks  what diversity is measured on without an embedding model
    """
    captioned = known.captions > 0
    told = {
        f"No embedding model was given: diversity is measured on {by_looks}.": not known.embedded and known.thumbnails,
        "Diversity is not measured: there are neither embeddings nor thumbnails.": not known.embedded
        and not known.thumbnails,
        f"{known.unread} thumbnails could not be opened and are left out of the diversity; scan again.": known.unread
        > 0,
        f"{known.unscored} pictures have no scores; scan them.": known.unscored > 0,
        f"Nothing looked for faces or objects in {known.unlooked} pictures.": known.unlooked > 0,
        "Nothing looked for copies, so every picture counts as one of its own.": not known.compared,
        "There are no captions: nothing is known of what the pictures show.": not captioned,
        "Axes are read from captions by a list of words; what a caption does not say is not counted.": captioned,
        "Tokens of captions are estimated from their words.": captioned,
        "Whether captions are true was not checked against the pictures.": captioned,
        "Aesthetics, watermarks, text in pictures and identity are not measured.": True,
        "Steps, rank and repeats are rules of thumb; nothing was trained.": known.pictures > 0,
    }
    return tuple(text for text, holds in told.items() if holds)
