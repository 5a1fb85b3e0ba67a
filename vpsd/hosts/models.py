"""The table of hosts: what runs guests, how it is reached, what it can take, and what of that is handed out."""

from enum import StrEnum

import msgspec
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    Text,
    and_,
    false,
    literal_column,
)

from vpsd.core.db import metadata
from vpsd.core.tables import identity


class HostState(StrEnum):
    """What the operator wants of a host."""

    ENABLED = "enabled"
    DISABLED = "disabled"  # it gets no new servers; those that it has stay
    FENCED = "fenced"  # the operator has said that it is off: its servers may be started elsewhere


class HostHealth(StrEnum):
    """Whether a host answers."""

    CONNECTING = "connecting"  # it was not asked yet
    OK = "ok"
    UNREACHABLE = "unreachable"


hosts = Table(
    "hosts",
    metadata,
    identity(),
    Column("name", String(255), nullable=False),  # of the operator's choice; unique among those that are not removed
    Column("driver", String(16), nullable=False, server_default="libvirt"),  # libvirt | simulator
    Column("uri", String(1000)),  # None: this machine's own, as the settings say
    Column("machine", String(36)),  # of one without an address: the mark of the data folder that it is reached from
    Column("pool", String(1000)),  # folder of the host's disks; None: as the settings say
    Column("shared_pool", String(63)),  # hosts with the same see the same folder; None: it is the host's alone
    Column("location", String(63), ForeignKey("locations.code")),  # None: it serves every location
    Column("state", String(16), nullable=False, server_default=HostState.ENABLED),
    Column("draining_since_ms", BigInteger),  # its servers are moved away, each tried once since then; None: they stay
    Column("drains_cold", Boolean, nullable=False, server_default=false()),  # those that cannot move live are stopped
    # Multiples of what it has; None: as the settings say.
    Column("cpu_ratio", Float),
    Column("memory_ratio", Float),
    Column("storage_ratio", Float),
    # What it said of itself last; None: nothing yet.
    Column("cpus", Integer),
    Column("memory_mb", Integer),
    Column("storage_gb", Integer),
    Column("storage_free_mb", BigInteger),
    Column("version", String(255)),
    Column("virt_type", String(16)),  # kvm | qemu | none
    Column("seen_at_ms", BigInteger),  # when it last answered
    Column("health", String(16), nullable=False, server_default=HostHealth.CONNECTING),
    Column("storage", String(16)),  # ok | low | full | failing; None: not known yet
    Column("error", Text),  # why it is unreachable, for the operator
    Column("unreachable_since_ms", BigInteger),
    # Handed out: the sums over the servers that are present on it, changed in the transaction that changes a server.
    Column("used_servers", Integer, nullable=False, server_default="0"),
    Column("used_vcpus", Integer, nullable=False, server_default="0"),
    Column("used_memory_mb", BigInteger, nullable=False, server_default="0"),
    Column("used_storage_gb", BigInteger, nullable=False, server_default="0"),
    # The share of its scarcest resource that is handed out, by its own ratios; a trigger keeps it (migration 0012).
    Column("fullness", Float, nullable=False, server_default="0"),
    # Which process looks after it, and until when; the fence counts the leases.
    Column("lease_owner", String(64)),
    Column("lease_until_ms", BigInteger),
    Column("fence", Integer, nullable=False, server_default="0"),
    Column("created_at_ms", BigInteger, nullable=False, server_default="0"),
    Column("removed_at_ms", BigInteger),
    sqlite_autoincrement=True,
)
_present = hosts.c.removed_at_ms.is_(None)
Index("uq_hosts_present_name", hosts.c.name, unique=True, sqlite_where=_present, postgresql_where=_present)
takes_servers = and_(_present, hosts.c.state == literal_column(f"'{HostState.ENABLED}'"))
"""What the index of the emptiest hosts is over, in its words."""
Index(
    "ix_hosts_enabled_fullness",
    *(hosts.c.location, hosts.c.fullness),
    sqlite_where=takes_servers,
    postgresql_where=takes_servers,
)
_shares = hosts.c.shared_pool.is_not(None)
Index("ix_hosts_shared_pool", hosts.c.shared_pool, sqlite_where=_shares, postgresql_where=_shares)

base_images = Table(  # what is known of base images where they lie
    "base_images",
    metadata,
    Column("place", String(80), primary_key=True),  # `Host.place`
    Column("image_key", String(255), primary_key=True),
    # Who sends it, as long as that operation has that lease; or who removes it, until that time.
    Column("operation_id", BigInteger),
    Column("fence", Integer),
    Column("claimed_until_ms", BigInteger),
    Column("unused_since_ms", BigInteger),  # when nobody was seen to need it first; None: somebody does
)


class Address(msgspec.Struct, frozen=True):
    """How a host is reached, and where its disks are; None: as the settings say of this machine's own."""

    uri: str | None = None
    pool: str | None = None
    shared_pool: str | None = None  # what the pool is called that it shares with other hosts


def driver_of(uri: str) -> str:
    """Which driver speaks to a host at that address."""
    return "simulator" if uri.startswith("simulator:") else "libvirt"


class Host(msgspec.Struct, frozen=True):
    """A row of `hosts`."""

    id: int
    name: str
    driver: str
    uri: str | None
    machine: str | None
    pool: str | None
    shared_pool: str | None
    location: str | None
    state: str
    draining_since_ms: int | None
    drains_cold: bool
    cpu_ratio: float | None
    memory_ratio: float | None
    storage_ratio: float | None
    cpus: int | None
    memory_mb: int | None
    storage_gb: int | None
    storage_free_mb: int | None
    version: str | None
    virt_type: str | None
    seen_at_ms: int | None
    health: str
    storage: str | None
    error: str | None
    unreachable_since_ms: int | None
    used_servers: int
    used_vcpus: int
    used_memory_mb: int
    used_storage_gb: int
    fullness: float
    lease_owner: str | None
    lease_until_ms: int | None
    fence: int
    created_at_ms: int
    removed_at_ms: int | None

    @property
    def place(self) -> str:
        """Where its disks and base images are: in a pool of its own, or in one that others share."""
        return f"host:{self.id}" if self.shared_pool is None else f"pool:{self.shared_pool}"

    @property
    def address(self) -> Address:
        """How it is reached."""
        return Address(self.uri, self.pool, self.shared_pool)
