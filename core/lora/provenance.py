"""What a LoRA file says of itself, and what of it a file made from it goes on saying."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .record import Lora

RECIPE = "flux_atelier.recipe"
TRIGGER = "modelspec.trigger_phrase"
TAGS = "ss_tag_frequency"
DIM, ALPHA = "ss_network_dim", "ss_network_alpha"
TITLE, DATE = "modelspec.title", "modelspec.date"
ARCHITECTURE = "modelspec.architecture"
UNEVEN = "Dynamic"  # sd-scripts' word for layers of several ranks
# What all sources must agree on to be true of what is made of them.
AGREED = (ARCHITECTURE, "modelspec.implementation", "ss_base_model_version")
JOINED = ("ss_training_comment", "modelspec.author", "modelspec.license")


def inherit(loras: Sequence[Lora], recipe: Mapping[str, object]) -> dict[str, str]:
    """The header of a LoRA that is made of others.

    loras   its sources; from one alone everything is kept, but hashes, which are its file's
    recipe  what was done, as plain values: it is kept as JSON, with the recipes of the sources inside
    """
    alone = len(loras) == 1
    kept = {k: v for k, v in loras[0].metadata.items() if not is_file_fact(k)} if alone else _common(loras)
    triggers = [word for lora in loras for word in trigger_words(lora.metadata)]
    tags = _tags(loras)
    before = [_entry(lora, RECIPE) or None for lora in loras]
    told = {**recipe, "before": before} if any(before) else dict(recipe)
    kept |= {
        TRIGGER: ", ".join(dict.fromkeys(triggers)),
        TAGS: json.dumps(tags) if tags else "",
        RECIPE: json.dumps(told),
    }
    return {k: v for k, v in kept.items() if v}


def is_file_fact(key: str) -> bool:
    """Whether a header's entry is true of its own file alone."""
    return "hash" in key or key in (DIM, ALPHA, "format", "lora_adapter_metadata", "modelspec.thumbnail")


def _common(loras: Sequence[Lora]) -> dict[str, str]:
    kept = {}
    for key in AGREED:
        values = {lora.metadata[key] for lora in loras if key in lora.metadata}
        if len(values) == 1:
            kept[key] = values.pop()
    for key in JOINED:
        kept[key] = "; ".join(dict.fromkeys(lora.metadata[key] for lora in loras if lora.metadata.get(key)))
    return kept


def sized(ranks: Mapping[str, int], alphas: Mapping[str, float]) -> dict[str, str]:
    """The entries that tell a file's rank and alpha, as sd-scripts writes them; none for a file without factors.

    ranks, alphas  of its layers, by name
    """
    told = {}
    for key, values in ((DIM, set(ranks.values())), (ALPHA, set(alphas.values()))):
        told |= {key: f"{next(iter(values)):g}" if len(values) == 1 else UNEVEN} if values else {}
    return told if told.get(DIM) != UNEVEN else dict.fromkeys(told, UNEVEN)


def trigger_words(metadata: Mapping[str, str]) -> list[str]:
    """The trigger words that a header names, in its order."""
    text = metadata.get(TRIGGER, "")
    return [word.strip() for word in text.split(",") if word.strip()]


def _tags(loras: Sequence[Lora]) -> dict[str, dict[str, int]]:
    """All sources' ss_tag_frequency in one: the counts of captions' tags by dataset."""
    union: dict[str, dict[str, int]] = {}
    for lora in loras:
        for folder, tags in _entry(lora, TAGS).items():
            numbers = {tag: n for tag, n in tags.items() if isinstance(n, int)} if isinstance(tags, dict) else {}
            counts = union.setdefault(folder, {}) if numbers else {}
            for tag, number in numbers.items():
                counts[tag] = counts.get(tag, 0) + number
    return union


def _entry(lora: Lora, key: str) -> dict[str, Any]:
    """A header's entry that is a JSON object; nothing where it is none.

    What another program wrote there is its own affair; the rest of the header still counts.
    """
    try:
        found = json.loads(lora.metadata.get(key, "{}"))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
