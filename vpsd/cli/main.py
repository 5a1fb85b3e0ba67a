"""The `vpsd` command: everything that an operator does.

All of it works while vpsd runs: commands meet it in the database and on the host, not in its process.
"""

import asyncio
import sys

import typer

from vpsd import __version__
from vpsd import main as composition
from vpsd.audit import Audit
from vpsd.cli import accounts, backups, billing, catalog, doctor, images, servers, tokens
from vpsd.cli.output import print_json, print_rows
from vpsd.cli.run import Json, fail, read_settings, with_runtime
from vpsd.errors import VpsdError

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="""vpsd: a VPS cloud on your own machines.

    Begin with `vpsd up`: it serves the API and makes servers. `vpsd doctor` says what this machine can do and lists the
    settings (VPSD_… variables), `vpsd check` says whether everything has its owner.""",
)
app.add_typer(accounts.app, name="account")
app.add_typer(tokens.app, name="token")
app.add_typer(billing.credit_app, name="credit")
app.add_typer(billing.billing_app, name="billing")
app.add_typer(catalog.app, name="catalog")
app.add_typer(images.app, name="image")
app.add_typer(servers.app, name="server")
app.add_typer(backups.app, name="backup")


@app.command()
def up() -> None:
    """Serve the API and make servers, until Ctrl-C. Servers go on running; the next start finds them.

    Prepares the database, finds a libvirt (or starts one of its own where root has none), and at the first start makes
    an account with a token. Example: `VPSD_LISTEN=127.0.0.1:9000 vpsd up`.
    """
    import uvloop

    found = read_settings()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(composition.serve(found, lambda line: print(line, flush=True)))


@app.command()
def check(
    fix: bool = typer.Option(False, "--fix", help="Repair what is found."),
    json: Json = False,
) -> None:
    """Compare database, guests, volumes and addresses: what is unknown, and what is missing?

    Exit status 1 when something was found and not repaired. Works while vpsd runs. Example: `vpsd check --fix`.
    """
    findings = with_runtime(lambda runtime: Audit(runtime, fix=fix).run())
    if json:
        print_json(findings)
    else:
        rows = [(finding.kind, finding.name, finding.text, finding.fixed) for finding in findings]
        print_rows(("kind", "name", "finding", "repair"), rows, "Everything has its owner.")
    if any(finding.fixed is None for finding in findings):
        raise typer.Exit(1)


app.command("doctor")(doctor.doctor)


@app.command()
def version(json: Json = False) -> None:
    """Say which vpsd this is; `vpsd doctor` says what it found on this machine."""
    if json:
        print_json({"version": __version__})
    else:
        typer.echo(__version__)


def main() -> None:
    """The entry point: expected failures are said in one line, without a traceback."""
    try:
        app()
    except VpsdError as error:
        sys.exit(fail(error).exit_code)


if __name__ == "__main__":
    main()
