"""Settings: a value that cannot be used refuses to start, by name."""

from pathlib import Path

import pytest

from vpsd.errors import Misconfigured
from vpsd.settings import load


def test_without_variables_everything_has_its_default() -> None:
    settings = load({"PATH": "/bin"})
    assert settings.data_dir == Path("var").absolute()
    assert settings.url == f"sqlite:///{settings.data_dir}/vpsd.sqlite"
    assert settings.host_port == ("127.0.0.1", 8000)
    assert settings.guest_ports == (22, 80, 443)


def test_values_are_read_by_their_type() -> None:
    settings = load({"VPSD_WORKERS": "8", "VPSD_SIMULATOR_BOOT_SECONDS": "0.25", "VPSD_FORWARD_PORTS": "22, 8080"})
    assert (settings.workers, settings.simulator_boot_seconds, settings.guest_ports) == (8, 0.25, (22, 8080))


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("VPSD_WORKER", "4"),
        ("VPSD_WORKERS", "many"),
        ("VPSD_WORKERS", "0"),
        ("VPSD_LISTEN", "8000"),
        ("VPSD_LISTEN", "127.0.0.1:http"),
        ("VPSD_LISTEN", "127.0.0.1:70000"),
        ("VPSD_FORWARD_PORTS", "80,http"),
        ("VPSD_FORWARD_PORTS", "70000"),
        ("VPSD_ADDRESS_POOL", "10.0.0.0/8"),
        ("VPSD_ADDRESS_POOL", "127.10.0.1/16"),
        ("VPSD_HYPERVISOR", "xen"),
        ("VPSD_ROLE", "worker"),
        ("VPSD_DATABASE_URL", "mysql://vpsd@db/vpsd"),
        ("VPSD_DATABASE_URL", "vpsd"),
    ],
)
def test_nonsense_is_refused_by_name(variable: str, value: str) -> None:
    with pytest.raises(Misconfigured, match=variable):
        load({variable: value})


def test_a_password_in_the_database_url_is_no_part_of_an_error() -> None:
    with pytest.raises(Misconfigured) as caught:
        load({"VPSD_DATABASE_URL": "postgresql://vpsd:secret@db/vpsd", "VPSD_WORKERS": "no"})
    assert "secret" not in str(caught.value)
