"""`--help` of every command: what it does, an example, and a word on each option."""

import argparse
import re
from importlib import import_module

import pytest
from repository import ROOT, modules

COMMANDS = [
    module
    for module in modules()
    if (path := ROOT.joinpath(*module.split(".")).with_suffix(".py")).exists() and "parse_args(" in path.read_text()
]


@pytest.mark.parametrize("module", COMMANDS)
def test_help_shows_an_example_and_explains_each_option(module, monkeypatch, capsys):
    made = []
    original = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(
        argparse.ArgumentParser, "parse_args", lambda self, args=None: made.append(self) or original(self, args)
    )
    monkeypatch.setattr("sys.argv", [module, "--help"])
    with pytest.raises(SystemExit) as done:
        import_module(module).main()
    assert done.value.code == 0
    (parser,), text = made, capsys.readouterr().out
    assert len(parser.description) > 20
    example = re.search(rf"example: python -m {re.escape(module)} (.+)", text)
    assert example, text
    for action in parser._actions:
        assert action.help, f"{module} {action.dest}"
        assert not re.fullmatch(r"\(?default.*", action.help), f"{module} {action.dest}: {action.help}"
    options = {option for action in parser._actions for option in action.option_strings}
    assert {word for word in example[1].split() if word.startswith("--")} <= options


def test_commands_were_found():
    assert len(COMMANDS) > 12
