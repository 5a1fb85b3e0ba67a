"""The papers are true: their examples run, their table is the measured one, their links lead somewhere."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running import PROGRAM, Vpsd

ROOT = Path(__file__).parent.parent
PAPERS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl me@laptop"


@pytest.fixture
def vpsd() -> Iterator[Vpsd]:
    """A vpsd that has just been started for the first time."""
    made = Vpsd(hypervisor="simulator", simulator_boot_seconds=0.05)
    made.start()
    yield made
    made.discard()


def _blocks(language: str) -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_readmes_commands_work_one_after_the_other(vpsd: Vpsd, tmp_path: Path) -> None:
    key = tmp_path / "id_ed25519.pub"
    key.write_text(KEY + "\n")
    blocks = _blocks("sh")
    assert len(blocks) == 5
    preface = 'set -euo pipefail\ncurl() { command curl -sS --fail-with-body "$@"; }\n'
    for block in blocks:
        script = block.replace("http://127.0.0.1:8000", f"http://{vpsd.listen}").replace("var/token", "$DATA/token")
        script = script.replace("~/.ssh/id_ed25519.pub", str(key)).replace(".venv/bin/vpsd", str(PROGRAM))
        done = subprocess.run(
            ["bash", "-c", preface + 'TOKEN=$(cat "$DATA/token")\n' + script],
            env={**vpsd.environment, "DATA": str(vpsd.data)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        for server in vpsd.get("servers/")["results"]:
            vpsd.until_status(server["id"], "active")
    assert [operation["command"] for operation in vpsd.operations(1)] == ["create"]
    assert vpsd.ask("GET", "servers/2/").status_code == 404


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
