"""The wheel carries everything: installed alone, as docs/operate.md does it, it is a whole vpsd."""

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running import Vpsd, environment
from vpsd import __version__

ROOT = Path(__file__).parent.parent
# Imports whatever there is, but what alembic alone can load; the binding of libvirt is an extra of its own.
_IMPORT_ALL = """
import importlib, pkgutil, vpsd
for module in pkgutil.walk_packages(vpsd.__path__, "vpsd."):
    if module.name not in ("vpsd.migrations.__main__", "vpsd.migrations.env"):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            if error.name != "libvirt":
                raise
print(vpsd.__file__)
"""


def run(*arguments: str | Path) -> str:
    """Run a program to its good end; returns what it said."""
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment(), timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pip(*arguments: str | Path) -> str:
    """The pip of this environment, which need not be in the other one."""
    return run(sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of this tree, made in a copy: the tree may have a `build/` with what was there once."""
    work = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "vpsd", work / "tree/vpsd", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, work / "tree")
    pip("wheel", "-q", "--no-deps", "-w", work, work / "tree")
    (made,) = work.glob("*.whl")
    return made


@pytest.fixture
def vpsd(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Vpsd]:
    """A vpsd of that wheel in an environment of its own, about to be started in a folder with another one's code."""
    place = tmp_path / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", place)
    into = ("--python", place / "bin/python", "install", "-q", "--no-compile")
    pip(*into, "--require-hashes", "-r", ROOT / "requirements.lock")
    pip(*into, "--no-deps", wheel)
    (tmp_path / "vpsd").mkdir()
    (tmp_path / "vpsd/__init__.py").write_text("raise SystemExit('this is not the vpsd that was started')")
    monkeypatch.chdir(tmp_path)
    made = Vpsd(program=place / "bin/vpsd", hypervisor="simulator", simulator_boot_seconds=0.05)
    yield made
    made.discard()


def test_every_file_of_vpsd_is_in_the_wheel(wheel: Path) -> None:
    there = {path for path in (ROOT / "vpsd").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("vpsd/")}
    assert packed == {path.relative_to(ROOT).as_posix() for path in there}


def test_what_the_wheel_says_it_needs_is_enough_for_a_whole_vpsd(vpsd: Vpsd, tmp_path: Path) -> None:
    python = tmp_path / "venv/bin/python"
    assert "No broken requirements" in pip("--python", python, "check")
    assert Path(run(python, "-I", "-c", _IMPORT_ALL).strip()).is_relative_to(tmp_path / "venv")
    assert vpsd.run("--version").stdout.strip() == __version__

    vpsd.start()
    said = vpsd.get("openapi.json")
    del said["servers"]  # where it was asked
    assert said.items() <= json.loads((ROOT / "openapi.json").read_text()).items()
    server = vpsd.create("web", user_data="#cloud-config\npackages: [nginx]\n", os_id=3)["id"]
    vpsd.until_status(server, "active")
    assert vpsd.run_json("check") == []
    assert vpsd.run("state", "backup", str(tmp_path / "vpsd.state")).returncode == 0
    assert vpsd.terminate() == 0

    other = tmp_path / "other"
    there = {"data_dir": other, "hypervisor": "simulator"}
    done = vpsd.run("state", "restore", str(tmp_path / "vpsd.state"), **there)
    assert done.returncode == 0, done.stderr
    assert vpsd.run("server", "list", **there).stdout.count("web") == 1
