"""The catalogue."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from vpsd import main
from vpsd.catalog import service
from vpsd.cli.output import console, print_json, print_result, print_rows
from vpsd.cli.run import Json, reading, run_async, transactions
from vpsd.core import money
from vpsd.worker.repricing import apply_catalog

app = typer.Typer(no_args_is_help=True, help="What this vpsd offers: plans, operating systems, locations.")


@app.command()
@run_async
async def show(json: Json = False) -> None:
    """Show the catalogue, including what is no longer offered. To change it, edit its file and `vpsd catalog apply`."""
    async with reading() as ctx:
        found: dict[str, Sequence[Any]] = {
            "plans": await service.list_plans(ctx),
            "operating_systems": await service.list_operating_systems(ctx),
            "locations": await service.list_locations(ctx),
        }
    if json:
        print_json(found)
        return
    for title, columns in (
        ("plans", ("id", "name", "vcpus", "memory_mb", "storage_gb", "bandwidth_gb", "price_monthly", "available")),
        ("operating_systems", ("id", "name", "slug", "source", "disk_gb", "available")),
        ("locations", ("id", "code", "name", "country_name", "available")),
    ):
        console.print(f"\n{title.replace('_', ' ')}", style="bold")
        print_rows(columns, [[_cell(row, name) for name in columns] for row in found[title]], "none")


def _cell(row: Any, name: str) -> object:
    return money.decimal(row.price_monthly_micros) if name == "price_monthly" else getattr(row, name)


@app.command()
@run_async
async def apply(
    file: Annotated[Path | None, typer.Argument(help="By default, catalog.toml in the data folder.")] = None,
    json: Json = False,
) -> None:
    """Apply a catalogue file; a running vpsd offers it from then on.

    Without a file, catalog.toml in the data folder is read, as at every start. Ids keep their meaning: a plan's size, a
    system's source and a location's code cannot change. What the file no longer names is no longer offered. A new price
    applies to new servers; `price_for_all_from` says from when existing servers pay it too. `vpsd catalog show` shows
    the result.
    """
    async with transactions() as opened:
        path = file or main.catalog_file(opened.settings)
        changes = await apply_catalog(opened, path)
    text = "\n".join(changes) or f"The catalogue already matches {path}."
    print_result(json, {"file": str(path), "changes": changes}, text)
