"""Rooms stay rooms: small files, few layers, and contracts that name every one of them."""

import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vpsd"
CONTRACTS: dict[str, Any] = {
    contract["name"]: contract
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
}


def test_no_file_has_more_than_400_lines() -> None:
    lines = {path: len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert len(lines) > 100
    assert {str(path.relative_to(ROOT)): count for path, count in lines.items() if count > 400} == {}


def test_there_are_at_most_twelve_layers() -> None:
    contract = CONTRACTS["Rooms import downwards"]
    assert contract["type"] == "layers"
    assert contract["exhaustive"]
    assert len(contract["layers"]) <= 12


def test_every_room_but_main_and_the_command_line_is_kept_from_the_drivers() -> None:
    contract = CONTRACTS["Only main knows a driver"]
    drivers = {"vpsd.hypervisor.libvirt", "vpsd.hypervisor.simulator"}
    others = {f"vpsd.{name}" for name in _modules(PACKAGE) - {"main", "cli", "migrations", "hypervisor"}}
    others |= {f"vpsd.hypervisor.{name}" for name in _modules(PACKAGE / "hypervisor")} - drivers
    assert set(contract["source_modules"]) == others
    assert set(contract["forbidden_modules"]) == drivers


def _modules(package: Path) -> set[str]:
    found = {path.stem for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    return found - {"__init__"}


def test_http_knows_no_dialect() -> None:
    contract = CONTRACTS["HTTP knows no dialect"]
    assert (contract["source_modules"], contract["forbidden_modules"]) == (["vpsd.api.http"], ["vpsd.api.vps_org"])
