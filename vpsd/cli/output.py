"""How commands speak: tables and sentences for people, JSON for programs, plain lines where there is no terminal."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

console = Console(highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """A value, for programs."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=2).decode() + "\n")


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
    """A cell as it is written: customers' words are neither markup nor orders to a terminal."""
    return Text("".join(character if character.isprintable() else "?" for character in str(cell)))


@contextmanager
def progress_shown(title: str) -> Iterator[Callable[[float, str], None]]:
    """A bar on a terminal; elsewhere a line whenever what is done changes, and at every tenth."""
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    if errors.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        with Progress(*columns, console=errors) as bar:
            task = bar.add_task(title, total=1.0)
            yield lambda fraction, text: bar.update(task, completed=fraction, description=text)
        return
    said: list[tuple[int, str]] = []

    def line(fraction: float, text: str) -> None:
        now = (int(fraction * 10), text)
        if not said or said[-1] != now:
            said[:] = [now]
            errors.print(f"{title}: {fraction:4.0%} {text}", markup=False)

    yield line
