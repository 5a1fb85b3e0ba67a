"""What a test does to rows past every rule."""

from tests.api.tables import change
from tests.cloud import Cloud
from vpsd.lifecycle import Status
from vpsd.servers.models import servers


async def force_status(cloud: Cloud, server: int, status: Status) -> None:
    """Have a server in a status, as if it had come to rest there now."""
    async with cloud.database.write() as tx:
        await change(tx, servers, server, status=status, error=None, updated_at_ms=cloud.clock.now_ms())
