"""`python -m flux_atelier <command>`, or `python __main__.py <command>` from wherever this folder lies.

The library's name does not depend on the folder's: install() registers the folder as the package flux_atelier.
"""

import importlib.util
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def install() -> None:
    """Make `import flux_atelier` find this folder, whatever it is called."""
    if "flux_atelier" in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(
        "flux_atelier", HERE / "__init__.py", submodule_search_locations=[str(HERE)]
    )
    package = importlib.util.module_from_spec(spec)
    sys.modules["flux_atelier"] = package
    spec.loader.exec_module(package)


if __name__ == "__main__":
    # Run as a file, Python puts this folder first on its path, where our `nodes` would shadow ComfyUI's.
    sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != HERE]
    install()
    from flux_atelier.trainer.cli import main

    sys.exit(main())
