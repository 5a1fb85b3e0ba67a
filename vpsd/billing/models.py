"""Tables of money. Amounts are integers: millionths of a credit (micros).

`rentals` say from when to when a server was rented, on which plan, at which price: everything that it costs follows
from them. `charges` are what was charged for it, interval by interval. `ledger` is the account's book: credits, and one
row for each batch of charges. The balance is the sum of the ledger; `account_sums` has it ready.
"""

import msgspec
from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    Text,
    UniqueConstraint,
    and_,
    literal,
    or_,
    select,
)

from vpsd.catalog.models import plans
from vpsd.core.db import metadata
from vpsd.core.sums import Sums
from vpsd.core.tables import identity

ledger = Table(  # append-only: triggers refuse to change or delete a row
    "ledger",
    metadata,
    identity(),
    Column("uuid", String(36), nullable=False, unique=True),
    Column("account_id", BigInteger, ForeignKey("accounts.id"), nullable=False),
    Column("kind", String(16), nullable=False),  # credit | usage
    Column("amount_micros", BigInteger, nullable=False),  # added to the balance
    Column("description", Text, nullable=False),
    Column("reference", String(255)),  # the operator's own, unique in an account
    Column("created_at_ms", BigInteger, nullable=False),
    UniqueConstraint("account_id", "reference"),
    sqlite_autoincrement=True,
)
Index("ix_ledger_account_id_id", ledger.c.account_id, ledger.c.id, ledger.c.amount_micros)  # for sums

rentals = Table(
    "rentals",
    metadata,
    identity(),
    Column("server_id", BigInteger, ForeignKey("servers.id"), nullable=False, index=True),
    Column("account_id", BigInteger, ForeignKey("accounts.id"), nullable=False),
    Column("plan_id", BigInteger, ForeignKey("plans.id"), nullable=False),
    Column("price_monthly_micros", BigInteger, nullable=False),
    Column("bandwidth_gb", Integer, nullable=False),  # a month
    Column("from_ms", BigInteger, nullable=False),
    Column("to_ms", BigInteger),  # None: it continues
    Column("confirmed_at_ms", BigInteger),  # when the server first worked; before that it costs nothing
    Column("charged_until_ms", BigInteger, nullable=False),  # how far it has been charged
    sqlite_autoincrement=True,
)
Index(  # the cost of all servers of an account is read from it alone
    "ix_rentals_account_id_to_ms",
    *(rentals.c.account_id, rentals.c.to_ms, rentals.c.from_ms, rentals.c.price_monthly_micros),
)
_goes_on = rentals.c.to_ms.is_(None)
Index("uq_rentals_going_on", rentals.c.server_id, unique=True, sqlite_where=_goes_on, postgresql_where=_goes_on)
uncharged = and_(
    rentals.c.confirmed_at_ms.is_not(None),
    or_(rentals.c.to_ms.is_(None), rentals.c.charged_until_ms < rentals.c.to_ms),
)
Index(
    "ix_rentals_uncharged",
    rentals.c.charged_until_ms,
    rentals.c.account_id,
    sqlite_where=uncharged,
    postgresql_where=uncharged,
)

charges = Table(  # append-only
    "charges",
    metadata,
    identity(),
    Column("ledger_id", BigInteger, ForeignKey("ledger.id"), nullable=False, index=True),
    Column("server_id", BigInteger, ForeignKey("servers.id"), nullable=False),
    Column("plan_id", BigInteger, ForeignKey("plans.id"), nullable=False),
    Column("kind", String(16), nullable=False),  # server | transfer
    Column("from_ms", BigInteger, nullable=False),
    Column("to_ms", BigInteger, nullable=False),
    Column("quantity", BigInteger, nullable=False),  # milliseconds; for transfer, bytes over the plan's
    Column("rate_micros", BigInteger, nullable=False),  # for 672 hours; for transfer, for a GB
    Column("amount_micros", BigInteger, nullable=False),
    UniqueConstraint("server_id", "kind", "from_ms"),  # an interval is never charged twice
    sqlite_autoincrement=True,
)


_SIZES = ("vcpus", "memory_mb", "storage_gb")
account_sums = Sums(
    "account_sums",
    by=(),
    added=[
        Column(name, BigInteger, nullable=False, server_default="0")
        for name in ("balance_micros", "price_monthly_micros", "servers", *_SIZES)
    ],
    over=(
        select(ledger.c.account_id, ledger.c.amount_micros.label("balance_micros")),
        select(
            *(rentals.c.account_id, rentals.c.price_monthly_micros, literal(1).label("servers")),
            *(plans.c[name] for name in _SIZES),
        )
        .join_from(rentals, plans)
        .where(_goes_on),
    ),
)


class Entry(msgspec.Struct, frozen=True):
    """A row of the ledger, and the balance after it."""

    id: int
    uuid: str
    kind: str
    amount_micros: int
    description: str
    reference: str | None
    created_at_ms: int
    balance_micros: int


class Rental(msgspec.Struct, frozen=True):
    """From when to when a server was rented on a plan; a row of `rentals`."""

    id: int
    server_id: int
    account_id: int
    plan_id: int
    price_monthly_micros: int
    bandwidth_gb: int
    from_ms: int
    to_ms: int | None
    confirmed_at_ms: int | None
    charged_until_ms: int

    @property
    def was_charged(self) -> bool:
        """Whether some of it was charged."""
        return self.charged_until_ms > self.from_ms


class Charge(msgspec.Struct, frozen=True):
    """An interval that was charged, a row of `charges`; `id` is 0 before it is stored."""

    id: int
    ledger_id: int
    server_id: int
    plan_id: int
    kind: str
    from_ms: int
    to_ms: int
    quantity: int
    rate_micros: int
    amount_micros: int
