"""Backups and snapshots, as the operator sees them: all accounts', and whether they are good for anything."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from vpsd import main
from vpsd.accounts import events
from vpsd.accounts import service as accounts
from vpsd.backups import rows
from vpsd.backups.models import Backup, Kind, State
from vpsd.backups.repository import BackupRef, VerifyResult, new_key
from vpsd.cli.output import print_json, print_rows
from vpsd.cli.run import Json, read_settings, with_database
from vpsd.core.clock import SystemClock, iso_utc, iso_utc_or_none
from vpsd.core.db import Database, Tx
from vpsd.core.ids import Ids
from vpsd.errors import Busy, Misconfigured, NotFound, Unavailable, Unusable, WrongStatus
from vpsd.servers import rows as servers

app = typer.Typer(no_args_is_help=True, help="Backups and snapshots of all accounts.")

_MB = 1 << 20


@app.command("list")
def list_backups(json: Json = False) -> None:
    """List every backup and snapshot of which something is on a target. Example: `vpsd backup list --json`.

    `vpsd backup verify` says whether they can be read.
    """

    async def work(database: Database) -> list[Backup]:
        async with database.read() as tx:
            return await rows.there(tx)

    shown = [_shown(backup) for backup in with_database(work)]
    if json:
        print_json(shown)
    else:
        columns = ("id", "kind", "server_id", "status", "made", "expires", "disk_mb", "sent_mb", "target", "error")
        print_rows(columns, [[row[name] for name in columns] for row in shown], "There are no backups.")


def _shown(backup: Backup) -> dict[str, Any]:
    return {
        "id": backup.id,
        "uuid": backup.uuid,
        "account_id": backup.account_id,
        "server_id": backup.server_id,
        "kind": backup.kind,
        "status": backup.status if backup.deleted_at_ms is None else "deleted",
        "made": iso_utc(backup.created_at_ms),
        "expires": iso_utc_or_none(backup.expires_at_ms),
        "incremental": backup.incremental,
        "consistent": backup.frozen,
        "paused_ms": backup.frozen_ms,
        "disk_mb": None if backup.size_bytes is None else -(-backup.size_bytes // _MB),
        "sent_mb": None if backup.sent_bytes is None else round(backup.sent_bytes / _MB, 2),
        "target": backup.target,
        "key_id": backup.key_id,
        "error": backup.error,
    }


@app.command()
def verify(
    backup_id: Annotated[int | None, typer.Argument(help="Id of a backup or snapshot; without it, all.")] = None,
    json: Json = False,
) -> None:
    """Read backups from the target to their last byte, and hold them against their checksums.

    Exit status 1 when one is damaged. Example: `vpsd backup verify 12`. A rehearsal goes further: make a server of it.
    """
    settings = read_settings()

    async def work(database: Database) -> list[dict[str, Any]]:
        async with database.write() as tx:
            repository = main.make_repository(settings, await accounts.instance(tx, Ids()))
            found = await _wanted(tx, backup_id)
            places = [BackupRef((await servers.get(tx, one.server_id)).uuid, one.uuid) for one in found]
        results = []
        for backup, place in zip(found, places, strict=True):
            read, error = VerifyResult(0, 0), None
            try:
                if backup.target != repository.target_name:
                    raise Unusable(f"It lies in {backup.target}, and vpsd is set to {repository.target_name}.")
                read = await repository.verify(place)
            except (Unavailable, Unusable) as damage:
                error = str(damage)
            results.append(
                {"id": backup.id, "kind": backup.kind, "chunks": read.chunks, "bytes": read.size_bytes, "error": error}
            )
        return results

    results = with_database(work)
    if json:
        print_json(results)
    else:
        rows_shown = [[*list(row.values())[:4], row["error"] or "whole"] for row in results]
        print_rows(("id", "kind", "chunks", "bytes", "result"), rows_shown, "There are no backups.")
    if any(row["error"] for row in results):
        raise typer.Exit(1)


async def _wanted(tx: Tx, backup_id: int | None) -> list[Backup]:
    whole = [one for one in await rows.there(tx) if one.status == State.COMPLETED and one.deleted_at_ms is None]
    found = [one for one in whole if backup_id in (None, one.id)]
    if backup_id is not None and not found:
        raise NotFound(f"There is no completed backup or snapshot {backup_id}; `vpsd backup list` lists them.")
    return found


@app.command()
def delete(
    backup_id: Annotated[int, typer.Argument(help="Id of a backup or snapshot, from `vpsd backup list`.")],
    json: Json = False,
) -> None:
    """Delete an account's backup or snapshot for ever, one that is damaged, say. Example: `vpsd backup delete 12`.

    What no other backup needs of it is taken off the target within seconds, while vpsd runs.
    """

    async def work(database: Database) -> None:
        async with database.write() as tx:
            backup = await rows.lock(tx, backup_id)
            if backup is None or backup.deleted_at_ms is not None:
                raise NotFound(f"There is no backup or snapshot {backup_id}; `vpsd backup list` lists them.")
            user = await rows.user_of(tx, backup_id)
            if user is not None:
                raise Busy(f"It is in use by server {user}; try again when that is done.")
            clock = SystemClock()
            await rows.delete(tx, backup_id, clock.now_ms())
            what = "snapshot" if backup.kind == Kind.SNAPSHOT else "backup"
            actor = accounts.operator(backup.account_id)
            await events.add(tx, clock, actor, f"{what}.delete", what, backup_id, f"of server {backup.server_id}")

    with_database(work)
    if json:
        print_json({"id": backup_id})
    else:
        typer.echo(f"{backup_id} is deleted.")


@app.command()
def now(
    server_id: Annotated[int, typer.Argument(help="Id of the server, from `vpsd server list`.")], json: Json = False
) -> None:
    """Have a server's daily backup made now instead of in the window. Example: `vpsd backup now 12`.

    Its customer has to have backups enabled. The next one comes in the window again.
    """

    async def work(database: Database) -> None:
        async with database.write() as tx:
            server = next((one for one in await servers.present(tx) if one.id == server_id), None)
            if server is None:
                raise NotFound(f"There is no server {server_id}; `vpsd server list` lists them.")
            server = await servers.lock(tx, server_id)
            if server.next_backup_at_ms is None:
                raise WrongStatus(f"The server {server_id} has no backups enabled.")
            await servers.set_next_backup(tx, server_id, SystemClock().now_ms())

    with_database(work)
    if json:
        print_json({"server_id": server_id})
    else:
        typer.echo(
            f"The daily backup of server {server_id} begins as soon as the server is at rest, active or stopped."
        )


@app.command()
def key(
    file: Annotated[Path, typer.Argument(help="Where to put it; nothing is written over.")], json: Json = False
) -> None:
    """Make a key that backups are encrypted with, in a file that only its owner may read.

    Example: `vpsd backup key /etc/vpsd/backup.key`, then set VPSD_BACKUP_KEY_FILE to it. Keep a copy elsewhere: without
    the key nobody can read the backups.
    """
    try:
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as made:
            made.write(new_key() + "\n")
    except OSError as error:
        raise Misconfigured(f"{file} cannot be written: {error.strerror}") from error
    if json:
        print_json({"file": str(file)})
    else:
        typer.echo(f"{file} holds a new key. Set VPSD_BACKUP_KEY_FILE={file}, and keep a copy of it elsewhere.")
