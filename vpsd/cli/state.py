"""vpsd's own state: in a file and back, and from SQLite to PostgreSQL."""

import os
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from vpsd import main, state
from vpsd.cli.output import console, print_json, print_result, progress_shown
from vpsd.cli.run import Json, read_settings, run_async
from vpsd.core import folder
from vpsd.core.clock import SystemClock, iso_utc
from vpsd.errors import Misconfigured

app = typer.Typer(no_args_is_help=True, help="vpsd's own rows, secrets and settings, in one file.")
db_app = typer.Typer(no_args_is_help=True, help="The database.")

_FILE = typer.Argument(help="The file. It holds secrets.")


@app.command()
@run_async
async def backup(file: Annotated[Path, _FILE], json: Json = False) -> None:
    """Write vpsd's rows, secrets and settings to a file, as of one moment, while it runs.

    Not in it: servers' disks (`vpsd backup` keeps copies), images, and SSH keys of hosts. Keep it on another machine.
    Example: `vpsd state backup /mnt/elsewhere/vpsd.state`.
    """
    settings = read_settings()
    with progress_shown("backup") as report:
        found = await state.back_up(settings, os.environ, file, iso_utc(SystemClock().now_ms()), report)
    total = sum(found.rows.values())
    fields = {"file": str(file), "schema": found.schema, "rows": found.rows, "files": sorted(found.head.files)}
    size = file.stat().st_size
    print_result(json, {**fields, "bytes": size}, f"Wrote {total} rows to {file}, {size} bytes. It holds secrets.")


@app.command()
@run_async
async def restore(
    file: Annotated[Path, _FILE],
    replace: Annotated[bool, typer.Option("--replace", help="Set aside a database and files that are there.")] = False,
    json: Json = False,
) -> None:
    """Bring back what `vpsd state backup` wrote, into an empty data folder and the database of the settings.

    It may come from either kind of database; PostgreSQL's must be empty. The settings are in settings.env in the data
    folder afterwards, for you to look at. Next: `vpsd up` finds the guests that still run, `vpsd check` what was made
    after the backup. Example: `VPSD_DATA_DIR=/var/lib/vpsd vpsd state restore vpsd.state`.
    """
    settings = read_settings()
    with main.sole_user(settings), progress_shown("restore") as report:
        said = await state.restore(settings, file, report, replace=replace)
        folder.hide(settings)
    if json:
        print_json({"file": str(file), "done": said})
        return
    for line in said:
        console.print(line, markup=False)


@db_app.command("import")
@run_async
async def import_(
    source: Annotated[Path | None, typer.Option("--from", help="By default, vpsd.sqlite in the data folder.")] = None,
    json: Json = False,
) -> None:
    """Move the SQLite database to the empty PostgreSQL of VPSD_DATABASE_URL; guests run on meanwhile.

    Stop vpsd first. Afterwards the file has another name, and `vpsd up` goes on with PostgreSQL in the same data
    folder. Example: `VPSD_DATABASE_URL=postgresql://vpsd@db/vpsd vpsd db import`.
    """
    settings = read_settings()
    if settings.database_url is None:
        raise Misconfigured("set VPSD_DATABASE_URL to the PostgreSQL that shall have the rows")
    path = source or settings.data_dir / "vpsd.sqlite"
    alone = msgspec.structs.replace(settings, database_url=None, data_dir=path.absolute().parent)
    with main.sole_user(alone), progress_shown("import") as report:
        counts = await state.move(path, settings.database_url, report)
        aside = state.set_aside(path)
    total = sum(counts.values())
    print_result(json, {"file": str(aside), "rows": counts}, f"Moved {total} rows; {path} is {aside.name} now.")
