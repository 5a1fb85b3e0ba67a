"""Output of commands: tables and sentences for people, JSON for programs, plain lines if there is no terminal."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

console = Console(highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """A value as JSON."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=2).decode() + "\n")


def print_result(json: bool, value: Any, sentence: str) -> None:
    """The outcome of a command: a value for programs, or a sentence for people."""
    if json:
        print_json(value)
    else:
        typer.echo(sentence)


def print_list(json: bool, found: Sequence[Mapping[str, Any]], columns: Sequence[str], nothing: str) -> None:
    """A list: everything for programs, or these columns for people."""
    if json:
        print_json(found)
    else:
        print_rows(columns, [[row[name] for name in columns] for row in found], nothing)


def print_rows(columns: Sequence[str], found: Sequence[Sequence[object]], nothing: str) -> None:
    """Rows under headings, or a sentence when there are none."""
    if not found:
        console.print(nothing, markup=False)
        return
    table = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for row in found:
        table.add_row(*("-" if cell is None else _plain(cell) for cell in row))
    console.print(table)


def _plain(cell: object) -> Text:
    """A cell verbatim: what customers wrote is neither markup nor control characters for the terminal."""
    return Text("".join(character if character.isprintable() else "?" for character in str(cell)))


@contextmanager
def progress_shown(title: str) -> Iterator[Callable[[float, str], None]]:
    """A progress bar on a terminal; elsewhere, a line for each new step and each tenth."""
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    if errors.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        with Progress(*columns, console=errors) as bar:
            task = bar.add_task(title, total=1.0)
            yield lambda fraction, text: bar.update(task, completed=fraction, description=text)
        return
    printed: list[tuple[int, str]] = []

    def line(fraction: float, text: str) -> None:
        now = (int(fraction * 10), text)
        if not printed or printed[-1] != now:
            printed[:] = [now]
            errors.print(f"{title}: {fraction:4.0%} {text}", markup=False)

    yield line
