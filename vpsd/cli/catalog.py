"""The catalogue."""

from pathlib import Path
from typing import Annotated, Any

import typer

from vpsd import main
from vpsd.catalog import service
from vpsd.cli.output import console, print_json, print_rows
from vpsd.cli.run import Json, read_settings, reading, with_transactions
from vpsd.core import money
from vpsd.core.context import Ctx
from vpsd.worker.repricing import apply_catalog

app = typer.Typer(no_args_is_help=True, help="What this vpsd offers: plans, operating systems, locations.")


@app.command()
def show(json: Json = False) -> None:
    """Show the catalogue, with what is no longer offered. To change it, edit its file and `vpsd catalog apply`."""

    async def work(ctx: Ctx) -> dict[str, list[Any]]:
        return {
            "plans": list(await service.list_plans(ctx)),
            "operating_systems": list(await service.list_operating_systems(ctx)),
            "locations": list(await service.list_locations(ctx)),
        }

    found = reading(work)
    if json:
        print_json(found)
        return
    for title, columns in (
        ("plans", ("id", "name", "vcpus", "memory_mb", "storage_gb", "bandwidth_gb", "price_monthly", "available")),
        ("operating_systems", ("id", "name", "slug", "source", "available")),
        ("locations", ("id", "code", "name", "country_name", "available")),
    ):
        console.print(f"\n{title.replace('_', ' ')}", style="bold")
        print_rows(columns, [[_cell(row, name) for name in columns] for row in found[title]], "none")


def _cell(row: Any, name: str) -> object:
    return money.text(row.price_monthly_micros) if name == "price_monthly" else getattr(row, name)


@app.command()
def apply(
    file: Annotated[Path | None, typer.Argument(help="By default catalog.toml in the data folder.")] = None,
    json: Json = False,
) -> None:
    """Take over what a catalogue file says; a running vpsd offers it from then on.

    Without a file, catalog.toml of the data folder is read, as at every start. Ids keep their meaning: a plan's size, a
    system's source and a location's code do not change under an id; what the file no longer names is no longer offered.
    A new price is for new servers; `price_for_all_from` says from when those that have the plan pay it.
    `vpsd catalog show` shows what came of it.
    """
    path = file or main.catalog_file(read_settings())
    changes = with_transactions(lambda transactions: apply_catalog(transactions, path))
    if json:
        print_json({"file": str(path), "changes": changes})
    else:
        typer.echo("\n".join(changes) or f"The catalogue is as {path} says.")
