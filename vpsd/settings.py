"""Every setting of vpsd: its name, type, default and description. Read once, at startup, from `VPSD_…` variables.

vpsd refuses to start on an unknown `VPSD_…` variable or an invalid value: a typo never silently means the default.
"""

import ipaddress
import re
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from vpsd.core import money
from vpsd.errors import Misconfigured

_PREFIX = "VPSD_"

# A host and maybe a port, as they stand in a URL, and a path below them that ends without a slash.
HOST = r"(?P<name>[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\])(:(?P<port>[0-9]{1,5}))?"
PATH = r"(/(?!\.{1,2}(/|$))[A-Za-z0-9._~-]+)*"


_GONE = {"role": "start `vpsd api` or `vpsd worker`; `vpsd up` is both in one process"}


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator may set; `vpsd doctor` prints it."""

    data_dir: Annotated[Path, Meta(description="Directory for the database, images, pool and token.")] = Path("var")
    listen: Annotated[str, Meta(description="Address and port that the API listens on.")] = "127.0.0.1:8000"
    database_url: Annotated[
        str | None, Meta(description="postgresql://… to use PostgreSQL; unset: SQLite in the data directory.")
    ] = None
    hypervisor: Annotated[
        Literal["libvirt", "simulator"], Meta(description="libvirt runs real servers; simulator fakes them.")
    ] = "libvirt"
    libvirt_uri: Annotated[str | None, Meta(description="Which libvirt to use; unset: detected at startup.")] = None
    virt_type: Annotated[
        Literal["kvm", "qemu"] | None, Meta(description="kvm, or qemu for emulation; unset: detected by a probe.")
    ] = None
    pool_dir: Annotated[
        Path | None, Meta(description="Directory for disks on the host; unset: depends on the kind of libvirt.")
    ] = None
    address_pool: Annotated[str, Meta(description="Loopback network for servers' addresses.")] = "127.10.0.0/16"
    address_rest_minutes: Annotated[
        int,
        Meta(ge=0, le=525600, description="Minutes until another server may get a deleted one's address; 0: at once."),
    ] = 5  # shorter than an operation waits for one
    forward_ports: Annotated[str, Meta(description="Ports forwarded to a server, comma-separated; 22 always is.")] = (
        "80,443"
    )
    image_max_gb: Annotated[
        int, Meta(ge=1, le=16384, description="Largest disk, in GB, of an image that is pulled or imported.")
    ] = 64
    workers: Annotated[int, Meta(ge=1, le=64, description="Worker slots: operations run at once by a process.")] = 4
    host_workers: Annotated[
        Annotated[int, Meta(ge=1, le=64)] | None,
        Meta(description="Worker slots that one host may take of a process; unset: half, or all where it is alone."),
    ] = None
    boot_timeout_seconds: Annotated[
        int,
        Meta(
            ge=5,
            le=3600,
            description="How long a guest may take to answer after power-on; a silent one then goes on, with a note.",
        ),
    ] = 240
    moves_per_host: Annotated[
        int, Meta(ge=1, le=64, description="Servers that may leave a host at once; further ones wait.")
    ] = 2
    stop_timeout_seconds: Annotated[
        int, Meta(ge=1, le=3600, description="How long a graceful stop may take before power is cut.")
    ] = 90
    sweep_seconds: Annotated[
        int,
        Meta(
            ge=2,
            le=3600,
            description="Every server of a host is compared with its guest at least so often; what the host reports is "
            "seen to at once.",
        ),
    ] = 60
    simulator_boot_seconds: Annotated[
        float, Meta(ge=0, le=600, description="How long a simulated guest takes to answer.")
    ] = 0.5
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Meta(description="Lowest level to log.")] = (
        "info"
    )
    log_format: Annotated[Literal["text", "json"], Meta(description="Log lines for people or for machines.")] = "text"
    public_url: Annotated[
        str | None,
        Meta(description="https://host[/prefix] that customers reach the API at; unset: as a trusted proxy says."),
    ] = None
    trusted_proxies: Annotated[
        str, Meta(description="Comma-separated addresses of proxies whose X-Forwarded-… headers are trusted.")
    ] = ""
    cors_origins: Annotated[
        str,
        Meta(description="Comma-separated origins whose pages may use the API from a browser, or *; unset: none."),
    ] = ""
    rate_limit: Annotated[
        int, Meta(ge=0, description="Requests per minute and token, in each API process; 0: no limit.")
    ] = 1200
    address_rate_limit: Annotated[
        int,
        Meta(
            ge=0,
            description="Requests per minute and address (IPv6: /64) without a right token, in each API process; 0: no "
            "limit.",
        ),
    ] = 2400
    login_failures: Annotated[
        int,
        Meta(
            ge=0,
            description="Wrong tokens per address in ten minutes, after which further ones get a 429; 0: no limit.",
        ),
    ] = 20
    connections: Annotated[
        int, Meta(ge=16, le=1_000_000, description="Connections that the API serves at once, if descriptors suffice.")
    ] = 4096
    connections_per_address: Annotated[
        int,
        Meta(
            ge=1,
            description="Connections from one address at once; through a trusted proxy: requests that wait for an "
            "answer.",
        ),
    ] = 256
    drain_seconds: Annotated[
        float,
        Meta(
            ge=0,
            le=300,
            description="How long the API goes on serving when it is told to end, while /health/ready sends balancers "
            "elsewhere.",
        ),
    ] = 0
    tokens_per_account: Annotated[
        int, Meta(ge=1, le=100_000, description="Valid tokens that an account may have; the operator may add more.")
    ] = 100
    ssh_keys_per_account: Annotated[int, Meta(ge=0, le=100_000, description="SSH keys that an account may have.")] = 100
    placement_groups_per_account: Annotated[
        int, Meta(ge=0, le=100_000, description="Placement groups that an account may have.")
    ] = 50
    operations_per_account: Annotated[
        int,
        Meta(ge=1, le=100_000, description="Operations of an account that may be open at once; deletions always may."),
    ] = 200
    events_keep_days: Annotated[
        Annotated[int, Meta(ge=1, le=36525)] | None,
        Meta(description="Days after which events are deleted, once a day; unset: never, but by `vpsd event prune`."),
    ] = None
    currency: Annotated[str, Meta(description="The currency of credit: an ISO 4217 code.")] = "USD"
    cover_hours: Annotated[
        int,
        Meta(ge=0, le=8760, description="Hours of an account's servers that the balance must cover at a create."),
    ] = 24
    grace_hours: Annotated[
        int,
        Meta(ge=0, le=8760, description="Hours after the credit runs out until an account's servers are suspended."),
    ] = 72
    delete_unpaid_after_days: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="Days after suspension until servers are deleted; unset: never."),
    ] = None
    undelete_hours: Annotated[
        int, Meta(ge=0, le=8760, description="Hours during which a deleted server can be undeleted; 0: never.")
    ] = 0
    transfer_price: Annotated[Decimal, Meta(description="Price of a GB of transfer beyond the plan's; 0: free.")] = (
        Decimal("0.01")
    )
    vcpu_overcommit: Annotated[float, Meta(gt=0, le=1000, description="vCPUs to allocate per CPU of the host.")] = 8.0
    memory_overcommit: Annotated[
        float, Meta(gt=0, le=1000, description="Memory to allocate, as a multiple of the host's.")
    ] = 1.0
    storage_overcommit: Annotated[
        float,
        Meta(
            gt=0, le=1000, description="Disk space to allocate, as a multiple of the pool's: disks grow as they fill."
        ),
    ] = 4.0
    storage_reserve_mb: Annotated[
        Annotated[int, Meta(ge=0)] | None,
        Meta(
            description="Space of the pool that is left for servers that run: below it nothing begins that takes more; "
            "unset: 5 % of the pool, at most 10 GB."
        ),
    ] = None

    image_keep_hours: Annotated[
        int,
        Meta(ge=0, le=8760, description="Hours until an image that nothing needs is removed from a host; 0: never."),
    ] = 72

    backup_dir: Annotated[
        Path | None, Meta(description="Directory for backups; unset: `backups` in the data directory.")
    ] = None
    backup_s3: Annotated[
        str | None, Meta(description="Bucket, or bucket/prefix, for backups instead of a directory.")
    ] = None
    backup_s3_endpoint: Annotated[
        str | None, Meta(description="https://… of an S3-compatible service; unset: AWS.")
    ] = None
    backup_s3_region: Annotated[str | None, Meta(description="The bucket's region; unset: boto3's default.")] = None
    backup_key_file: Annotated[
        Path | None, Meta(description="File with a key of 64 hex digits that encrypts backups; unset: no encryption.")
    ] = None
    backup_window: Annotated[
        str, Meta(description="When daily backups start: HH:MM-HH:MM, in UTC; may cross midnight.")
    ] = "03:00-05:00"
    backup_keep_daily: Annotated[
        int, Meta(ge=0, le=366, description="Days to keep a daily backup; all three 0: a calendar month.")
    ] = 0
    backup_keep_weekly: Annotated[
        int, Meta(ge=0, le=104, description="Weeks to keep a weekly backup; all three 0: a calendar month.")
    ] = 0
    backup_keep_monthly: Annotated[
        int, Meta(ge=0, le=120, description="Months to keep a monthly backup; all three 0: a calendar month.")
    ] = 0
    backups_per_server: Annotated[int, Meta(ge=0, le=1000, description="Manual backups that a server may have.")] = 10
    snapshots_per_server: Annotated[int, Meta(ge=0, le=1000, description="Snapshots that a server may have.")] = 5

    @property
    def url(self) -> str:
        """The database's URL."""
        return self.database_url or f"sqlite:///{self.data_dir / 'vpsd.sqlite'}"

    @property
    def host_port(self) -> tuple[str, int]:
        """`listen`, as host and port."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)

    @property
    def proxy_networks(self) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
        """`trusted_proxies`, parsed."""
        return tuple(_network(proxy.strip()) for proxy in self.trusted_proxies.split(",") if proxy.strip())

    @property
    def guests_pass_for_a_proxy(self) -> bool:
        """Whether a trusted proxy has the address that guests come from: QEMU's user-mode network lets them out there.

        They can then say that they are anybody: decision 4.
        """
        here = (ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1"))
        return self.hypervisor == "libvirt" and any(one in network for network in self.proxy_networks for one in here)

    @property
    def cors(self) -> tuple[str, ...]:
        """`cors_origins`, one by one."""
        return tuple(origin.strip() for origin in self.cors_origins.split(",") if origin.strip())

    @property
    def guest_ports(self) -> tuple[int, ...]:
        """Forwarded ports of a guest, 22 first."""
        extra = dict.fromkeys(int(port) for port in self.forward_ports.split(",") if port.strip())
        extra.pop(22, None)
        return (22, *extra)

    @property
    def transfer_price_micros(self) -> int:
        """`transfer_price`, in micros."""
        return money.parse(self.transfer_price)

    @property
    def backup_folder(self) -> Path:
        """Where backups are stored unless `backup_s3` is set."""
        return self.backup_dir or self.data_dir / "backups"

    @property
    def backup_window_minutes(self) -> tuple[int, int]:
        """`backup_window`: the minute of the day (UTC) it starts at, and how many minutes it lasts."""
        start, end = (int(time[:2]) * 60 + int(time[3:]) for time in self.backup_window.split("-"))
        return start, (end - start) % (24 * 60)

    @property
    def network(self) -> ipaddress.IPv4Network:
        """`address_pool`, parsed."""
        return ipaddress.IPv4Network(self.address_pool)


def load(environment: Mapping[str, str]) -> Settings:
    """Read the settings from an environment; raises `Misconfigured`, which names the variable and what it accepts."""
    fields = {field.name: field for field in msgspec.structs.fields(Settings)}
    values: dict[str, Any] = {}
    for variable, text in environment.items():
        if not variable.startswith(_PREFIX) or not text:
            continue
        name = variable.removeprefix(_PREFIX).lower()
        if name in _GONE:
            raise Misconfigured(f"{variable} is not a setting any more: {_GONE[name]}")
        if name not in fields:
            known = ", ".join(_PREFIX + field.upper() for field in fields)
            raise Misconfigured(f"{variable} is not a setting of vpsd; the settings are {known}")
        try:
            values[name] = (
                Path(text).absolute()
                if name.endswith(("_dir", "_file"))
                else msgspec.convert(text, fields[name].type, strict=False)
            )
        except msgspec.ValidationError as error:
            raise Misconfigured(f"{variable}={text}: {error}") from error
    settings = Settings(**{"data_dir": Path("var").absolute(), **values})
    _refuse_nonsense(settings)
    return settings


def _refuse_nonsense(settings: Settings) -> None:
    try:
        port = settings.host_port[1]
        if not (settings.host_port[0] and 0 <= port <= 65535):
            raise ValueError
    except ValueError:
        raise Misconfigured(f"VPSD_LISTEN={settings.listen}: use an address and a port, like 127.0.0.1:8000") from None
    try:
        if not all(0 < port < 65536 for port in settings.guest_ports):
            raise ValueError
    except ValueError:
        raise Misconfigured(
            f"VPSD_FORWARD_PORTS={settings.forward_ports}: use comma-separated port numbers, like 80,443"
        ) from None
    try:
        network = settings.network
    except ValueError as error:
        raise Misconfigured(f"VPSD_ADDRESS_POOL={settings.address_pool}: {error}") from None
    if not network.is_loopback or network.num_addresses < 4:
        raise Misconfigured(f"VPSD_ADDRESS_POOL={network}: use a network inside 127.0.0.0/8, like 127.10.0.0/16")
    _refuse_odd_money(settings)
    _refuse_odd_proxies(settings)
    _refuse_odd_backups(settings)
    url = settings.database_url
    if url is not None and not url.startswith(("postgresql://", "postgres://", "sqlite:///")):
        # the error leaves its value out: it may contain a password
        raise Misconfigured("VPSD_DATABASE_URL: use a URL like postgresql://user@host/name; unset: SQLite")


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    network = ipaddress.ip_network(text)
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    return network if mapped is None else ipaddress.IPv4Network((mapped, max(0, network.prefixlen - 96)))


def _refuse_odd_proxies(settings: Settings) -> None:
    try:
        settings.proxy_networks  # noqa: B018  # raises
    except ValueError:
        raise Misconfigured(
            f"VPSD_TRUSTED_PROXIES={settings.trusted_proxies}: use comma-separated addresses, like 10.0.0.5"
        ) from None
    if settings.public_url is not None and not _is_url(settings.public_url.rstrip("/"), PATH):
        # the error leaves its value out: it may contain a password
        raise Misconfigured("VPSD_PUBLIC_URL: use a URL like https://vps.example.com/prefix, with no login or query")
    for origin in settings.cors if settings.cors != ("*",) else ():
        if not _is_url(origin, "") or origin != origin.lower() or re.search("^http:.*:80$|^https:.*:443$", origin):
            raise Misconfigured(
                f"VPSD_CORS_ORIGINS={settings.cors_origins}: use comma-separated origins as browsers send them, like "
                "https://panel.example.com: in lower case, with no path and no usual port; or * alone"
            )


def _is_url(text: str, path: str) -> bool:
    match = re.fullmatch(f"https?://{HOST}{path}", text)
    return match is not None and 0 < int(match["port"] or 1) < 65536


def _refuse_odd_money(settings: Settings) -> None:
    if not re.fullmatch("[A-Z]{3}", settings.currency):
        raise Misconfigured(f"VPSD_CURRENCY={settings.currency}: use a code of three capital letters, like USD")
    try:
        if settings.transfer_price_micros < 0:
            raise ValueError("use a price of 0 or more")
    except ValueError as error:
        raise Misconfigured(f"VPSD_TRANSFER_PRICE={settings.transfer_price}: {error}") from None


_TIME = "([01][0-9]|2[0-3]):[0-5][0-9]"
_BUCKET = "[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9](/[A-Za-z0-9_-][A-Za-z0-9._-]*)*"


def _refuse_odd_backups(settings: Settings) -> None:
    window = settings.backup_window
    if not re.fullmatch(f"{_TIME}-{_TIME}", window) or not settings.backup_window_minutes[1]:
        raise Misconfigured(f"VPSD_BACKUP_WINDOW={window}: use two different times (UTC), like 03:00-05:00")
    s3, endpoint = settings.backup_s3, settings.backup_s3_endpoint
    if s3 is None:
        for name in ("backup_s3_endpoint", "backup_s3_region"):
            if getattr(settings, name) is not None:
                raise Misconfigured(f"VPSD_{name.upper()} has no effect without a bucket; set VPSD_BACKUP_S3")
        return
    if settings.backup_dir is not None:
        raise Misconfigured("VPSD_BACKUP_DIR and VPSD_BACKUP_S3: backups are stored in one place; set only one")
    if not re.fullmatch(_BUCKET, s3):
        raise Misconfigured(f"VPSD_BACKUP_S3={s3}: use a bucket or bucket/prefix, like my-backups/vpsd")
    if endpoint is not None and not re.fullmatch(r"https?://[^/@\s]+/?", endpoint):
        # the error leaves its value out: it may contain a password
        raise Misconfigured("VPSD_BACKUP_S3_ENDPOINT: use a URL like https://s3.example.org, with no path or login")
