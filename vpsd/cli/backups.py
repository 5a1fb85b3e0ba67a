"""Backups and snapshots, as the operator sees them: all accounts', and whether they can be restored."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from vpsd import main
from vpsd.accounts import service as accounts
from vpsd.backups import commands, queries
from vpsd.backups.models import Backup, BackupStatus, Kind
from vpsd.backups.repository import BackupRef, VerifyResult, new_key
from vpsd.cli.output import print_json, print_rows
from vpsd.cli.run import Json, reading, with_transactions, writing
from vpsd.core.clock import iso_utc, iso_utc_or_none
from vpsd.core.context import OPERATOR, Ctx, Transactions
from vpsd.errors import Misconfigured, NotFound, Unavailable, Unusable
from vpsd.servers import queries as servers

app = typer.Typer(no_args_is_help=True, help="Backups and snapshots of all accounts.")

_MB = 1 << 20


@app.command("list")
def list_backups(json: Json = False) -> None:
    """List every backup and snapshot of which something is on a target. Example: `vpsd backup list --json`.

    `vpsd backup verify` says whether they can be read.
    """

    listed = [_fields(backup) for backup in reading(queries.present)]
    if json:
        print_json(listed)
    else:
        columns = ("id", "kind", "server_id", "status", "made", "expires", "disk_mb", "sent_mb", "target", "error")
        print_rows(columns, [[row[name] for name in columns] for row in listed], "There are no backups.")


def _fields(backup: Backup) -> dict[str, Any]:
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
    """Read backups from the target to their last byte, and compare them with their checksums.

    Exit status 1 when one is damaged. Example: `vpsd backup verify 12`. To be surer, create a server from it.
    """

    async def work(transactions: Transactions) -> list[dict[str, Any]]:
        async with transactions.write(OPERATOR) as ctx:
            repository = main.make_repository(ctx.settings, await accounts.instance(ctx))
            found = await _completed(ctx, backup_id)
            refs = [BackupRef((await servers.row(ctx, one.server_id)).uuid, one.uuid) for one in found]
        results = []
        for backup, ref in zip(found, refs, strict=True):
            read, error = VerifyResult(0, 0), None
            try:
                if backup.target != repository.target_name:
                    raise Unusable(f"It is in {backup.target}, and vpsd is configured for {repository.target_name}.")
                read = await repository.verify(ref)
            except (Unavailable, Unusable) as damage:
                error = str(damage)
            results.append(
                {"id": backup.id, "kind": backup.kind, "chunks": read.chunks, "bytes": read.size_bytes, "error": error}
            )
        return results

    results = with_transactions(work)
    if json:
        print_json(results)
    else:
        rows_shown = [[*list(row.values())[:4], row["error"] or "whole"] for row in results]
        print_rows(("id", "kind", "chunks", "bytes", "result"), rows_shown, "There are no backups.")
    if any(row["error"] for row in results):
        raise typer.Exit(1)


async def _completed(ctx: Ctx, backup_id: int | None) -> list[Backup]:
    present = [one for one in await queries.present(ctx) if one.deleted_at_ms is None]
    found = [one for one in present if one.status == BackupStatus.COMPLETED and backup_id in (None, one.id)]
    if backup_id is not None and not found:
        raise NotFound("completed backup or snapshot", backup_id)
    return found


@app.command()
def delete(
    backup_id: Annotated[int, typer.Argument(help="Id of a backup or snapshot, from `vpsd backup list`.")],
    json: Json = False,
) -> None:
    """Delete an account's backup or snapshot for ever, one that is damaged, say. Example: `vpsd backup delete 12`.

    What no other backup needs of it is taken off the target within seconds, while vpsd runs.
    """

    async def work(ctx: Ctx) -> None:
        backup = await queries.find(ctx, backup_id)
        if backup is None or backup.deleted_at_ms is not None:
            raise NotFound("backup or snapshot", backup_id)
        await commands.delete(ctx.in_account(backup.account_id), (Kind(backup.kind),), backup_id)

    writing(work)
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

    async def work(ctx: Ctx) -> None:
        found = {server.id: server.account_id for server in await servers.present(ctx)}
        if server_id not in found:
            raise NotFound("server", server_id)
        await commands.make_daily_due(ctx.in_account(found[server_id]), server_id)

    writing(work)
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
