"""`make bench`: measures everything in one run, and writes the table that the README quotes."""

import asyncio
import statistics
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from bench import backups, boot, drain, http, money, rest

_ROOT = Path(__file__).parent.parent
_BEGIN, _END = "<!-- bench: copied from docs/bench.md, a test compares -->\n", "<!-- /bench -->"
_AIMS_US = {"detail": 600, "list of 50": 2000, "create": 1500}


def measure_http() -> list[http.Figure]:
    """What requests cost, on SQLite with nothing behind."""
    with tempfile.TemporaryDirectory() as folder:
        database_url = f"sqlite:///{folder}/vpsd.sqlite"
        token = asyncio.run(http.seed(database_url))
        with http.serving(database_url) as (url, pid):
            return asyncio.run(http.measure(url, token, pid))


def table(
    requests: list[http.Figure],
    token_check_us: float,
    metering: list[money.MeteringFigures],
    guest: boot.BootFigures,
    copies: backups.BackupFigures,
    drained: list[drain.DrainFigures],
    resting: list[rest.RestFigures],
) -> str:
    """The figures and what they are held against, as Markdown."""
    ours, direct = statistics.median(guest.vpsd_seconds), statistics.median(guest.direct_seconds)
    rows = [
        (
            "POST to an SSH command in the tiny Linux, against QEMU alone",
            f"{ours:.2f} s / {direct:.2f} s = {guest.ratio:.2f}",
            "at most 1.3",
        ),
        *_backup_rows(copies),
        *(
            (
                f"{figure.name}, of {http.SERVERS:,} servers",
                f"{figure.cpu_us:.0f} µs of CPU, {figure.per_second:.0f} a second",
                f"at most {_AIMS_US[figure.name]} µs",
            )
            for figure in requests
        ),
        (
            f"token check, of {money.TOKENS:,} tokens",
            f"{token_check_us:.0f} µs of CPU, {token_check_us / requests[0].cpu_us:.0%} of a detail",
            "at most 60 µs",
        ),
        *(
            (
                f"charging {money.SERVERS:,} servers for an hour on {figures.database}, against their rows alone",
                f"{figures.seconds:.1f} s / {figures.rows_seconds:.1f} s = {figures.ratio:.1f}",
                "at most 10 s",
            )
            for figures in metering
        ),
        *(
            (
                f"operations of one worker on {figures.database}, a third each of creates, stops and starts, with a "
                "simulated host that answers at once",
                f"{figures.per_second:.0f} a second, {figures.cpu_ms:.1f} ms of CPU each",
                "at least 300 a second",
            )
            for figures in drained
            if figures.command == "all"
        ),
        *(
            (
                f"{figures.hosts:,} hosts with {figures.servers:,} simulated servers at rest, {figures.workers} "
                f"workers on {figures.database}, without figures",
                f"{figures.cores:.3f} cores",
                f"at most {rest.AIM_CORES}",
            )
            for figures in resting
        ),
        ("memory at rest, connected to libvirt", f"{guest.memory_mb:.0f} MB", "at most 150 MB"),
        ("second start until /health answers", f"{guest.health_seconds:.1f} s", "at most 3 s"),
    ]
    lines = ["| what | measured | aim |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + "\n"


def _backup_rows(figures: backups.BackupFigures) -> list[tuple[str, str, str]]:
    full, later, packed, plain = figures.full, figures.incremental, figures.packed, figures.plain
    idle, busy = figures.idle, figures.busy
    return [
        (
            f"full backup of a running guest with {backups.FILES * backups.FILE_MB} MB of random files, "
            "against `qemu-img convert -c`",
            f"{full.seconds:.1f} s / {packed.seconds:.1f} s = {full.seconds / packed.seconds:.1f} "
            f"(without `-c` {plain.seconds:.1f} s); {full.size_mb:.0f} MB / {packed.size_mb:.0f} MB",
            "at most 3",
        ),
        (
            f"incremental one after {backups.FILE_MB} MB have changed, against the full one and `qemu-img convert -c`",
            f"{later.seconds:.1f} s = {later.seconds / full.seconds:.2f} and {later.seconds / packed.seconds:.2f}; "
            f"{later.size_mb:.0f} MB = {later.size_mb / full.size_mb:.2f} and {later.size_mb / packed.size_mb:.2f}",
            "at most 0.2 of the full one",
        ),
        (
            "longest gap between two synced writes in the guest during a backup, and without",
            f"{busy.write_seconds:.2f} s, {idle.write_seconds:.2f} s",
            "at most 1 s",
        ),
        (
            "longest wait for an echo over SSH during a backup, and without",
            f"{busy.echo_seconds:.2f} s, {idle.echo_seconds:.2f} s",
            "at most 1 s",
        ),
    ]


def main() -> None:
    """Measure, print, write."""
    print("requests: CPU of the serving process …", flush=True)
    requests = measure_http()
    print("money: the token check, and an hour of many servers …", flush=True)
    token_check_us, metering = money.measure_token_check(), money.measure_metering()
    print("operations: creates, stops and starts of a simulated host …", flush=True)
    drained = drain.measure()
    print("rest: 1,000 hosts on which nothing happens …", flush=True)
    resting = rest.measure_both()
    print("guests: five creates and five of QEMU alone, in turn …", flush=True)
    guest = boot.measure()
    print("backups: three full and three incremental ones, and qemu-img of the same disk, in turn …", flush=True)
    copies = backups.measure()
    text = table(requests, token_check_us, metering, guest, copies, drained, resting)
    print("\n" + text)
    day = datetime.now(UTC).date().isoformat()
    head = (
        f"# Measured by `make bench` on {day}\n\nMedians; requests on SQLite, kept-alive connections, one process.\n\n"
    )
    (_ROOT / "docs/bench.md").write_text(head + text, encoding="utf-8")
    readme = _ROOT / "README.md"
    before, _, behind = readme.read_text(encoding="utf-8").partition(_BEGIN)
    _, _, after = behind.partition(_END)
    readme.write_text(f"{before}{_BEGIN}\n{text}\n{_END}{after}", encoding="utf-8")
    print("written to docs/bench.md and README.md")


if __name__ == "__main__":
    main()
