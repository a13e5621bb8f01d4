"""`python -m benchmarks ROOM`: run a room's benchmarks, print its table and one closing line, fail on a missed target."""

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = (
    "start",
    "trainer",
    "gpu",
    "lora",
    "curation",
    "dedup",
    "scale",
    "crop",
    "gallery",
    "style",
    "frames",
    "rife",
    "frames_memory",
)


@dataclass(frozen=True)
class Figure:
    """One row: ours, the peer's if one was measured, their ratio (peer / ours: above 1 is better), and what is asked of it."""

    name: str
    ours: float
    peer: float | None
    unit: str
    least: float | None = None  # of the ratio
    most: float | None = None  # of ours

    @property
    def ratio(self) -> float:
        if self.peer is None:
            return float("nan")
        return self.peer / self.ours if self.ours else float("inf")

    @property
    def met(self) -> bool:
        return (self.least is None or self.ratio >= self.least) and (self.most is None or self.ours <= self.most)


def load_package() -> None:
    """Register the checkout as flux_atelier, as __main__.py does."""
    spec = importlib.util.spec_from_file_location("atelier_main", ROOT / "__main__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != ROOT]
    module.install()


def main(room: str) -> int:
    if room not in ROOMS:
        print(f"There is no room {room}. Rooms: {', '.join(ROOMS)}.")
        return 2
    if importlib.util.find_spec(f"benchmarks.{room}") is None:
        print(f"The room {room} makes no claim of speed or memory yet, so it has no benchmark.")
        return 2
    module = importlib.import_module(f"benchmarks.{room}")
    load_package()
    figures = module.run()
    print(f"{'figure':<44}{'ours':>12}{'peer':>12}{'ratio':>9}  target")
    for f in figures:
        wanted = f"ratio >= {f.least:g}" if f.least else f"<= {f.most:g} {f.unit}" if f.most else ""
        beside = f"{'':>21}" if f.peer is None else f"{f.peer:>12.4g}{f.ratio:>9.3g}"
        print(f"{f.name:<44}{f.ours:>12.4g}{beside}  {wanted}{'' if f.met else '  MISSED'}")
    print(f"{room}: " + " ".join(f"{f.name.replace(' ', '-')} {f.ratio:.3g}" for f in figures if f.peer is not None))
    return 0 if all(f.met for f in figures) else 1


if __name__ == "__main__":
    # Run with -m, this file is __main__; the rooms import Figure from the module's real name.
    from benchmarks.__main__ import main as run_main

    sys.exit(run_main(sys.argv[1] if len(sys.argv) > 1 else "start"))
