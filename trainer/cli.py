"""The command line: `python -m flux_atelier <command>`. The same library as the nodes; only this file prints.

Every command is a parser and a generator of lines to show. Errors that a person can mend end with one line and exit
code 2; a cancel by Ctrl-C with 130.
"""

import argparse
import logging
import os
import sys
from typing import Any, Literal, get_args, get_origin

from ..core.errors import AtelierError
from ..core.options import Options, flat, leaves, nest, parse, read_toml


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is ever fetched
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # the lines are ours
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for noisy in ("httpx", "transformers", "diffusers"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    args = build_parser().parse_args(argv)
    try:
        for line in args.execute(args):
            print(line, flush=True)
    except AtelierError as error:
        print(f"flux_atelier: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("flux_atelier: stopped; what was done is saved", file=sys.stderr)
        return 130
    return 0


def build_parser() -> argparse.ArgumentParser:
    from .commands import COMMANDS

    parser = argparse.ArgumentParser(prog="flux_atelier", description="From pictures to Flux LoRAs and on.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, (help_text, add, run) in COMMANDS.items():
        command = commands.add_parser(name, help=help_text, description=help_text)
        add(command)
        command.set_defaults(execute=run)
    return parser


def add_options(parser: argparse.ArgumentParser, kind: type[Options]) -> None:
    """Add a flag for every field of an option model; those not given stay absent."""
    group = parser.add_argument_group("options")
    for name, field in leaves(kind).items():
        flag, text = "--" + name.replace("_", "-"), f"{field.description} Default: {field.default}."
        extra: dict[str, Any] = {"default": argparse.SUPPRESS, "dest": name, "help": text.replace("%", "%%")}
        if get_origin(field.annotation) is Literal:
            extra["choices"] = get_args(field.annotation)
        elif field.annotation is bool:
            extra["action"] = argparse.BooleanOptionalAction
        else:
            extra["type"] = field.annotation
        group.add_argument(flag, **extra)


def read_options(kind: type, args: argparse.Namespace, config: str | None = None):
    """An option model from a TOML file and the flags given, the flags winning.

    Raises AtelierError for what does not fit.
    """
    from pathlib import Path

    where, values = "the command line", {}
    if config:
        where = config
        values = flat(parse(kind, read_toml(Path(config)), config))
    given = {k: v for k, v in vars(args).items() if k in leaves(kind)}
    return parse(kind, nest(kind, {**values, **given}), where)
