"""--help teaches."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main

from tests.running import environment, run
from vpsd.cli.main import app


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command with what leads to it."""
    for name, below in getattr(command, "commands", {}).items():
        yield from leaves(below, (*path, name))
    if not hasattr(command, "commands"):
        yield path, command


COMMANDS = dict(leaves(typer.main.get_command(app)))


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_a_commands_help_says_what_it_does_and_gives_an_example_or_what_comes_next(path: tuple[str, ...]) -> None:
    text = COMMANDS[path].help
    assert re.match(r"[A-Z].*[.?]", text.splitlines()[0])
    assert re.search(r"`(VPSD_\w+=\S+ )?vpsd [a-z]+", text)
    assert all(getattr(option, "help", None) for option in COMMANDS[path].params)


@pytest.mark.parametrize(
    "path", [path for path in COMMANDS if path not in {("up",), ("api",), ("worker",)}], ids=" ".join
)
def test_every_command_that_ends_speaks_json(path: tuple[str, ...]) -> None:
    assert any("--json" in option.opts for option in COMMANDS[path].params)


def test_vpsd_alone_says_where_to_begin() -> None:
    done = run(environment=environment())
    assert "Begin with `vpsd up`" in done.stdout + done.stderr
    assert run("--help", environment=environment()).stdout.startswith("Usage: vpsd")


def test_a_command_that_there_is_not_is_refused_with_the_way_to_help() -> None:
    done = run("servers", environment=environment())
    assert done.returncode == 2
    assert "vpsd --help" in done.stderr
