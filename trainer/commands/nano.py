"""nano: make nano-flux again, look at what it learns from, and measure it."""

from collections.abc import Iterator
from pathlib import Path

from ...core.errors import AtelierError

STAGES = ("scenes", "make-text", "train-vae", "train-flux", "measure")


def add_nano(parser) -> None:
    parser.add_argument("stage", choices=STAGES, help="what to do")
    parser.add_argument("--out", type=Path, help="file or folder to write (default: nano-flux's own place)")
    parser.add_argument("--steps", type=int, help="training steps")
    parser.add_argument("--seed", type=int, default=0, help="seed")
    parser.add_argument(
        "--rate", type=float, help="learning rate (default: 1.5e-3 for train-vae, 1.2e-3 for train-flux)"
    )
    parser.add_argument("--start", type=Path, help="file that train-vae or train-flux goes on from")
    parser.add_argument("--count", type=int, default=24, help="pictures of scenes, prompts of measure")
    parser.add_argument("--decoder-only", action="store_true", help="train-vae leaves the encoder as it is")


def run_nano(args) -> Iterator[str]:
    try:
        stage = {"scenes": _scenes, "make-text": _text, "train-vae": _vae, "train-flux": _flux, "measure": _measure}
        yield from stage[args.stage](args)
    except ImportError as error:
        raise AtelierError(f"{error}. Run: pip install diffusers scikit-image") from None


def _scenes(args) -> Iterator[str]:
    from ...core.evaluation.grid import picture_grid
    from ...core.images import save_picture, to_picture
    from ..nano import scenes

    chosen = scenes.draw_prompts(args.count, args.seed)
    plain = scenes.draw(chosen, args.seed)
    painted = [scenes.paint(p, i) for i, p in enumerate(plain)]
    lines = [[to_picture(p) for p in plain], [to_picture(p) for p in painted]]
    out = args.out or Path("scenes.png")
    save_picture(out, picture_grid(lines, ["plain", "painted"], [s.caption for s in chosen]))
    yield str(out)


def _text(args) -> Iterator[str]:
    from ..nano import files, text

    out = args.out or files.FOLDER
    text.main(out, args.seed)
    yield f"{out}: clip, t5"


def _vae(args) -> Iterator[str]:
    from ..nano import files, train_vae

    out = args.out or files.VAE
    train_vae.main(out, args.steps or 3200, args.seed, args.rate or 1.5e-3, args.start, args.decoder_only)
    yield str(out)


def _flux(args) -> Iterator[str]:
    import torch

    from ..encoders import FileEncoder
    from ..models import nano
    from ..nano import files, train_flux

    encoder = FileEncoder(nano(), torch.device("cpu"))

    def encode_text(texts: list[str]):
        pairs = [encoder.encode_text(t) for t in texts]
        return torch.stack([p[0] for p in pairs]), torch.stack([p[1] for p in pairs])

    out = args.out or files.TRANSFORMER
    rate, steps = args.rate or 1.2e-3, args.steps or 4000
    train_flux.main(out, lambda x: encoder.encode_pixels(x).float(), encode_text, steps, args.seed, rate, args.start)
    yield str(out)


def _measure(args) -> Iterator[str]:
    from ..nano.measure import measure

    for name, value in measure(args.count, args.seed).items():
        yield f"{name}: {value:.3f}"


COMMANDS = {"nano": ("Make and measure the embedded nano-flux.", add_nano, run_nano)}
