"""Charges everything that is due, in batches, each in a transaction of its own."""

import asyncio
import logging

from vpsd.billing import meter
from vpsd.billing.meter import DueTransfer
from vpsd.core.context import Transactions
from vpsd.errors import DatabaseUnavailable

log = logging.getLogger(__name__)


async def charge_due(transactions: Transactions) -> set[int]:
    """Charge everything that is due; returns the ids of the accounts that were charged.

    What cannot be charged is logged and retried the next time; it does not affect other accounts.
    """
    charged: set[int] = set()
    now_ms = transactions.clock.now_ms()
    async with transactions.read() as ctx:
        batches = await meter.due(ctx)
    for ids in batches:
        first, last = ids[0], ids[-1]
        try:
            charged |= await _charge_accounts(transactions, first, last, now_ms)
        except DatabaseUnavailable:
            raise
        except Exception:
            log.exception("accounts %s to %s could not be charged together; now one by one", first, last)
            for account_id in ids:
                try:
                    charged |= await _charge_accounts(transactions, account_id, account_id, now_ms)
                except DatabaseUnavailable:
                    raise
                except Exception:
                    log.exception("account %s could not be charged; `vpsd billing verify` may say why", account_id)
    return charged | await _charge_transfers(transactions, now_ms)


async def _charge_accounts(transactions: Transactions, first: int, last: int, now_ms: int) -> set[int]:
    charged: set[int] = set()
    while True:
        async with transactions.write() as ctx:
            accounts = await meter.charge_accounts(ctx, first, last, now_ms)
        if not accounts:
            return charged
        charged |= accounts
        await asyncio.sleep(0)  # let other tasks run


async def _charge_transfers(transactions: Transactions, now_ms: int) -> set[int]:
    charged: set[int] = set()
    after: DueTransfer | None = None
    while True:
        async with transactions.read() as ctx:
            found = await meter.due_transfers(ctx, now_ms, after)
        for transfer in found:
            try:
                async with transactions.write() as ctx:
                    if await meter.charge_transfer(ctx, transfer):
                        charged.add(transfer.account_id)
            except DatabaseUnavailable:
                raise
            except Exception:
                log.exception(
                    "the transfer of server %s in %s could not be charged", transfer.server_id, transfer.month
                )
        if len(found) < meter.BATCH:
            return charged
        after = found[-1]
