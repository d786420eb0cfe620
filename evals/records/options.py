"""The command line of a module as its docstring has it."""

from __future__ import annotations

import argparse
import re


def parser(doc: str) -> argparse.ArgumentParser:
    """Described by the first paragraph of a module's docstring, with the first command in it as the example.

    Raises:
        ValueError: the docstring holds no command.
    """
    example = re.search(r"python -m (\S+).*?(?=  |`|\n|$)", doc)
    if not example:
        raise ValueError("a module with a command line shows a command in its docstring")
    return argparse.ArgumentParser(
        prog=f"python -m {example[1]}",
        description=doc.split("\n\n")[0].partition(": python -m")[0],
        epilog=f"example: {example[0]}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
