"""The `vpsd` command: everything that an operator does.

All of it works while vpsd runs: commands share the database and the host with it, not its process.
"""

import asyncio
import sys
from typing import Annotated

import typer

from vpsd import __version__
from vpsd import main as composition
from vpsd.audit import Audit
from vpsd.cli import accounts, backups, billing, catalog, doctor, drain, events, hosts, images, servers, state, tokens
from vpsd.cli.output import print_json, print_rows
from vpsd.cli.run import Json, read_settings, run_async
from vpsd.cli.texts import text
from vpsd.errors import VpsdError
from vpsd.main import Part

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="""vpsd: a VPS cloud on your own machines.

    Begin with `vpsd up`: it serves the API and runs servers. `vpsd doctor` shows what this machine can do and lists the
    settings (VPSD_… variables), `vpsd check` looks for inconsistencies.""",
)
app.add_typer(accounts.app, name="account")
app.add_typer(tokens.app, name="token")
app.add_typer(billing.credit_app, name="credit")
app.add_typer(billing.billing_app, name="billing")
app.add_typer(catalog.app, name="catalog")
app.add_typer(images.app, name="image")
hosts.app.command()(drain.drain)
app.add_typer(hosts.app, name="host")
app.add_typer(servers.app, name="server")
app.add_typer(backups.app, name="backup")
app.add_typer(events.app, name="event")
app.add_typer(state.app, name="state")
app.add_typer(state.db_app, name="db")


def _say_version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(False, "--version", is_eager=True, callback=_say_version, help="Show the version."),
) -> None:
    """Take what every program takes."""


NewCloud = Annotated[
    bool,
    typer.Option("--new-cloud", help="Begin with a new database beside what an earlier cloud has left, which stays."),
]


@app.command()
def up(new_cloud: NewCloud = False) -> None:
    """Serve the API and run servers, until Ctrl-C. Servers keep running, and the next start finds them.

    Prepares the database, finds libvirt (or starts its own if root has none), and at the first start creates an account
    with a token. Example: `VPSD_LISTEN=127.0.0.1:9000 vpsd up`.
    """
    _serve(Part.BOTH, new_cloud)


@app.command()
def api(new_cloud: NewCloud = False) -> None:
    """Serve the API alone, beside workers; any number of them, on any machines, on one PostgreSQL.

    When it is told to end, /health/ready says so at once, and it goes on serving for VPSD_DRAIN_SECONDS. Example:
    `VPSD_DATABASE_URL=postgresql://vpsd@db/vpsd vpsd api`.
    """
    _serve(Part.API, new_cloud)


@app.command()
def worker(new_cloud: NewCloud = False) -> None:
    """Run servers alone, beside APIs; any number of them, on any machines, on one PostgreSQL.

    What a worker that dies was doing is taken over by another within 20 seconds. Example:
    `VPSD_DATABASE_URL=postgresql://vpsd@db/vpsd vpsd worker`.
    """
    _serve(Part.WORKER, new_cloud)


def _serve(part: Part, new_cloud: bool) -> None:
    import uvloop

    found = read_settings()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(composition.serve(found, lambda line: print(line, flush=True), part, new_cloud=new_cloud))


@app.command()
@run_async
async def check(
    fix: bool = typer.Option(False, "--fix", help="Repair what is found."),
    json: Json = False,
) -> None:
    """Compare database, guests, volumes, addresses and the backups' target: what is unknown, and what is missing?

    Exit status 1 if something was found and not repaired. Works while vpsd runs. Example: `vpsd check --fix`.
    """
    async with composition.open_runtime(read_settings()) as runtime:
        findings = await Audit(runtime, fix=fix).run()
    if json:
        print_json(findings)
    else:
        rows = [(finding.kind, finding.name, finding.text, finding.fixed) for finding in findings]
        print_rows(("kind", "name", "finding", "repair"), rows, "No inconsistencies.")
    if any(finding.fixed is None for finding in findings):
        raise typer.Exit(1)


app.command("doctor")(doctor.doctor)


@app.command()
def version(json: Json = False) -> None:
    """Show the version of vpsd; `vpsd doctor` shows what this machine can do."""
    if json:
        print_json({"version": __version__})
    else:
        typer.echo(__version__)


def main() -> None:
    """The entry point: an expected failure is one line, without a traceback."""
    try:
        app()
    except VpsdError as error:
        typer.echo(f"vpsd: {text(error)}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
