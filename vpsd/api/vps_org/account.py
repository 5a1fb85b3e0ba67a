"""The account section: who one is, tokens, events, and money."""

from litestar import Router
from msgspec import UNSET

from vpsd.accounts import service as accounts
from vpsd.accounts import tokens
from vpsd.accounts.tokens import NewToken
from vpsd.api.http.authentication import EVERYBODY
from vpsd.api.http.forms import Form, PageQuery, Query
from vpsd.api.http.routes import delete, get, post
from vpsd.api.vps_org.schemas import account as wire
from vpsd.billing import credit, ledger
from vpsd.billing import usage as billing_usage
from vpsd.core.context import Ctx
from vpsd.errors import Forbidden, OverQuota
from vpsd.events import service as events
from vpsd.servers import queries as servers


@get("/me/", "account_me", "Who am I", needs=EVERYBODY)
async def me(ctx: Ctx) -> wire.Me:
    """The account of the token that asks, and what the token may do. Any valid token may ask."""
    return wire.Me.of(await accounts.profile(ctx))


@get("/tokens/", "token_list", "List tokens", needs="tokens:read")
async def list_tokens(ctx: Ctx, query: Query[PageQuery]) -> wire.TokenList:
    """The account's tokens that were not revoked, newest last; never their values."""
    part = await tokens.list_tokens(ctx, query.validate().page)
    return wire.TokenList.of(query, part, [wire.TokenView.of(token) for token in part.rows])


@post("/tokens/", "token_create", "Make a token", needs="tokens:*", raises=(Forbidden, OverQuota))
async def create_token(ctx: Ctx, form: Form[wire.TokenCreate]) -> wire.TokenCreated:
    """Make a token that may do no more than the one that asks. Its value is in this answer and nowhere else."""
    new = await tokens.create(ctx, form.plain(NewToken), form.faults)
    return wire.TokenCreated.of(await tokens.get(ctx, new.id), token=new.value)


@delete("/tokens/{token_id:int}/", "token_delete", "Revoke a token", needs="tokens:*")
async def revoke_token(ctx: Ctx, token_id: int, query: Query[wire.RevokeQuery]) -> None:
    """Make a token worthless from now on; one may revoke the token that asks."""
    await tokens.revoke(ctx, token_id, children=query.validate().get("children", False))


@get("/events/", "event_list", "List events", needs="tokens:read")
async def list_events(ctx: Ctx, query: Query[PageQuery]) -> wire.EventList:
    """Who did what, when, from which token and address, newest first.

    Nothing on this list is ever changed. It is kept as long as the operator says; without that, for ever.
    """
    part = await events.list_events(ctx, query.validate().page)
    names = await tokens.names(ctx, part.rows)
    return wire.EventList.of(query, part, [wire.EventView.of(event, names) for event in part.rows])


@get("/balance/", "account_balance", "Get the balance", needs="billing:read")
async def balance(ctx: Ctx) -> wire.Balance:
    """What is left, what the servers cost, and when nothing will be left."""
    return wire.Balance.of(await credit.summary(ctx), ctx.settings.currency)


@get("/transactions/", "transaction_list", "List transactions", needs="billing:read")
async def transactions(ctx: Ctx, query: Query[PageQuery]) -> wire.TransactionList:
    """The ledger, newest first: the balance is its sum."""
    part = await ledger.entries(ctx, query.validate().page)
    return wire.TransactionList.of(query, part, [wire.Transaction.of(entry) for entry in part.rows])


@get("/usage/", "account_usage", "Get a month's usage", needs="billing:read")
async def usage(ctx: Ctx, query: Query[wire.UsageQuery]) -> wire.Usage:
    """What the month has cost so far and will have cost at its end: in all, and by a page of its servers."""
    month, page = query.validate().get("month", UNSET), query.page
    found = await billing_usage.usage(ctx, month, page)
    names = await servers.names(ctx, [used.server_id for used in found.servers.rows])
    return wire.Usage.of(query, found, names, ctx.settings.currency)


router = Router(
    "/account",
    route_handlers=[me, list_tokens, create_token, revoke_token, list_events, balance, transactions, usage],
    tags=["Account"],
)
