"""What goes over the wire about accounts: tokens, events, and money."""

from collections.abc import Mapping
from typing import Annotated, Any, Self

import msgspec
from msgspec import UNSET, Meta, UnsetType

from vpsd.accounts.models import Account, Person, Profile, Token
from vpsd.accounts.permissions import KNOWN
from vpsd.accounts.tokens import LONGEST_DAYS
from vpsd.api.http.forms import NO_LINE_END, Listing, PageQuery, Query
from vpsd.api.http.schemas import as_format, one_of
from vpsd.api.vps_org.schemas.amounts import Amount, amount, amount_or_none
from vpsd.billing.credit import BalanceSummary
from vpsd.billing.models import Entry
from vpsd.billing.usage import MonthUsage, ServerUsage
from vpsd.core.clock import iso_utc, iso_utc_or_none
from vpsd.core.context import ACTORS
from vpsd.core.units import GIB, HOUR_MS
from vpsd.events.models import Event
from vpsd.lifecycle import Status

Permission = Annotated[
    str,
    Meta(max_length=32, examples=["servers:read"], extra={"message": "Give a list of permissions."}),
    one_of("Permission", KNOWN),  # which of them are not known, the service says
]


class TokenCreate(msgspec.Struct, forbid_unknown_fields=True):
    """A token to make."""

    name: Annotated[str, Meta(min_length=1, max_length=255, description="What it is for", examples=["backup-script"])]
    permissions: Annotated[list[Permission], Meta(min_length=1, max_length=32, description="What it may do")]
    expires_in_days: Annotated[
        Annotated[int, Meta(ge=1, le=LONGEST_DAYS, extra={"message": f"Give whole days, 1 to {LONGEST_DAYS}."})] | None,
        Meta(description="Days until it is worthless by itself; null: never"),
    ] = None


class AccountView(msgspec.Struct):
    """An account, as the person sees it whose token asks."""

    email: Annotated[str | None, Meta(description="Of the token's person, else of the account's first owner")]
    first_name: str
    last_name: str
    company_name: str
    created_at: Annotated[str, Meta(description="A date", examples=["2024-06-15"]), as_format("date")]

    @classmethod
    def of(cls, account: Account, person: Person | None) -> "AccountView":
        """From rows."""
        return cls(
            email=person.email if person else None,
            first_name=person.first_name if person else "",
            last_name=person.last_name if person else "",
            company_name=account.name,
            created_at=iso_utc(account.created_at_ms)[:10],
        )


class EventToken(msgspec.Struct):
    """The token with which something was done."""

    id: int
    name: str


class TokenMaker(msgspec.Struct):
    """Who made a token."""

    actor: Annotated[str, Meta(description="token, operator, or vpsd itself")]
    token: Annotated[EventToken | None, Meta(description="The token that made it, revoked or not")]


class TokenView(msgspec.Struct):
    """A token; its value was shown when it was made."""

    id: int
    uuid: str
    name: str
    permissions: list[Annotated[str, one_of("Permission", KNOWN)]]
    person: Annotated[str | None, Meta(description="E-mail of the person whose role bounds it")]
    created_by: TokenMaker
    created_at: str
    expires_at: Annotated[str | None, Meta(description="Null: never")]
    last_used_at: Annotated[str | None, Meta(description="To the minute")]

    @classmethod
    def of(cls, row: Token, **more: Any) -> Self:
        """From a row, and what the subclass has more."""
        return cls(
            id=row.id,
            uuid=row.uuid,
            name=row.name,
            permissions=row.permissions,
            person=row.person,
            created_by=TokenMaker(
                row.created_by,
                None if row.parent_id is None or row.parent is None else EventToken(row.parent_id, row.parent),
            ),
            created_at=iso_utc(row.created_at_ms),
            expires_at=iso_utc_or_none(row.expires_at_ms),
            last_used_at=iso_utc_or_none(row.last_used_at_ms),
            **more,
        )


class TokenCreated(TokenView):
    """A new token, with its value."""

    token: Annotated[str, Meta(description="What requests carry; shown this once")]


class RevokeQuery(msgspec.Struct):
    """What goes with a token."""

    children: Annotated[
        bool,
        Meta(
            description="true: also the tokens that it made, those that they made, and so on; it may be revoked",
            extra={"message": "Give true or false."},
        ),
    ] = False


class TokenList(Listing):
    """A page of tokens."""

    results: list[TokenView]


class Me(msgspec.Struct):
    """Whose token it is, and what it may do."""

    account: AccountView
    token: TokenView

    @classmethod
    def of(cls, profile: Profile) -> "Me":
        """As it is read."""
        return cls(AccountView.of(profile.account, profile.person), TokenView.of(profile.token))


class EventTarget(msgspec.Struct):
    """What something was done to."""

    type: Annotated[str, Meta(examples=["server"])]
    id: int


class EventTransition(msgspec.Struct, rename={"before": "from", "after": "to"}):
    """From which status to which a server went."""

    before: Annotated[Status | None, Meta(description="Null where the server is new")]
    after: Status


class EventView(msgspec.Struct):
    """Something that was done."""

    id: int
    at: str
    action: Annotated[str, Meta(description="What was done; more kinds may come", examples=["server.create"])]
    actor: Annotated[str, one_of("EventActor", ACTORS), Meta(description="Who did it; vpsd: nobody had to ask for it")]
    token: EventToken | None
    address: Annotated[str | None, Meta(description="From where it was asked for")]
    request_id: Annotated[str | None, Meta(description="X-Request-ID of the request")]
    target: EventTarget | None
    detail: str | None
    transition: Annotated[
        EventTransition | None, Meta(description="What became of the server's status; null where it stayed")
    ]

    @classmethod
    def of(cls, event: Event, token_names: Mapping[int, str]) -> "EventView":
        """From a row; tokens have their names from elsewhere."""
        token = None if event.token_id is None else EventToken(event.token_id, token_names[event.token_id])
        target = None if event.target is None or event.target_id is None else EventTarget(event.target, event.target_id)
        transition = None
        if event.status_after is not None:
            before = None if event.status_before is None else Status(event.status_before)
            transition = EventTransition(before, Status(event.status_after))
        return cls(
            *(event.id, iso_utc(event.at_ms), event.action, event.actor, token),
            *(event.address, event.request_id, target, event.detail, transition),
        )


class EventList(Listing):
    """A page of events."""

    results: list[EventView]


class Balance(msgspec.Struct):
    """What an account has. Hours that are not over are not charged yet."""

    balance: Amount
    currency: str
    credit_limit: Annotated[Amount | None, Meta(description="How far below zero it may go; null: no limit")]
    price_monthly: Annotated[Amount, Meta(description="What all servers cost a month together, at most")]
    runs_out_at: Annotated[str | None, Meta(description="When nothing will be left if nothing changes; null: never")]
    exhausted_since: Annotated[str | None, Meta(description="Since when nothing is left")]
    suspends_at: Annotated[str | None, Meta(description="When servers are suspended unless there is credit by then")]

    @classmethod
    def of(cls, summary: BalanceSummary, currency: str) -> "Balance":
        """As it is read."""
        return cls(
            amount(summary.balance_micros),
            currency,
            amount_or_none(summary.credit_limit_micros),
            amount(summary.price_monthly_micros),
            iso_utc_or_none(summary.runs_out_at_ms),
            iso_utc_or_none(summary.exhausted_at_ms),
            iso_utc_or_none(summary.suspends_at_ms),
        )


class Transaction(msgspec.Struct):
    """A row of the ledger."""

    id: int
    uuid: str
    kind: Annotated[str, one_of("TransactionKind", ("credit", "usage"))]
    amount: Annotated[Amount, Meta(description="What the balance gained")]
    balance: Annotated[Amount, Meta(description="After it")]
    description: str
    reference: Annotated[str | None, Meta(description="The operator's: an invoice, a payment")]
    created_at: str

    @classmethod
    def of(cls, entry: Entry) -> "Transaction":
        """From a row."""
        return cls(
            *(entry.id, entry.uuid, entry.kind, amount(entry.amount_micros), amount(entry.balance_micros)),
            *(entry.description, entry.reference, iso_utc(entry.created_at_ms)),
        )


class TransactionList(Listing):
    """A page of the ledger."""

    results: list[Transaction]


class UsageQuery(PageQuery):
    """Which month."""

    month: Annotated[
        Annotated[
            str,
            Meta(pattern=rf"^2[01]\d\d-(0[1-9]|1[0-2])${NO_LINE_END}", extra={"message": "Give a month like 2026-11."}),
        ]
        | UnsetType,
        Meta(description="Like 2026-11; by default the present month"),
    ] = UNSET


class NamedServer(msgspec.Struct):
    """Which server."""

    id: int
    name: str


class BandwidthUsage(msgspec.Struct):
    """What a server moved in a month, in GB: the larger of in and out."""

    used: float
    included: Annotated[float, Meta(description="By the month's end")]
    cost: Amount


class UsageOfServer(msgspec.Struct):
    """What a server costs in a month."""

    server: NamedServer
    plan_id: Annotated[int, Meta(description="The plan it had last")]
    price_monthly: Amount
    hours: float
    cost: Annotated[Amount, Meta(description="So far, the present hour's part included; without bandwidth")]
    forecast: Annotated[Amount, Meta(description="At the month's end if nothing changes; without bandwidth")]
    bandwidth: BandwidthUsage

    @classmethod
    def of(cls, used: ServerUsage, name: str) -> "UsageOfServer":
        """As it is read."""
        return cls(
            NamedServer(used.server_id, name),
            used.plan_id,
            amount(used.price_monthly_micros),
            round(used.milliseconds / HOUR_MS, 3),
            amount(used.cost_micros),
            amount(used.forecast_micros),
            BandwidthUsage(
                round(used.transfer_bytes / GIB, 3),
                round(used.transfer_included_bytes / GIB, 3),
                amount(used.transfer_micros),
            ),
        )


class Usage(msgspec.Struct):
    """What an account's servers cost in a month, deleted ones included, and a page of these servers."""

    month: str
    currency: str
    cost: Annotated[Amount, Meta(description="So far, of all servers")]
    forecast: Annotated[Amount, Meta(description="At the month's end if nothing changes, of all servers")]
    servers: list[UsageOfServer]
    count: Annotated[int, Meta(description="How many servers there are in all")]
    next: Annotated[str | None, Meta(description="Address of the next page; null at the end")]
    previous: Annotated[str | None, Meta(description="Address of the page before; null unless `page` was asked for")]

    @classmethod
    def of(cls, query: Query[Any], usage: MonthUsage, names: Mapping[int, str], currency: str) -> "Usage":
        """As it is read."""
        return cls(
            *(usage.month, currency, amount(usage.cost_micros), amount(usage.forecast_micros)),
            [UsageOfServer.of(used, names[used.server_id]) for used in usage.servers.rows],
            *(usage.servers.count, *query.neighbours(usage.servers)),
        )
