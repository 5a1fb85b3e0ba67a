"""Backups from the operator's side."""

import asyncio
import json
from pathlib import Path

from tests.cli.conftest import Command
from tests.cloud import Cloud
from tests.running import Vpsd, until


def test_a_backup_is_listed_and_verified_and_damage_is_found(vpsd: Vpsd, command: Command) -> None:
    server = vpsd.create("kept")["id"]
    vpsd.until_status(server, "active")
    made = vpsd.until_copied(vpsd.post("backups/", {"server_id": server}))
    (listed,) = [one for one in command.json("backup", "list") if one["id"] == made["id"]]
    assert (listed["kind"], listed["server_id"], listed["status"]) == ("manual", server, "completed")
    assert listed["target"] == f"directory {vpsd.data}/backups"
    assert str(made["id"]) in command("backup", "list").stdout
    (verified,) = command.json("backup", "verify", str(made["id"]))
    assert (verified["error"], verified["bytes"] > 0) == (None, True)
    assert "intact" in command("backup", "verify").stdout
    chunk = next(path for path in (vpsd.data / "backups").rglob(f"{made['uuid']}/*") if path.name != "manifest")
    good = chunk.read_bytes()
    chunk.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    done = command("backup", "verify", str(made["id"]))
    assert (done.returncode, made["uuid"] in done.stdout) == (1, True)
    (listed,) = [one for one in command.json("backup", "list") if one["id"] == made["id"]]
    assert (listed["status"], listed["error"]) == ("damaged", "Parts of it were lost or changed where it is kept.")
    assert f"vpsd backup verify {made['id']} says where" in command("check").stdout
    chunk.write_bytes(good)
    assert command("backup", "verify", str(made["id"])).returncode == 0
    assert vpsd.get(f"backups/{made['id']}/")["status"] == "completed"
    assert "backup list" in command.refused("backup", "verify", "4711")


def test_the_operator_deletes_by_the_customers_rule_and_the_customer_reads_of_it(vpsd: Vpsd, command: Command) -> None:
    server = vpsd.create("spoilt")["id"]
    vpsd.until_status(server, "active")
    made = vpsd.until_copied(vpsd.post(f"servers/{server}/snapshot/"), "snapshot")
    assert command.json("backup", "delete", str(made["id"])) == {"id": made["id"]}
    assert vpsd.ask("GET", f"snapshots/{made['id']}/").status_code == 404
    event = vpsd.get("account/events/")["results"][0]
    assert (event["action"], event["actor"], event["detail"]) == ("snapshot.delete", "operator", f"of server {server}")
    assert event["target"] == {"type": "snapshot", "id": made["id"]}
    refused = command.refused("backup", "delete", str(made["id"]))
    assert refused == f"vpsd: There is no backup or snapshot {made['id']}; `vpsd backup list` lists them."


async def test_a_backup_that_is_in_use_is_not_deleted_by_the_operator_either(
    cloud: Cloud, database_url: str, command: Command, tmp_path: Path
) -> None:
    made = (await cloud.post("/api/v1/backups/", {"server_id": await cloud.have_server()})).json()
    settings = {"data_dir": tmp_path, "database_url": database_url}
    assert "is in use" in await asyncio.to_thread(command.refused, "backup", "delete", str(made["id"]), **settings)
    assert (await cloud.get(f"/api/v1/backups/{made['id']}/")).status_code == 200


def test_the_daily_backup_is_made_now_where_the_customer_has_it_enabled(vpsd: Vpsd, command: Command) -> None:
    server = vpsd.create("daily")["id"]
    vpsd.until_status(server, "active")
    assert "no backups enabled" in command.refused("backup", "now", str(server))
    assert "server list" in command.refused("backup", "now", "4711")
    vpsd.ask("PATCH", f"servers/{server}/", {"backups_enabled": True})
    assert "as soon as" in command("backup", "now", str(server)).stdout

    def is_made() -> bool:
        found = vpsd.get(f"backups/?server_id={server}")["results"]
        return [one["backup_type"] for one in found if one["status"] == "completed"] == ["automatic"]

    until(is_made, "the daily backup")


def test_a_key_is_made_once_and_for_its_owner(tmp_path: Path, command: Command) -> None:
    file = tmp_path / "backup.key"
    assert str(file) in command("backup", "key", str(file)).stdout
    assert file.stat().st_mode & 0o777 == 0o600
    before = file.read_text()
    assert len(before.strip()) == 64
    assert "cannot be written" in command.refused("backup", "key", str(file))
    assert file.read_text() == before


def test_backups_are_encrypted_with_the_operators_key(tmp_path: Path, command: Command) -> None:
    file = tmp_path / "backup.key"
    command("backup", "key", str(file))
    encrypting = Vpsd(hypervisor="simulator", simulator_boot_seconds=0.05, backup_key_file=file)
    try:
        encrypting.start()
        server = encrypting.create("encrypted")["id"]
        encrypting.until_status(server, "active")
        made = encrypting.until_copied(encrypting.post("backups/", {"server_id": server}))
        assert made["encrypted"]
        encrypting.post(f"backups/{made['id']}/restore/")
        encrypting.until_status(server, "active")
        (found,) = encrypting.run_json("backup", "verify")
        assert found["error"] is None
        assert b"was started at" not in b"".join(
            path.read_bytes() for path in (encrypting.data / "backups").rglob("*") if path.is_file()
        )
        file.write_text("0" * 64)
        assert encrypting.run("backup", "verify").returncode == 1
    finally:
        encrypting.discard()


def test_the_target_is_shown_renamed_and_adopted_and_check_and_doctor_miss_it(tmp_path: Path, command: Command) -> None:
    folder, away = tmp_path / "store", tmp_path / "away"
    running = Vpsd(hypervisor="simulator", simulator_boot_seconds=0.05, backup_dir=folder)
    try:
        running.start()
        (unused,) = running.run_json("backup", "target")
        assert (unused["state"], unused["location"], unused["name"]) == ("unused", f"directory {folder}", None)
        server = running.create("kept")["id"]
        running.until_status(server, "active")
        running.until_copied(running.post("backups/", {"server_id": server}))
        (shown,) = running.run_json("backup", "target")
        assert (shown["name"], shown["backups"], shown["state"]) == ("store", 1, "in use")
        assert shown["mark"] in (folder / "vpsd-target.json").read_text()
        assert running.run_json("backup", "target", "rename", "offsite") == {"name": "offsite"}
        assert "offsite" in running.run("backup", "target").stdout
        assert running.run_json("backup", "list")[0]["target_name"] == "offsite"
        assert "the target offsite" in running.run_json("doctor")["backups"]
        folder.rename(away)
        folder.mkdir()
        (shown,) = running.run_json("backup", "target")
        assert (shown["state"], "is it mounted?" in shown["error"]) == ("missing", True)
        (found,) = json.loads(running.run("check", "--json").stdout)
        assert (found["kind"], found["name"]) == ("target", f"directory {folder}")
        assert any("no backups can be made" in problem for problem in running.run_json("doctor")["problems"])
        until(lambda: running.health().json()["backups"]["status"] == "missing", "/health to miss it")
        assert running.health().json()["status"] == "degraded"
        assert "--new" in running.run("backup", "target", "adopt").stderr
        assert running.run("backup", "verify").returncode == 1
        adopted = running.run_json("backup", "target", "adopt", "--new")
        assert (adopted["name"], adopted["location"]) == ("store", f"directory {folder}")
        states = {one["name"]: one["state"] for one in running.run_json("backup", "target")}
        assert states == {"offsite": "elsewhere", "store": "in use"}
        (verified,) = json.loads(running.run("backup", "verify", "--json").stdout)
        assert "it is on the target offsite" in verified["error"]
    finally:
        running.discard()
