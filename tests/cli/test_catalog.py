"""The catalogue, edited beside a running vpsd."""

from pathlib import Path

from tests.cli.conftest import Command
from tests.running import Vpsd, until

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
    assert "already matches" in vpsd.run("catalog", "apply").stdout
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


PRICED = """
[[plans]]
id = 61
name = "Priced VPS"
slug = "priced"
vcpus = 1
memory_mb = 128
storage_gb = 1
bandwidth_gb = 1
price_monthly = 3.00
"""


def test_a_new_price_is_for_new_servers_until_a_day_is_said_for_all(
    vpsd: Vpsd, command: Command, tmp_path: Path
) -> None:
    file = tmp_path / "catalog.toml"
    text = (vpsd.data / "catalog.toml").read_text()
    command.json("account", "add", "tenant")
    command.json("credit", "add", "tenant", "10")
    token = command.json("token", "add", "tenant")["token"]

    def apply(plan: str) -> list[str]:
        file.write_text(text + plan)
        changes: list[str] = command.json("catalog", "apply", str(file))["changes"]
        return changes

    def create(name: str) -> int:
        order = {"name": name, "plan_id": 61, "os_id": 1, "location": "us-west"}
        server_id: int = vpsd.ask("POST", "servers/", order, token=token).json()["id"]
        until(lambda: vpsd.ask("GET", f"servers/{server_id}/", token=token).json()["status"] == "active", "it to work")
        return server_id

    def price() -> list[float]:
        usage = vpsd.ask("GET", "account/usage/", token=token).json()
        return [server["price_monthly"] for server in usage["servers"]]

    def events() -> list[str]:
        found = vpsd.ask("GET", "account/events/", token=token).json()["results"]
        return [event["detail"] for event in found if event["action"] == "plan.price"]

    assert apply(PRICED) == ["plans 61: added"]
    assert "3.00" in command("catalog", "show").stdout
    made = [create("old")]
    dearer = PRICED.replace("3.00", "4.25")
    assert apply(dearer) == ["plans 61: changed"]
    assert '"price_monthly":4.25,"price_hourly":0.006,' in vpsd.ask("GET", "plans/61/").text
    made.append(create("new"))
    assert price() == [3.0, 4.25]
    to_come = f"{dearer}price_for_all_from = 2999-01-01T00:00:00Z\n"
    assert apply(to_come) == ["plans 61: changed", "plans 61: the future price of 1 servers is changed"]
    assert apply(to_come) == []
    assert price() == [3.0, 4.25]
    assert events() == ["Priced VPS: 4.25 a month from 2999-01-01T00:00:00Z"]
    file.write_text(f"{text}{PRICED.replace('3.00', '5.5')}price_for_all_from = 2020-01-01T00:00:00Z\n")
    refused = command.refused("catalog", "apply", str(file))  # the past is not charged anew
    assert "plans: 61: price_for_all_from 2020-01-01 00:00:00+00:00 is in the past." in refused
    assert apply(dearer) == ["plans 61: changed", "plans 61: the future price of 1 servers is changed"]
    assert events()[0] == "Priced VPS: the announced price is withdrawn"
    assert command("billing", "verify").returncode == 0
    for server_id in made:
        vpsd.ask("DELETE", f"servers/{server_id}/", token=token)
    assert apply("") == ["plans 61: changed"]  # no longer offered: others share this vpsd


def test_a_price_that_is_none_is_refused_by_its_plan(vpsd: Vpsd, command: Command, tmp_path: Path) -> None:
    file = tmp_path / "catalog.toml"
    text = (vpsd.data / "catalog.toml").read_text()
    for wrong, message in (
        ("price_monthly = -1", "plan 62: price_monthly -1 is below zero"),
        ("price_monthly = 0.0000001", "plan 62: "),
        ("price_monthly = 1e12", "plan 62: "),
        ("price_monthly = nan", "plan 62: "),
        ("price_monthly = 'free'", "price_monthly"),
        ("price_monthly = true", "price_monthly"),
        ("price_monthly = 1\nprice_for_all_from = 2027-01-01T00:00:00", "price_for_all_from"),  # of which time zone?
        ("price_monthly = 1\nprice_for_all_from = 2027-01-01", "price_for_all_from"),
        ("price_monthly = 1\nprice_for_all_from = 'soon'", "price_for_all_from"),
    ):
        plan = PRICED.replace("61", "62").replace("priced", "priced-2").replace("price_monthly = 3.00", wrong)
        file.write_text(text + plan)
        refused = command.refused("catalog", "apply", str(file))
        assert refused.startswith(f"vpsd: catalogue {file}: ")
        assert message in refused
    assert vpsd.ask("GET", "plans/62/").status_code == 404
