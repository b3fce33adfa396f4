"""The argument parser that every verb uses: one-line complaints, long help on request."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NoReturn

EXIT_MISTAKE = 2
Kind = Literal["run", "embed", "mine", "evaluate"]


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose complaint is one line that names the place to look."""

    appendix: Callable[[], str] | None = None
    has_actions = False

    def error(self, message: str) -> NoReturn:
        """Report a mistake in the arguments and leave with exit code 2."""
        self.exit(EXIT_MISTAKE, f"{self.prog}: {message} (see '{self.prog} --help')\n")

    def format_help(self) -> str:
        """The arguments, then what the verb adds, for example every key of its configuration."""
        text = super().format_help()
        return f"{text}\n{self.appendix()}\n" if self.appendix else text


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``, which every verb takes."""
    parser.add_argument(
        "--json",
        action="store_true",
        help="print the result as one JSON object, last line of stdout",
    )


def positive_number(text: str) -> int:
    """A whole number of at least 1, as the type of an argument."""
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return number


def picture_file(*suffixes: str) -> Callable[[str], Path]:
    """The type of an argument that names a picture to write, refused before any work is done.

    Args:
        suffixes: those that can be written.

    >>> picture_file(".png", ".jpg")("sheet.png").name
    'sheet.png'
    """

    def check(text: str) -> Path:
        path = Path(text)
        if path.suffix.lower() not in suffixes:
            endings = f"{', '.join(suffixes[:-1])} or {suffixes[-1]}"
            raise argparse.ArgumentTypeError(
                f"{text!r} does not say what to write; end it in {endings}"
            )
        if path.is_dir():
            raise argparse.ArgumentTypeError(f"{text!r} is a directory; name a file")
        if not path.absolute().parent.is_dir() and path.absolute().parent.exists():
            raise argparse.ArgumentTypeError(f"{path.parent} is a file; name one in a directory")
        return path

    return check


def existing_directory(text: str) -> Path:
    """The type of an argument that names a directory to read from."""
    path = Path(text)
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise argparse.ArgumentTypeError(f"{text!r} {what}; name a directory")
    return path


def reader_overrides(options: argparse.Namespace, section: str = "") -> list[str]:
    """What ``--format`` and ``--columns`` say, as overrides of reader settings.

    Args:
        options: with `format` and `columns`, None where they were not given.
        section: that the reader settings are in, with its dot.

    >>> reader_overrides(argparse.Namespace(format="csv", columns=None), "reader.")
    ['reader.format="csv"']
    """
    told = {"format": options.format, "columns": options.columns}
    # YAML takes an escaped pair of surrogates for two characters, neither of which is one
    return [f"{section}{k}={json.dumps(v, ensure_ascii=False)}" for k, v in told.items() if v]


def add_config_arguments(parser: OneLineParser, kind: Kind) -> None:
    """Add ``--config FILE.yaml`` and overrides of its keys.

    Args:
        parser: the verb's parser.
        kind: the configuration that ``rematch_ray.config.describe_keys`` lists.
    """
    parser.add_argument(
        "--config",
        type=Path,
        required=True,
        metavar="FILE.yaml",
        help="settings, whose keys stand below; key=value replaces what it says",
    )
    add_overrides(parser, kind)


def add_overrides(parser: OneLineParser, kind: Kind) -> None:
    """Add ``key=value ...`` and list every key in ``--help``."""
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="settings, dotted where they are nested: train.num_workers=4",
    )

    def keys() -> str:
        from rematch_ray.config import describe_keys

        return f"settings:\n{describe_keys(kind)}"

    parser.appendix = keys
