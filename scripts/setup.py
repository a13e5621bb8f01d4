"""Make the virtual environment for the demo, the tests and the benchmarks: `python scripts/setup.py .venv`.

Installs what pyproject.toml lists under dev, and the requirements of the ComfyUI at COMFYUI_PATH if there is one, so
that the tests can run in it. Nothing outside the environment is touched.
"""

import os
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (3, 11)


def main(folder: Path) -> None:
    if sys.version_info < OLDEST:
        sys.exit(f"Python {sys.version.split()[0]} is too old. Install Python 3.11 or later, or set PYTHON=python3.11.")
    if not (folder / "bin" / "python").exists():
        venv.create(folder, with_pip=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["optional-dependencies"]["dev"]
    # Torch first: a later package must not bring another build of it.
    torch = [w for w in wanted if w.startswith("torch")]
    subprocess.run([*pip, *torch], check=True)
    subprocess.run([*pip, *torch, *wanted], check=True)
    comfyui = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "ComfyUI") / "requirements.txt"
    if comfyui.is_file():
        subprocess.run([*pip, *torch, "-r", str(comfyui)], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
