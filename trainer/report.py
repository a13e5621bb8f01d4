"""What a run looks like: its curves as a picture."""

from PIL import Image

from ..core.evaluation.grid import curve_plot, running_mean
from .run import Run


def run_curves(run: Run) -> Image.Image:
    """Loss, its running mean and the validation loss over the steps of a run, and below it each noise level's."""
    records = run.metrics()
    losses = [r["loss"] for r in records]
    measured = [r for r in records if r.get("validation") is not None]
    curves = {
        "loss (mean)": list(zip([r["step"] for r in records], running_mean(losses), strict=True)),
        "validation": [(r["step"], r["validation"]) for r in measured],
    }
    main = curve_plot({k: v for k, v in curves.items() if v}, run.name)
    levels = [r for r in measured if r.get("levels")]
    if len(levels) < 2:
        return main
    names = ("clean", "less noise", "more noise", "noise")
    parts = {name: [(r["step"], r["levels"][i]) for r in levels] for i, name in enumerate(names)}
    below = curve_plot(parts, "validation by noise level")
    sheet = Image.new("RGB", (main.width, main.height + below.height))
    sheet.paste(main, (0, 0))
    sheet.paste(below, (0, main.height))
    return sheet
