"""Makes one row of the many that sums are made of (`core.sums`), so that they stay quick to add up."""

from vpsd.core.clock import every
from vpsd.core.context import SYSTEM
from vpsd.core.sums import SUMS
from vpsd.runtime import Runtime

_PERIOD_SECONDS = 2.0


class SumKeeper:
    """Looks at what was added since it last looked. Any number of processes may."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._seen = dict.fromkeys((sums.table.name for sums in SUMS), 0)

    async def run(self) -> None:
        """Work until cancelled."""
        await every(self._runtime.clock, _PERIOD_SECONDS, self.compact)

    async def compact(self) -> None:
        """Compact the sums of every account that has got many rows."""
        for sums in SUMS:
            async with self._runtime.read(SYSTEM) as ctx:
                crowds, last_id = await sums.crowds(ctx, self._seen[sums.table.name])
            for crowd in crowds:
                more = True
                while more:
                    async with self._runtime.write(SYSTEM) as ctx:
                        more = await sums.compact(ctx, crowd.account_id)
            self._seen[sums.table.name] = last_id
