"""What a first start says: lines to paste for a first server."""

import shlex

from vpsd.api.vps_org.schemas.servers import ssh_line
from vpsd.core.folder import TOKEN
from vpsd.settings import Settings


def first_server(settings: Settings, low_ports: bool) -> str:
    """A `curl` line that makes a server and the `ssh` line for it; `low_ports`: guests' port 22 can be had."""
    token = f"$(cat {shlex.quote(str(settings.data_dir / TOKEN))})"
    login = ssh_line(str(settings.network[2]), 22 if low_ports else 2222)
    return f"""
Your first server, a tiny Linux:

  curl -X POST http://{settings.listen}/api/v1/servers/ -H "Authorization: Bearer {token}" \\
    -H "Content-Type: application/json" \\
    -d '{{"name": "first", "plan_id": 4, "os_id": 1, "location": "us-west"}}'

The answer carries its root password. When it is up (the first one builds its image: give it a minute), log in:

  {login}
"""
