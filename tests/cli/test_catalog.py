"""The catalogue, edited beside a running vpsd."""

from pathlib import Path

from tests.running import Vpsd

PLAN = """
[[plans]]
id = 60
name = "Huge VPS"
slug = "huge"
vcpus = 8
memory_mb = 16384
storage_gb = 320
bandwidth_gb = 8192
"""


def test_a_plan_that_is_added_to_the_file_is_offered_and_one_that_is_taken_out_no_longer(vpsd: Vpsd) -> None:
    file = vpsd.data / "catalog.toml"
    before = file.read_text()
    file.write_text(before + PLAN)
    assert vpsd.run_json("catalog", "apply") == {"file": str(file), "changes": ["plans 60: added"]}
    assert "Huge VPS" in str(vpsd.get("plans/"))
    assert vpsd.create("huge", plan_id=60)["plan"]["memory"] == 16384
    assert "as" in vpsd.run("catalog", "apply").stdout
    file.write_text(before)
    assert vpsd.run_json("catalog", "apply")["changes"] == ["plans 60: changed"]
    refused = vpsd.ask("POST", "servers/", {"name": "huge-2", "plan_id": 60, "os_id": 1, "location": "us-west"})
    assert (refused.status_code, list(refused.json())) == (400, ["plan_id"])


def test_an_id_does_not_change_its_meaning_and_the_field_is_named(vpsd: Vpsd, tmp_path: Path) -> None:
    file = tmp_path / "catalog.toml"
    file.write_text((vpsd.data / "catalog.toml").read_text().replace("memory_mb = 256", "memory_mb = 512"))
    done = vpsd.run("catalog", "apply", str(file))
    assert done.returncode == 1
    assert "plans: 4: memory_mb cannot change" in done.stderr
    (nano,) = [plan for plan in vpsd.run_json("catalog", "show")["plans"] if plan["id"] == 4]
    assert nano["memory_mb"] == 256


def test_a_file_that_is_none_is_refused_by_its_name(vpsd: Vpsd, tmp_path: Path) -> None:
    file = tmp_path / "catalog.toml"
    for text in ("plans = 3", "plans = [", "[[plans]]\nid = 1\nname = 'x'\nsize = 3\n"):
        file.write_text(text)
        done = vpsd.run("catalog", "apply", str(file))
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert str(file) in done.stderr


def test_what_is_shown_to_people_has_the_ids_of_the_published_page(vpsd: Vpsd) -> None:
    shown = vpsd.run("catalog", "show").stdout
    for text in ("Standard VPS", "Performance VPS", "Debian 12", "Ubuntu 22.04 LTS", "us-west", "eu-central"):
        assert text in shown
