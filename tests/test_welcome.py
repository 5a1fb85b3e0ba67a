"""The lines to paste that a first start prints."""

from pathlib import Path

from vpsd.api.vps_org.welcome import first_server
from vpsd.settings import Settings

SETTINGS = Settings(data_dir=Path("var"), listen="127.0.0.1:9000", address_pool="127.20.0.0/24")


def test_the_curl_line_speaks_to_this_vpsd_and_the_ssh_line_to_its_first_address() -> None:
    text = first_server(SETTINGS, low_ports=True)
    assert "curl -X POST http://127.0.0.1:9000/api/v1/servers/" in text
    assert 'Bearer $(cat var/token)"' in text
    assert text.endswith("  ssh root@127.20.0.2\n")


def test_where_low_ports_cannot_be_had_the_ssh_line_says_the_other() -> None:
    assert first_server(SETTINGS, low_ports=False).endswith("  ssh -p 2222 root@127.20.0.2\n")
