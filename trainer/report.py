"""What a run looks like: its curves as a picture."""

from PIL import Image

from ..core.evaluation.grid import curve_plot, running_mean
from .run import Run


def run_curves(run: Run) -> Image.Image:
    """Loss, its running mean and the validation loss over the steps of a run."""
    records = run.metrics()
    losses = [r["loss"] for r in records]
    curves = {
        "loss (mean)": list(zip([r["step"] for r in records], running_mean(losses), strict=True)),
        "validation": [(r["step"], r["validation"]) for r in records if r.get("validation") is not None],
    }
    return curve_plot({k: v for k, v in curves.items() if v}, run.name)
