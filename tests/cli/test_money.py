"""Credit and billing, by the operator's commands."""

import asyncio
import sqlite3
import time
from pathlib import Path

import pytest

from tests.api.tables import rows
from tests.cli.conftest import Command
from tests.cloud import Cloud
from tests.running import Vpsd


def test_credit_is_booked_shown_and_taken_back(command: Command) -> None:
    command.json("account", "add", "saver")
    assert (
        command("credit", "list", "saver").stdout
        == "The ledger is empty; `vpsd credit add saver AMOUNT` adds credit.\n"
    )
    booked = command.json("credit", "add", "saver", "12.5", "--note", "paid by card", "--reference", "INV-17")
    assert booked == {"account": "saver", "added": "12.50", "balance": "12.50"}
    assert command.json("credit", "add", "saver", "-2.25", "--note", "refunded") == {
        "account": "saver",
        "added": "-2.25",
        "balance": "10.25",
    }
    assert command("credit", "add", "saver", "0.000001").stdout == (
        "Booked 0.000001; the balance of saver is 10.250001.\n"
    )
    assert command.json("credit", "add", "saver", "-20")["balance"] == "-9.749999"
    listed = command.json("credit", "list", "saver")
    assert [(row["kind"], row["amount"], row["balance"], row["description"], row["reference"]) for row in listed] == [
        ("credit", "-20.00", "-9.749999", "credit", None),
        ("credit", "0.000001", "10.250001", "credit", None),
        ("credit", "-2.25", "10.25", "refunded", None),
        ("credit", "12.50", "12.50", "paid by card", "INV-17"),
    ]
    assert [row["id"] for row in listed] == sorted((row["id"] for row in listed), reverse=True)
    said = command("credit", "list", "saver").stdout
    for word in ("-9.749999", "paid by card", "INV-17", "refunded"):
        assert word in said
    assert command.json("credit", "list", "saver", "--page", "2") == []
    assert command.json("account", "show", "saver")["balance"] == "-9.749999"


def test_a_reference_is_booked_once_in_an_account(command: Command) -> None:
    for name in ("payer", "other-payer"):
        command.json("account", "add", name)
        assert command.json("credit", "add", name, "50", "--reference", "INV-1")["balance"] == "50.00"
    for amount in ("50", "-50", "7"):
        refused = command.refused("credit", "add", "payer", amount, "--reference", "INV-1")
        assert refused == "vpsd: reference: INV-1 has already been booked for 'payer'; nothing was added."
    assert command.json("credit", "add", "payer", "1", "--reference", "INV-2")["balance"] == "51.00"
    assert len(command.json("credit", "list", "payer")) == 2


def test_what_is_no_amount_is_refused_in_a_line_that_names_it(command: Command) -> None:
    command.json("account", "add", "joker")
    for amount in ("0", "0.0", "-0", "", "much", "1,50", "5 EUR", "0x10", "1.2.3", "NaN", "-sNaN", "Infinity", "٣"):
        assert command.refused("credit", "add", "joker", amount).startswith("vpsd: amount: ")
    for amount in ("0.0000001", "1.0000005", "1000000000.000001", "-1e10", "1e30", "9" * 400):
        assert command.refused("credit", "add", "joker", amount).startswith("vpsd: amount: ")
    assert "There is no account 'nobody'" in command.refused("credit", "add", "nobody", "5")
    assert "There is no account 'nobody'" in command.refused("credit", "list", "nobody")
    assert command("credit", "add", "joker", "5", "--refrence", "INV-1").returncode == 2  # a misspelt option
    assert command.json("credit", "list", "joker") == []


@pytest.mark.parametrize("amount", ["1e999999", "-1e999999"])
def test_an_amount_beyond_all_numbers_is_refused_like_any_other(command: Command, amount: str) -> None:
    assert command.refused("credit", "add", "default", amount).startswith("vpsd: amount: ")


async def test_a_reference_that_is_too_long_is_refused_by_name(
    cloud: Cloud, database_url: str, command: Command, tmp_path: Path
) -> None:
    settings = {"data_dir": tmp_path, "database_url": database_url}
    arguments = ("credit", "add", "alice", "5", "--reference", "r" * 256)
    assert "reference" in await asyncio.to_thread(command.refused, *arguments, **settings)
    assert await cloud.balance() == 1000_000_000


def test_credit_is_what_a_create_needs(vpsd: Vpsd, command: Command) -> None:
    command.json("account", "add", "newcomer")
    token = command.json("token", "add", "newcomer")["token"]
    order = {"name": "web", "plan_id": 4, "os_id": 1, "location": "us-west"}
    refused = vpsd.ask("POST", "servers/?dry_run=1", order, token=token)
    assert (refused.status_code, refused.json()["code"]) == (402, "payment_required")
    assert "0.071429 USD are missing" in refused.json()["detail"]  # 24 / 672 * 2.00
    command.json("credit", "add", "newcomer", "0.071428")
    assert vpsd.ask("POST", "servers/?dry_run=1", order, token=token).status_code == 402
    command.json("credit", "add", "newcomer", "0.000001")
    assert vpsd.ask("POST", "servers/?dry_run=1", order, token=token).status_code == 200
    balance = vpsd.ask("GET", "account/balance/", token=token)
    assert '"balance":0.071429,' in balance.text


def test_the_books_of_a_running_vpsd_agree(vpsd: Vpsd, command: Command) -> None:
    vpsd.until_status(vpsd.create("booked")["id"], "active")
    found = command.json("billing", "verify")
    assert found
    assert {(verdict["difference"], tuple(verdict["problems"])) for verdict in found} == {("0.00", ())}
    assert all(verdict["balance"] == verdict["recomputed"] for verdict in found)
    said = command("billing", "verify")
    assert said.returncode == 0
    assert said.stdout.endswith("Every balance is correct.\n")
    assert set(command.json("billing", "charge")) == {"accounts_charged"}
    assert command("billing", "charge").stdout.startswith("Accounts charged: ")
    assert command("billing", "verify").returncode == 0


def test_a_row_that_nothing_explains_is_found(command: Command, tmp_path: Path) -> None:
    assert command.json("account", "add", "robbed", data_dir=tmp_path)["balance"] == "0.00"
    assert command("billing", "verify", data_dir=tmp_path).returncode == 0
    with sqlite3.connect(tmp_path / "vpsd.sqlite") as database:
        database.execute(
            "INSERT INTO ledger (uuid, account_id, kind, amount_micros, description, created_at_ms) "
            "VALUES ('x', 1, 'usage', -2500000, 'nothing', 1)"
        )
    done = command("billing", "verify", data_dir=tmp_path)
    assert done.returncode == 1
    assert "-2.50" in done.stdout
    assert "its charges come to 0" in done.stdout
    assert "Every balance" not in done.stdout
    assert command("billing", "verify", "--json", data_dir=tmp_path).returncode == 1


async def test_what_is_due_is_charged_once_however_often_it_is_said(
    cloud: Cloud, database_url: str, command: Command, tmp_path: Path
) -> None:
    cloud.clock.advance(time.time() - 5 * 3600 - cloud.clock.now_ms() / 1000)  # commands go by the machine's time
    await cloud.have_server()
    settings = {"data_dir": tmp_path, "database_url": database_url}
    first = await asyncio.to_thread(command.json, "billing", "charge", **settings)
    assert first == {"accounts_charged": 1}
    for _ in range(2):
        await asyncio.to_thread(command.json, "billing", "charge", **settings)
    made = await rows(cloud.database, "charges")
    assert len({charge["from_ms"] for charge in made}) == len(made) >= 5
    found = await asyncio.to_thread(command.json, "billing", "verify", **settings)
    assert [(verdict["account"], verdict["difference"], verdict["problems"]) for verdict in found] == [
        ("alice", "0.00", []),
        ("charlie", "0.00", []),
    ]
    assert await cloud.balance() == 1000_000_000 - sum(charge["amount_micros"] for charge in made)
