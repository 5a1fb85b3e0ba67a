"""Which libvirt is used, and where its disks lie."""

from pathlib import Path

import pytest

from vpsd.errors import Misconfigured
from vpsd.hypervisor.libvirt import daemon
from vpsd.hypervisor.libvirt.connect import Choice, LocalMachine, choose, choose_pool_path, is_local, remember

DATA = Path("/srv/vpsd")


class FakeMachine:
    """A machine as told."""

    def __init__(
        self, root: bool = False, system: bool = False, before: str | None = None, missing: tuple[str, ...] = ()
    ) -> None:
        self.root, self.system, self.before, self.missing = root, system, before, missing

    def is_root(self) -> bool:
        return self.root

    def system_answers(self) -> bool:
        return self.system

    def used_before(self, data: Path) -> str | None:
        return self.before

    def missing_programs(self) -> list[str]:
        return list(self.missing)


@pytest.mark.parametrize(
    ("uri", "machine", "kind", "chosen"),
    [
        ("qemu+ssh://h/system", FakeMachine(root=True, system=True, before="own"), "given", "qemu+ssh://h/system"),
        (None, FakeMachine(root=True, system=True), "system", "qemu:///system"),
        (None, FakeMachine(system=True), "system", "qemu:///system"),
        (None, FakeMachine(), "session", "qemu:///session"),
        (None, FakeMachine(root=True), "own", daemon.uri(DATA)),
        (None, FakeMachine(root=True, system=True, before="own"), "own", daemon.uri(DATA)),
        (None, FakeMachine(root=True, before="system"), "system", "qemu:///system"),
        (None, FakeMachine(system=True, before="session"), "session", "qemu:///session"),
    ],
)
def test_the_choice(uri: str | None, machine: FakeMachine, kind: str, chosen: str) -> None:
    choice = choose(uri, DATA, machine)
    assert (choice.kind, choice.uri) == (kind, chosen)


@pytest.mark.parametrize("root", [True, False])
def test_without_libvirt_it_says_what_to_install(root: bool) -> None:
    with pytest.raises(Misconfigured, match=r"missing: libvirtd, qemu-img.*apt-get install"):
        choose(None, DATA, FakeMachine(root=root, missing=("libvirtd", "qemu-img")))


def test_a_system_libvirt_needs_nothing_installed_here() -> None:
    assert choose(None, DATA, FakeMachine(system=True, missing=("libvirtd",))).kind == "system"


@pytest.mark.parametrize(("root", "before"), [(True, "session"), (False, "own")])
def test_another_users_servers_are_not_forgotten(root: bool, before: str) -> None:
    with pytest.raises(Misconfigured, match="run vpsd as that user"):
        choose(None, DATA, FakeMachine(root=root, system=True, before=before))


def test_what_was_used_is_written_down_unless_it_was_given(tmp_path: Path) -> None:
    remember(Choice("given", "test:///default", ""), tmp_path)
    assert LocalMachine().used_before(tmp_path) is None
    remember(Choice("own", "", ""), tmp_path)
    assert LocalMachine().used_before(tmp_path) == "own"


@pytest.mark.parametrize(
    ("choice", "path"),
    [
        (Choice("own", daemon.uri(DATA), ""), "/srv/vpsd/pool"),
        (Choice("session", "qemu:///session", ""), "/srv/vpsd/pool"),
        (Choice("given", "qemu:///session", ""), "/srv/vpsd/pool"),
        (Choice("given", daemon.uri(DATA), ""), "/srv/vpsd/pool"),
        (Choice("system", "qemu:///system", ""), "/var/lib/libvirt/images/vpsd-ab"),
        (Choice("given", "qemu+ssh://h/system", ""), "/var/lib/libvirt/images/vpsd-ab"),
    ],
)
def test_the_pools_place(choice: Choice, path: str) -> None:
    assert choose_pool_path(choice, "ab", DATA, None) == Path(path)


def test_the_operators_place_wins() -> None:
    assert choose_pool_path(Choice("system", "qemu:///system", ""), "ab", DATA, Path("/mnt")) == Path("/mnt")


def test_an_ordinary_users_folder_on_another_host_must_be_given() -> None:
    with pytest.raises(Misconfigured, match="VPSD_POOL_DIR"):
        choose_pool_path(Choice("given", "qemu+ssh://h/session", ""), "ab", DATA, None)


def test_a_socket_path_that_is_too_long_is_refused() -> None:
    with pytest.raises(Misconfigured, match=r"too long for libvirt's socket.*at most \d+ characters"):
        daemon.uri(Path("/srv") / ("x" * 90))


@pytest.mark.parametrize(
    ("uri", "local"),
    [("qemu:///system", True), ("qemu+unix:///system?socket=/a/b", True), ("qemu+ssh://host/system", False)],
)
def test_local_hosts(uri: str, local: bool) -> None:
    assert is_local(uri) is local
