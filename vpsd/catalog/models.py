"""Tables of plans, operating systems and locations. The meaning of an id never changes."""

import uuid

import msgspec
from sqlalchemy import BigInteger, Boolean, Column, ForeignKey, Integer, String, Table, Text

from vpsd.core.db import metadata
from vpsd.core.units import GIB

plans = Table(
    "plans",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("name", String(255), nullable=False),
    Column("slug", String(63), nullable=False, unique=True),
    Column("vcpus", Integer, nullable=False),
    Column("memory_mb", Integer, nullable=False),
    Column("storage_gb", Integer, nullable=False),
    Column("bandwidth_gb", Integer, nullable=False),
    Column("price_monthly_micros", BigInteger, nullable=False),  # of new servers
    Column("price_from_ms", BigInteger),  # from when existing servers pay it too; None: never
    Column("description", String(1000), nullable=False),
    Column("available", Boolean, nullable=False),
)

operating_systems = Table(
    "operating_systems",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("name", String(255), nullable=False),
    Column("slug", String(63), nullable=False, unique=True),
    Column("source", String(16), nullable=False),  # tiny | debian | pull | import
    Column("url", String(1000)),
    Column("sha256", String(64)),
    Column("sums_url", String(1000)),
    Column("min_disk_gb", Integer),  # as the catalogue says; None: it says nothing
    Column("image_disk_gb", Integer),  # as its newest image says, which is believed first; None: there was none yet
    Column("available", Boolean, nullable=False),
)

cloud_config_schemas = Table(  # JSON Schemas of a #cloud-config, as the images' own cloud-init brought them
    "cloud_config_schemas",
    metadata,
    Column("os_id", BigInteger, ForeignKey("operating_systems.id"), primary_key=True, autoincrement=False),
    Column("content", Text, nullable=False),
)

locations = Table(
    "locations",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("code", String(63), nullable=False, unique=True),
    Column("name", String(255), nullable=False),
    Column("country_name", String(255), nullable=False),
    Column("country_code", String(2), nullable=False),
    Column("available", Boolean, nullable=False),
)


class Plan(msgspec.Struct, frozen=True):
    """The size and price of a server."""

    id: int
    name: str
    slug: str
    vcpus: int
    memory_mb: int
    storage_gb: int
    bandwidth_gb: int  # a month
    price_monthly_micros: int
    price_from_ms: int | None
    description: str
    available: bool

    @property
    def uuid(self) -> str:
        """The plan's id for the official client; every vpsd has the same one for this slug."""
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"vpsd:plan:{self.slug}"))


class OperatingSystem(msgspec.Struct, frozen=True):
    """An operating system for servers, and where its image comes from."""

    id: int
    name: str
    slug: str
    source: str
    url: str | None
    sha256: str | None
    sums_url: str | None
    min_disk_gb: int | None
    image_disk_gb: int | None
    available: bool

    @property
    def disk_gb(self) -> int | None:
        """The smallest disk that holds it, in GB; None: not known yet."""
        return self.min_disk_gb if self.image_disk_gb is None else self.image_disk_gb

    @property
    def disk_bytes(self) -> int:
        """The same in bytes; 0: not known yet."""
        return (self.disk_gb or 0) * GIB


class CloudConfigSchema(msgspec.Struct, frozen=True):
    """The JSON Schema of a #cloud-config, of the cloud-init in an operating system's image."""

    os_id: int
    content: str


class Location(msgspec.Struct, frozen=True):
    """Where a server runs."""

    id: int
    code: str
    name: str
    country_name: str
    country_code: str
    available: bool
