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
        ("VPSD_ROLE", "all"),
        ("VPSD_DRAIN_SECONDS", "-1"),
        ("VPSD_DATABASE_URL", "mysql://vpsd@db/vpsd"),
        ("VPSD_DATABASE_URL", "vpsd"),
        ("VPSD_CURRENCY", "usd"),
        ("VPSD_CURRENCY", "US Dollar"),
        ("VPSD_CURRENCY", "USDT"),
        ("VPSD_CURRENCY", "EU\n"),
        ("VPSD_TRANSFER_PRICE", "-1"),
        ("VPSD_TRANSFER_PRICE", "-0.01"),
        ("VPSD_TRANSFER_PRICE", "0.0000001"),
        ("VPSD_TRANSFER_PRICE", "a cent"),
        ("VPSD_TRANSFER_PRICE", "NaN"),
        ("VPSD_TRANSFER_PRICE", "Infinity"),
        ("VPSD_TRANSFER_PRICE", "1000000001"),
        ("VPSD_TRANSFER_PRICE", "1e999999"),
        ("VPSD_COVER_HOURS", "-1"),
        ("VPSD_COVER_HOURS", "8761"),
        ("VPSD_COVER_HOURS", "1.5"),
        ("VPSD_GRACE_HOURS", "-1"),
        ("VPSD_GRACE_HOURS", "8761"),
        ("VPSD_GRACE_HOURS", "three days"),
        ("VPSD_DELETE_UNPAID_AFTER_DAYS", "0"),
        ("VPSD_DELETE_UNPAID_AFTER_DAYS", "-1"),
        ("VPSD_DELETE_UNPAID_AFTER_DAYS", "never"),
        ("VPSD_RATE_LIMIT", "-1"),
        ("VPSD_RATE_LIMIT", "1.5"),
        ("VPSD_ADDRESS_RATE_LIMIT", "-1"),
        ("VPSD_ADDRESS_RATE_LIMIT", "no"),
        ("VPSD_LOGIN_FAILURES", "-1"),
        ("VPSD_LOGIN_FAILURES", "no"),
        ("VPSD_TRUSTED_PROXIES", "*"),
        ("VPSD_TRUSTED_PROXIES", "proxy.example"),
        ("VPSD_TRUSTED_PROXIES", "10.0.0.5,10.0.0.300"),
        ("VPSD_TRUSTED_PROXIES", "10.0.0.5/24"),
        ("VPSD_PUBLIC_URL", "vps.example.com"),
        ("VPSD_PUBLIC_URL", "ftp://vps.example.com"),
        ("VPSD_PUBLIC_URL", "https://"),
        ("VPSD_PUBLIC_URL", "https://vps.example.com:99999"),
        ("VPSD_PUBLIC_URL", "https://vps.example.com:0"),
        ("VPSD_PUBLIC_URL", "https://vps.example.com/?x=1"),
        ("VPSD_PUBLIC_URL", "https://vps.example.com/#x"),
        ("VPSD_PUBLIC_URL", "https://vps.example.com/a/../b"),
        ("VPSD_PUBLIC_URL", "https://vps.example.com//a"),
        ("VPSD_PUBLIC_URL", "https://vps.example.com/a b"),
        ("VPSD_PUBLIC_URL", "https://vps.example.com\n"),
        ("VPSD_CORS_ORIGINS", "panel.example.com"),
        ("VPSD_CORS_ORIGINS", "https://panel.example.com/"),
        ("VPSD_CORS_ORIGINS", "https://panel.example.com/app"),
        ("VPSD_CORS_ORIGINS", "https://panel.example.com:443"),
        ("VPSD_CORS_ORIGINS", "http://localhost:80"),
        ("VPSD_CORS_ORIGINS", "https://Panel.example.com"),
        ("VPSD_CORS_ORIGINS", "https://*.example.com"),
        ("VPSD_CORS_ORIGINS", "https://panel.example.com,*"),
        ("VPSD_CORS_ORIGINS", "null"),
        ("VPSD_LOG_FORMAT", "xml"),
        ("VPSD_LOG_FORMAT", "JSON"),
        ("VPSD_LOG_LEVEL", "loud"),
        ("VPSD_VCPU_OVERCOMMIT", "0"),
        ("VPSD_VCPU_OVERCOMMIT", "-1"),
        ("VPSD_VCPU_OVERCOMMIT", "nan"),
        ("VPSD_VCPU_OVERCOMMIT", "inf"),
        ("VPSD_MEMORY_OVERCOMMIT", "0"),
        ("VPSD_MEMORY_OVERCOMMIT", "inf"),
        ("VPSD_STORAGE_OVERCOMMIT", "a lot"),
        ("VPSD_STORAGE_OVERCOMMIT", "1e400"),
        ("VPSD_BACKUP_S3", "no"),
        ("VPSD_BACKUP_S3", "bucket/"),
        ("VPSD_BACKUP_S3", "bucket/../other"),
        ("VPSD_BACKUP_S3", "s3://bucket"),
        ("VPSD_BACKUP_S3_ENDPOINT", "https://s3.example.org"),
        ("VPSD_BACKUP_S3_REGION", "eu-central-1"),
        ("VPSD_BACKUP_WINDOW", "03:00"),
        ("VPSD_BACKUP_WINDOW", "03:00-03:00"),
        ("VPSD_BACKUP_WINDOW", "03:00-24:00"),
        ("VPSD_BACKUP_WINDOW", "3:00-5:00"),
        ("VPSD_BACKUP_WINDOW", "03:00-05:60"),
        ("VPSD_BACKUP_WINDOW", "03:00-05:00\n"),
        ("VPSD_BACKUP_KEEP_DAILY", "-1"),
        ("VPSD_BACKUP_KEEP_DAILY", "367"),
        ("VPSD_BACKUP_KEEP_WEEKLY", "105"),
        ("VPSD_BACKUP_KEEP_MONTHLY", "121"),
        ("VPSD_BACKUPS_PER_SERVER", "-1"),
        ("VPSD_SNAPSHOTS_PER_SERVER", "some"),
    ],
)
def test_nonsense_is_refused_by_name(variable: str, value: str) -> None:
    with pytest.raises(Misconfigured, match=variable):
        load({variable: value})


def test_settings_about_money_and_limits_are_read_by_their_type() -> None:
    settings = load(
        {
            "VPSD_CURRENCY": "EUR",
            "VPSD_TRANSFER_PRICE": "0.000001",
            "VPSD_COVER_HOURS": "0",
            "VPSD_GRACE_HOURS": "0",
            "VPSD_DELETE_UNPAID_AFTER_DAYS": "30",
            "VPSD_RATE_LIMIT": "0",
            "VPSD_LOG_FORMAT": "json",
            "VPSD_MEMORY_OVERCOMMIT": "1.5",
        }
    )
    assert (settings.currency, settings.transfer_price_micros) == ("EUR", 1)
    assert (settings.cover_hours, settings.grace_hours, settings.delete_unpaid_after_days) == (0, 0, 30)
    assert (settings.rate_limit, settings.log_format, settings.memory_overcommit) == (0, "json", 1.5)


def test_without_variables_money_and_limits_have_the_documented_defaults() -> None:
    settings = load({})
    assert (settings.currency, settings.transfer_price_micros) == ("USD", 10_000)
    assert (settings.cover_hours, settings.grace_hours, settings.delete_unpaid_after_days) == (24, 72, None)
    assert (settings.rate_limit, settings.address_rate_limit, settings.login_failures) == (1200, 2400, 20)


def test_a_password_in_the_database_url_is_no_part_of_an_error() -> None:
    with pytest.raises(Misconfigured) as caught:
        load({"VPSD_DATABASE_URL": "postgresql://vpsd:secret@db/vpsd", "VPSD_WORKERS": "no"})
    assert "secret" not in str(caught.value)


def test_a_login_in_the_public_url_is_refused_and_no_part_of_the_error() -> None:
    with pytest.raises(Misconfigured, match="VPSD_PUBLIC_URL") as caught:
        load({"VPSD_PUBLIC_URL": "https://me:secret@vps.example.com"})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["https://vps.example.com", "http://192.0.2.1:8080/", "https://[2001:db8::1]:8443/cloud/", "http://vps/a.b/c_~"],
)
def test_a_public_url_may_have_a_port_and_a_prefix(url: str) -> None:
    assert load({"VPSD_PUBLIC_URL": url}).public_url == url


def test_origins_are_read_one_by_one() -> None:
    assert load({}).cors == ()
    assert load({"VPSD_CORS_ORIGINS": "*"}).cors == ("*",)
    several = "https://panel.example.com, http://localhost:3000,https://[2001:db8::1]:8443"
    assert load({"VPSD_CORS_ORIGINS": several}).cors == tuple(several.replace(" ", "").split(","))


def test_backups_lie_beside_the_data_unless_it_is_said_otherwise() -> None:
    settings = load({"VPSD_DATA_DIR": "/srv/vpsd"})
    assert settings.backup_folder == Path("/srv/vpsd/backups")
    assert (settings.backup_s3, settings.backup_key_file) == (None, None)
    assert load({"VPSD_BACKUP_DIR": "backups"}).backup_folder == Path("backups").absolute()
    assert load({"VPSD_BACKUP_KEY_FILE": "key"}).backup_key_file == Path("key").absolute()


def test_a_bucket_is_taken_with_and_without_a_prefix_and_by_an_endpoint() -> None:
    assert load({"VPSD_BACKUP_S3": "my.backups"}).backup_s3 == "my.backups"
    settings = load(
        {
            "VPSD_BACKUP_S3": "backups/vpsd/one",
            "VPSD_BACKUP_S3_ENDPOINT": "http://127.0.0.1:9000",
            "VPSD_BACKUP_S3_REGION": "eu-central-1",
        }
    )
    assert (settings.backup_s3, settings.backup_s3_endpoint) == ("backups/vpsd/one", "http://127.0.0.1:9000")


def test_two_places_for_backups_are_refused() -> None:
    with pytest.raises(Misconfigured, match="VPSD_BACKUP_DIR and VPSD_BACKUP_S3"):
        load({"VPSD_BACKUP_DIR": "/srv/backups", "VPSD_BACKUP_S3": "backups"})


@pytest.mark.parametrize("endpoint", ["s3.example.org", "ftp://s3.example.org", "https://me:secret@s3.example.org"])
def test_an_odd_endpoint_is_refused_and_a_password_in_it_is_no_part_of_the_error(endpoint: str) -> None:
    with pytest.raises(Misconfigured, match="VPSD_BACKUP_S3_ENDPOINT") as caught:
        load({"VPSD_BACKUP_S3": "backups", "VPSD_BACKUP_S3_ENDPOINT": endpoint})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("window", "minutes"), [("03:00-05:00", (180, 120)), ("23:30-00:15", (1410, 45)), ("00:00-23:59", (0, 1439))]
)
def test_the_window_of_backups_may_cross_midnight(window: str, minutes: tuple[int, int]) -> None:
    assert load({"VPSD_BACKUP_WINDOW": window}).backup_window_minutes == minutes


@pytest.mark.parametrize(
    ("proxies", "hypervisor", "passes"),
    [
        ("", "libvirt", False),
        ("127.0.0.1", "libvirt", True),
        ("10.0.0.5, 127.0.0.0/8", "libvirt", True),
        ("::ffff:127.0.0.1", "libvirt", True),
        ("::1", "libvirt", True),
        ("127.0.0.9", "libvirt", False),
        ("10.0.0.5", "libvirt", False),
        ("127.0.0.1", "simulator", False),
    ],
)
def test_a_proxy_at_the_address_that_guests_come_from_is_noticed(proxies: str, hypervisor: str, passes: bool) -> None:
    settings = load({"VPSD_TRUSTED_PROXIES": proxies, "VPSD_HYPERVISOR": hypervisor})
    assert settings.guests_pass_for_a_proxy == passes
