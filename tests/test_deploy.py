"""What `deploy/` has: units, an image, and a composition. There is no daemon here to run them: they are read."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.running import PROGRAM
from vpsd.settings import Settings

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
DROP_IN = DEPLOY / "systemd/no-image-builds.conf"
COMMANDS = ("up", "api", "worker")
_END_SECONDS = 15  # of vpsd.main


def unit_text(unit: Path) -> str:
    """With the program where it is here."""
    text = unit.read_text(encoding="utf-8")
    assert "/opt/vpsd/bin/vpsd " in text
    return text.replace("/opt/vpsd/bin/vpsd", str(PROGRAM))


def instance_of(unit: Path) -> str:
    """The name of the unit, or of one of its instances."""
    return unit.name.replace("@.", "@8001.")


def analyze(*arguments: str | Path) -> str:
    """What systemd-analyze finds wrong; it has to be there, as `scripts/install dev` sees to."""
    done = subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True)
    return done.stderr + (done.stdout if done.returncode else "")


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_has_nothing_against_a_unit(unit: Path, tmp_path: Path) -> None:
    (tmp_path / instance_of(unit)).write_text(unit_text(unit))
    assert analyze("verify", "--man=no", tmp_path / instance_of(unit)) == ""
    (tmp_path / instance_of(unit)).write_text(unit_text(unit).replace("ProtectHome=yes", "ProtectHome=perhaps"))
    assert "ProtectHome" in analyze("verify", "--man=no", tmp_path / instance_of(unit)) or "protect home" in analyze(
        "verify", "--man=no", tmp_path / instance_of(unit)
    )


@pytest.mark.parametrize(
    ("name", "with_drop_in", "threshold"),
    [
        ("vpsd-api@.service", False, 15),
        ("vpsd-worker@.service", False, 65),
        ("vpsd-worker@.service", True, 20),
        ("vpsd.service", True, 20),
    ],
)
def test_a_unit_may_do_no_more_than_it_has_to(name: str, with_drop_in: bool, threshold: int, tmp_path: Path) -> None:
    text = unit_text(DEPLOY / "systemd" / name)
    if with_drop_in:
        text += DROP_IN.read_text(encoding="utf-8")
    (tmp_path / name).write_text(text)
    assert analyze("security", "--offline=true", f"--threshold={threshold}", "--no-pager", tmp_path / name) == ""


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_starts_vpsd_with_settings_that_there_are_and_lets_it_end(unit: Path) -> None:
    text = unit.read_text(encoding="utf-8")
    assert re.search(r"^ExecStart=/opt/vpsd/bin/vpsd (\w+)$", text, re.MULTILINE)[1] in COMMANDS  # type: ignore[index]
    names = re.findall(r"VPSD_(\w+)=", text)
    assert names
    assert {name.lower() for name in names} <= set(Settings.__struct_fields__)
    stop_seconds = int(re.search(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)[1])  # type: ignore[index]
    assert stop_seconds > _END_SECONDS


@pytest.fixture
def composed() -> dict[str, Any]:
    """compose.yaml, with its anchors followed."""
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    return found


def test_the_composition_is_two_apis_two_workers_and_a_balancer_that_they_believe(composed: dict[str, Any]) -> None:
    services = composed["services"]
    commands = [service["command"] for service in services.values() if service.get("image") == "vpsd"]
    assert commands == [["api"], ["api"], ["worker"], ["worker"]]
    caddy = (DEPLOY / "Caddyfile").read_text(encoding="utf-8")
    upstreams = re.search(r"reverse_proxy ([^{]+) \{", caddy)
    assert upstreams is not None
    apis = [name for name, service in services.items() if service.get("command") == ["api"]]
    assert upstreams[1].split() == [f"{name}:8000" for name in apis]
    address = services["balancer"]["networks"]["inside"]["ipv4_address"]
    for name in apis:
        assert services[name]["environment"]["VPSD_TRUSTED_PROXIES"] == address
        drain = int(services[name]["environment"]["VPSD_DRAIN_SECONDS"])
        assert int(services[name]["stop_grace_period"].removesuffix("s")) >= drain + _END_SECONDS
    for service in services.values():
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            assert source in composed["volumes"] or (DEPLOY / source).exists()
        settings = [name for name in service.get("environment", {}) if name.startswith("VPSD_") and name != "VPSD_SITE"]
        assert {name.removeprefix("VPSD_").lower() for name in settings} <= set(Settings.__struct_fields__)


@pytest.mark.skipif(shutil.which("caddy") is None, reason="caddy is not installed")
def test_caddy_takes_its_file() -> None:
    done = subprocess.run(
        ["caddy", "adapt", "--config", DEPLOY / "Caddyfile", "--adapter", "caddyfile"], capture_output=True, text=True
    )
    assert (done.returncode, "/health/ready" in done.stdout) == (0, True), done.stderr


def test_the_image_is_made_of_files_that_there_are_and_does_not_run_as_root(composed: dict[str, Any]) -> None:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    logical = re.sub(r"\\\n\s*", "", text)
    lines = [line for line in logical.splitlines() if line and not line.startswith("#")]
    sources = [
        source for line in lines if line.startswith("COPY ") and "--from=" not in line for source in line.split()[1:-1]
    ]
    assert set(sources) >= {"vpsd", "pyproject.toml", "requirements.lock"}
    assert [source for source in sources if not (ROOT / source).exists()] == []
    assert {"USER vpsd", 'ENTRYPOINT ["vpsd"]', 'CMD ["api"]'} <= set(lines)
    assert len([line for line in lines if line.startswith("FROM ")]) == 2
    assert composed["x-vpsd"]["build"]["dockerfile"] == "deploy/Dockerfile"
    packaged = re.search(r"^license-files = \[\"(.*)\"\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert packaged is not None
    assert packaged[1] in sources  # the wheel is not built without it
