"""The account section: who one is, tokens, events, and money."""

from typing import Annotated, Any

import msgspec
from litestar import Response, Router, delete, get, post
from litestar.params import FromPath, JSONBody, Parameter
from msgspec import UNSET, Meta, UnsetType

from vpsd.accounts import events, tokens
from vpsd.accounts import service as accounts
from vpsd.accounts.models import Event, Token
from vpsd.accounts.tokens import TokenCreate
from vpsd.api.access import EVERYBODY
from vpsd.api.carrying import carry_out
from vpsd.api.cloud import CloudRequest, Listing, cloud_of, neighbours
from vpsd.billing import prices
from vpsd.billing import service as billing
from vpsd.billing.models import Entry
from vpsd.billing.service import ServerUsage
from vpsd.core import money
from vpsd.core.clock import iso_utc, iso_utc_or_none
from vpsd.core.db import Tx
from vpsd.core.forms import Form
from vpsd.core.money import Amount
from vpsd.core.pages import PageQuery
from vpsd.errors import Forbidden

_HOUR_MS = prices.HOUR_MS
_LAST_MS = 253_402_300_799_000  # the last second that can be written with four digits of a year


class AccountView(msgspec.Struct):
    """An account, as the person sees it whose token asks."""

    email: Annotated[str | None, Meta(description="Of the token's person, else of the account's first owner")]
    first_name: str
    last_name: str
    company_name: str
    created_at: Annotated[str, Meta(description="A date", examples=["2024-06-15"])]


class TokenView(msgspec.Struct):
    """A token; its value was shown when it was made."""

    id: int
    uuid: str
    name: str
    permissions: list[str]
    person: Annotated[str | None, Meta(description="E-mail of the person whose role bounds it")]
    created_at: str
    expires_at: Annotated[str | None, Meta(description="Null: never")]
    last_used_at: Annotated[str | None, Meta(description="To the minute")]

    @classmethod
    def of(cls, token: Token) -> "TokenView":
        """From a row."""
        return cls(**_token_fields(token))


def _token_fields(token: Token) -> dict[str, Any]:
    return {
        "id": token.id,
        "uuid": token.uuid,
        "name": token.name,
        "permissions": token.permissions,
        "person": token.person,
        "created_at": iso_utc(token.created_at_ms),
        "expires_at": iso_utc_or_none(token.expires_at_ms),
        "last_used_at": iso_utc_or_none(token.last_used_at_ms),
    }


class TokenCreated(TokenView):
    """A new token, with its value."""

    token: Annotated[str, Meta(description="What requests carry; shown this once")]


class TokenList(Listing):
    """A page of tokens."""

    results: list[TokenView]


class Me(msgspec.Struct):
    """Whose token it is, and what it may do."""

    account: AccountView
    token: TokenView


class EventToken(msgspec.Struct):
    """The token with which something was done."""

    id: int
    name: str


class EventTarget(msgspec.Struct):
    """What something was done to."""

    type: Annotated[str, Meta(examples=["server"])]
    id: int


class EventView(msgspec.Struct):
    """Something that was done."""

    id: int
    at: str
    action: Annotated[str, Meta(examples=["server.create"])]
    actor: Annotated[str, Meta(description="token, operator, or vpsd itself")]
    token: EventToken | None
    address: Annotated[str | None, Meta(description="From where it was asked for")]
    request_id: Annotated[str | None, Meta(description="X-Request-ID of the request")]
    target: EventTarget | None
    detail: str | None

    @classmethod
    def of(cls, event: Event) -> "EventView":
        """From a row."""
        token = None if event.token_id is None else EventToken(event.token_id, event.token_name or "")
        target = None if event.target is None or event.target_id is None else EventTarget(event.target, event.target_id)
        return cls(
            *(event.id, iso_utc(event.at_ms), event.action, event.actor, token),
            *(event.address, event.request_id, target, event.detail),
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


class Transaction(msgspec.Struct):
    """A row of the ledger."""

    id: int
    uuid: str
    kind: Annotated[str, Meta(description="credit or usage")]
    amount: Annotated[Amount, Meta(description="What the balance gained")]
    balance: Annotated[Amount, Meta(description="After it")]
    description: str
    reference: Annotated[str | None, Meta(description="The operator's: an invoice, a payment")]
    created_at: str

    @classmethod
    def of(cls, entry: Entry) -> "Transaction":
        """From a row."""
        return cls(
            *(entry.id, entry.uuid, entry.kind, money.amount(entry.amount_micros), money.amount(entry.balance_micros)),
            *(entry.description, entry.reference, iso_utc(entry.created_at_ms)),
        )


class TransactionList(Listing):
    """A page of the ledger."""

    results: list[Transaction]


class UsageQuery(msgspec.Struct):
    """Which month."""

    month: Annotated[
        Annotated[
            str,
            Meta(pattern=r"^2[01]\d\d-(0[1-9]|1[0-2])$(?!\n)", extra={"message": "Give a month like 2026-11."}),
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
    def of(cls, used: ServerUsage) -> "UsageOfServer":
        """From what was reckoned."""
        return cls(
            NamedServer(used.server_id, used.name),
            used.plan_id,
            money.amount(used.price_monthly_micros),
            round(used.milliseconds / _HOUR_MS, 3),
            money.amount(used.cost_micros),
            money.amount(used.forecast_micros),
            BandwidthUsage(
                round(used.transfer_bytes / prices.GB, 3),
                round(used.transfer_included_bytes / prices.GB, 3),
                money.amount(used.transfer_micros),
            ),
        )


class Usage(msgspec.Struct):
    """What an account's servers cost in a month, deleted ones included."""

    month: str
    currency: str
    cost: Annotated[Amount, Meta(description="So far")]
    forecast: Annotated[Amount, Meta(description="At the month's end if nothing changes")]
    servers: list[UsageOfServer]


TokenId = FromPath[Annotated[int, Parameter(description="Id of the token")]]


@get("/me/", operation_id="account_me", summary="Who am I", opt={"needs": EVERYBODY})
async def me(request: CloudRequest) -> Me:
    """The account of the token that asks, and what the token may do. Any valid token may ask."""
    caller = request.user
    async with cloud_of(request).database.read() as tx:
        account = await accounts.get_account(tx, caller.account_id)
        token = await tokens.get(tx, caller.token_id)
        people = await accounts.list_people(tx, caller.account_id)
    owners = [person for person in people if person.role == "owner"]
    mine = [person for person in people if person.email == token.person] or owners[:1]
    person = mine[0] if mine else None
    view = AccountView(
        email=person.email if person else None,
        first_name=person.first_name if person else "",
        last_name=person.last_name if person else "",
        company_name=account.name,
        created_at=iso_utc(account.created_at_ms)[:10],
    )
    return Me(view, msgspec.structs.replace(TokenView.of(token), permissions=caller.effective))


@get("/tokens/", operation_id="token_list", summary="List tokens", opt={"needs": "tokens:read", "query": PageQuery})
async def list_tokens(request: CloudRequest) -> TokenList:
    """The account's tokens that were not revoked, newest last; never their values."""
    wanted = request.page()
    async with cloud_of(request).database.read() as tx:
        count, found = await tokens.list_tokens(tx, request.user.account_id, wanted)
    return TokenList(count, *neighbours(request, wanted, count), [TokenView.of(token) for token in found])


@post(
    "/tokens/",
    operation_id="token_create",
    summary="Make a token",
    opt={"needs": "tokens:*", "raises": (Forbidden,)},
)
async def create_token(request: CloudRequest, data: JSONBody[Form[TokenCreate]]) -> Response[TokenCreated]:
    """Make a token that may do no more than the one that asks. Its value is in this answer and nowhere else."""
    cloud = cloud_of(request)

    async def work(tx: Tx) -> TokenCreated:
        token_id, value = await tokens.create(tx, request.user, cloud.ids, cloud.clock, data)
        return TokenCreated(**_token_fields(await tokens.get(tx, token_id)), token=value)

    return await carry_out(request, work, 201)


@delete("/tokens/{token_id:int}/", operation_id="token_delete", summary="Revoke a token", opt={"needs": "tokens:*"})
async def revoke_token(request: CloudRequest, token_id: TokenId) -> None:
    """Make a token worthless from now on; one may revoke the token that asks."""
    cloud = cloud_of(request)
    async with cloud.database.write() as tx:
        await tokens.revoke(tx, cloud.clock, request.user, token_id)


@get("/events/", operation_id="event_list", summary="List events", opt={"needs": "tokens:read", "query": PageQuery})
async def list_events(request: CloudRequest) -> EventList:
    """Who did what, when, from which token and address, newest first. Nothing is ever taken off this list."""
    wanted = request.page()
    async with cloud_of(request).database.read() as tx:
        count, found = await events.list_events(tx, request.user.account_id, wanted)
    return EventList(count, *neighbours(request, wanted, count), [EventView.of(event) for event in found])


@get("/balance/", operation_id="account_balance", summary="Get the balance", opt={"needs": "billing:read"})
async def balance(request: CloudRequest) -> Balance:
    """What is left, what the servers cost, and when nothing will be left."""
    cloud = cloud_of(request)
    async with cloud.database.read() as tx:
        account = await accounts.get_account(tx, request.user.account_id)
        have = await billing.balance(tx, account.id)
        left = await billing.left(tx, account)
        price = await billing.monthly_price(tx, cloud.clock, account.id)
    runs_out_ms = None
    if left is not None and left > 0 and price:
        runs_out_ms = min(cloud.clock.now_ms() + left * prices.FULL_MONTH_MS // price, _LAST_MS)
    since = account.exhausted_at_ms
    return Balance(
        money.amount(have),
        cloud.settings.currency,
        money.amount_or_none(account.credit_limit_micros),
        money.amount(price),
        iso_utc_or_none(runs_out_ms),
        iso_utc_or_none(since),
        None if since is None else iso_utc(billing.suspends_at_ms(cloud.settings, since)),
    )


@get(
    "/transactions/",
    operation_id="transaction_list",
    summary="List transactions",
    opt={"needs": "billing:read", "query": PageQuery},
)
async def transactions(request: CloudRequest) -> TransactionList:
    """The ledger, newest first: the balance is its sum."""
    wanted = request.page()
    async with cloud_of(request).database.read() as tx:
        count, found = await billing.entries(tx, request.user.account_id, wanted)
    return TransactionList(count, *neighbours(request, wanted, count), [Transaction.of(entry) for entry in found])


@get(
    "/usage/",
    operation_id="account_usage",
    summary="Get a month's usage",
    opt={"needs": "billing:read", "query": UsageQuery},
)
async def usage(request: CloudRequest) -> Usage:
    """What the month has cost so far and will have cost at its end, server by server."""
    cloud = cloud_of(request)
    asked: Form[UsageQuery] = request.query_form()
    asked.done()
    now = cloud.clock.now_ms()
    month = prices.month_named(asked.get("month", prices.month_of(now).name))
    async with cloud.database.read() as tx:
        found = await billing.usage(tx, cloud.settings, request.user.account_id, month, now)
    transfer = sum(used.transfer_micros for used in found)
    return Usage(
        month.name,
        cloud.settings.currency,
        money.amount(transfer + sum(used.cost_micros for used in found)),
        money.amount(transfer + sum(used.forecast_micros for used in found)),
        [UsageOfServer.of(used) for used in found],
    )


router = Router(
    "/account",
    route_handlers=[me, list_tokens, create_token, revoke_token, list_events, balance, transactions, usage],
    tags=["Account"],
)
