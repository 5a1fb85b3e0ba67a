"""Password hashes: what guests' own crypt makes of the same password and salt."""

import random
import string
import subprocess

import pytest

from vpsd.core.crypt import password_hash


@pytest.mark.parametrize("length", [1, 15, 16, 20, 31, 32, 33, 63, 64, 65, 100])
def test_it_is_what_openssl_makes_of_it(length: int) -> None:
    chance = random.Random(length)
    password = "".join(chance.choice(string.ascii_letters + string.digits) for _ in range(length))
    for salt in ("saltstring", "a", "x" * 16):
        made = subprocess.run(
            ["openssl", "passwd", "-5", "-salt", f"rounds=1000${salt}", "-stdin"],
            input=f"{password}\n", capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
        assert password_hash(password, salt) == made


def test_a_salt_is_random_and_goes_in_whole() -> None:
    made = {password_hash("hello") for _ in range(20)}
    assert len(made) == 20
    for one in made:
        salt = one.split("$")[3]
        assert len(salt) == 16
        assert password_hash("hello", salt) == one
