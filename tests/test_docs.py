"""The papers are true: their examples run, their table is the measured one, their links lead somewhere."""

import doctest
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.test_access import NEEDS
from tests.images.synthetic import bios_disk, qcow2_of
from tests.running import PROGRAM, Vpsd
from vpsd.accounts.permissions import OF_ROLE, Role, covers
from vpsd.settings import Settings

ROOT = Path(__file__).parent.parent
PAPERS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
PERMISSIONS = (ROOT / "docs/permissions.md").read_text(encoding="utf-8")
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl me@laptop"


@pytest.fixture
def vpsd() -> Iterator[Vpsd]:
    """A vpsd that has just been started for the first time."""
    made = Vpsd(hypervisor="simulator", simulator_boot_seconds=0.05)
    made.start()
    yield made
    made.discard()


def _blocks(paper: str, language: str) -> list[str]:
    text = (ROOT / paper).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    ("paper", "count"),
    [
        *(("README.md", 10), ("docs/money.md", 4), ("docs/permissions.md", 4), ("docs/backups.md", 7)),
        ("docs/images.md", 3),
        ("docs/hosts.md", 5),
        ("docs/state.md", 1),
        ("docs/operate.md", 1),
    ],
)
def test_a_papers_commands_work_one_after_the_other(vpsd: Vpsd, tmp_path: Path, paper: str, count: int) -> None:
    key = tmp_path / "id_ed25519.pub"
    key.write_text(KEY + "\n")
    disk = qcow2_of(bios_disk(tmp_path / "my-debian.raw"))
    blocks = _blocks(paper, "sh")
    assert len(blocks) == count
    preface = 'set -euo pipefail\ncurl() { command curl -sS --fail-with-body "$@"; }\n'
    for block in blocks:
        script = block.replace("http://127.0.0.1:8000", f"http://{vpsd.listen}").replace("var/", "$DATA/")
        script = (
            script.replace("my-debian.qcow2", str(disk))
            .replace("~/.ssh/id_ed25519.pub", str(key))
            .replace(".venv/bin/vpsd", str(PROGRAM))
        )
        done = subprocess.run(
            ["bash", "-c", preface + 'TOKEN=$(cat "$DATA/token")\n' + script],
            env={**vpsd.environment, "DATA": str(vpsd.data), "API": f"http://{vpsd.listen}/api/v1"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        for server in vpsd.get("servers/")["results"]:
            vpsd.until_status(server["id"], "active")
    left = {server["name"] for server in vpsd.get("servers/")["results"]}
    assert left == {"README.md": {"first"}, "docs/permissions.md": {"once"}}.get(paper, set())


def test_moneys_worked_example_comes_out_as_written() -> None:
    failed, tried = doctest.testfile(str(ROOT / "docs/money.md"), module_relative=False)
    assert (failed, tried > 10) == (0, True)


def test_the_papers_table_of_roles_is_the_true_one() -> None:
    rows = re.findall(r"^\| `([a-z_:*]+)` \|.*\| (yes|–) \| (yes|–) \| (yes|–) \|$", PERMISSIONS, re.MULTILINE)
    assert {name for name, *_ in rows} == set(NEEDS.values())
    for name, *said in rows:
        assert said == ["yes" if covers(OF_ROLE[role], name) else "–" for role in Role], name


def test_the_papers_name_every_setting_about_money_and_limits_by_its_true_name() -> None:
    for paper in PAPERS:
        named = set(re.findall(r"VPSD_[A-Z0-9_]+", paper.read_text(encoding="utf-8"))) - {"VPSD_"}
        assert named <= {f"VPSD_{field.upper()}" for field in Settings.__struct_fields__}, paper


def test_the_commands_of_make_that_the_papers_name_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for paper in PAPERS:
        named = set(re.findall(r"`make ([a-z-]+)`|^make ([a-z-]+)", paper.read_text(encoding="utf-8"), re.MULTILINE))
        assert {first or second for first, second in named} <= targets, paper


def test_the_readme_quotes_the_measured_table() -> None:
    measured = (ROOT / "docs/bench.md").read_text(encoding="utf-8")
    table = measured[measured.index("| what |") :]
    assert table in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("paper", PAPERS, ids=lambda paper: paper.name)
def test_links_lead_somewhere(paper: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", paper.read_text(encoding="utf-8")):
        assert (paper.parent / target).exists(), target
