"""The hosts that the contract is tested on."""

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.hypervisor.rigs import NAME, RealRig, Rig, SimulatedRig, silent
from tests.hypervisor.two_hosts import Lab
from vpsd.hypervisor.libvirt import daemon
from vpsd.hypervisor.protocol import Image
from vpsd.images.recipes import Recipe
from vpsd.images.seed import seed_iso
from vpsd.images.store import ImageStore


@pytest.fixture(scope="session")
def own_data() -> Iterator[Path]:
    """A data folder whose daemon ends with the tests; short, for the socket's path."""
    folder = Path(tempfile.mkdtemp(prefix="vpsd-t-", dir="/tmp"))
    yield folder
    daemon.stop_own_daemon(folder)
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def tiny(own_data: Path) -> Image:
    """The tiny image, built once."""
    store = ImageStore(Path(os.environ.get("TEST_IMAGES_DIR", own_data / "images")))
    return asyncio.run(store.ensure(Recipe(slug="tiny", kind="tiny"), silent))


@pytest.fixture(scope="session")
def key(own_data: Path) -> Path:
    """An SSH key."""
    path = own_data / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Two real hosts."""
    made = Lab()
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture
async def real(own_data: Path, tiny: Image, key: Path) -> AsyncIterator[RealRig]:
    """Real guests."""
    seed = seed_iso(instance_id="i-1", hostname="web", ssh_keys=[key.with_suffix(".pub").read_text()])
    rig = RealRig(own_data, tiny, seed, key)
    yield rig
    await rig.hypervisor.remove(NAME)
    await rig.hypervisor.close()


@pytest.fixture
async def simulated(tmp_path: Path) -> AsyncIterator[SimulatedRig]:
    """Simulated guests."""
    file = tmp_path / "file"
    file.write_bytes(b"")
    rig = SimulatedRig(Image("tiny-1", file, 1 << 20, file, file), b"seed")
    yield rig
    await rig.hypervisor.close()


@pytest.fixture(params=["simulated", pytest.param("real", marks=pytest.mark.guest)])
def rig(request: pytest.FixtureRequest) -> Rig:
    """One after the other: what is tested on it holds for every driver."""
    rig: Rig = request.getfixturevalue(request.param)
    return rig
