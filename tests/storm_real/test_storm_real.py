"""The short form of `make storm-real`: one blow of each kind."""

import os
from pathlib import Path

import pytest

from tests.storm_real.cloud import SHORT
from tests.storm_real.storm import storm

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(os.geteuid() != 0, reason="libvirtd in network namespaces is root's"),
]


def test_whatever_is_killed_or_cut_off_every_server_is_as_its_customer_wants_it(tmp_path: Path) -> None:
    outcome = storm(tmp_path, 1, SHORT)
    assert outcome.found == []
    assert len(outcome.recoveries) == 6
    assert outcome.moves
