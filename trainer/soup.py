"""The mean of a run's last saved states as one LoRA, exact: the mean of what they do, not of their factors."""

from ..core.errors import AtelierError
from ..core.lora.factors import Factors
from ..core.lora.formats import read_lora
from ..core.lora.merge import merge
from ..core.lora.record import Lora
from .run import Run
from .state import State, read_state, state_folders


def average_states(run: Run, last: int) -> Lora:
    """Average the newest `last` states of a run at the rank they were trained with.

    Raises AtelierError if there are fewer than two, or they are no plain LoRA.
    """
    folders = state_folders(run.checkpoints)[:last]
    if len(folders) < 2:
        raise AtelierError(
            f"The run {run.folder} has {len(folders)} saved states of the {last} to average. "
            "Train with keep_states above 1 and a smaller save_every."
        )
    parts = [(path.name, 1 / len(folders), lora_of(read_state(path), path.name)) for path in folders]
    merged = merge(parts, rank=parts[0][2].rank).lora
    said = read_lora(run.lora_file).metadata if run.lora_file.is_file() else {}
    return Lora(merged.modules, "kohya", said | merged.metadata)


def lora_of(state: State, name: str) -> Lora:
    """A saved state's adapter as a LoRA; raises AtelierError for DoRA, LoKr and LoHa."""
    modules = {}
    for key, down in state.adapter.items():
        if key.endswith(".lora_A.weight"):
            module = key.removesuffix(".lora_A.weight")
            scale = float(state.facts["scales"][module])
            modules[module] = Factors(state.adapter[f"{module}.lora_B.weight"], down, scale * len(down))
    if not modules or any("lora_magnitude_vector" in key for key in state.adapter):
        raise AtelierError(f"{name} is no plain LoRA, so its states have no low-rank mean. Use ema_decay in training.")
    return Lora(modules, "kohya")
