"""What is in the data folder is its owner's alone."""

import asyncio
import os
import stat
from pathlib import Path

from vpsd import main
from vpsd.core import folder
from vpsd.settings import Settings

FOLDERS = {  # the modes that they have, and that they get
    ".": (0o775, 0o711),
    "backups": (0o750, 0o700),
    "images": (0o755, 0o755),
    "libvirt": (0o755, 0o711),
    "libvirt/etc": (0o755, 0o700),
    "pool": (0o755, 0o711),
    "pool/serial": (0o711, 0o711),
}
FILES = {
    **dict.fromkeys(("vpsd.sqlite", "vpsd.sqlite-wal", "vpsd.sqlite.lock", "token", "token.1"), (0o644, 0o600)),
    "simulator.journal": (0o640, 0o600),
    "vpsd.lock": (0o666, 0o600),
    "catalog.toml": (0o644, 0o644),
    **dict.fromkeys(("backups/x", "libvirt/etc/x", "images/x"), (0o644, 0o644)),  # nobody gets as far, or may
}


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_made_is_its_owners_alone_whatever_the_umask(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "new", hypervisor="simulator")

    async def begin() -> None:
        async with main.open_runtime(settings) as runtime:
            await main.first_token(runtime)
            await main.ensure_local_host(runtime)

    before = os.umask(0)
    try:
        with main.sole_user(settings):
            asyncio.run(begin())
    finally:
        os.umask(before)
    assert _mode(settings.data_dir) == 0o711
    modes = {path.name: _mode(path) for path in settings.data_dir.iterdir()}
    modes.pop("catalog.toml")  # is the price list, and the operator's to edit
    assert set(modes) >= {"vpsd.sqlite", "vpsd.sqlite.lock", "vpsd.lock", "token", "simulator.journal"}
    assert set(modes.values()) == {0o600}


def test_what_others_could_read_is_hidden_and_what_they_have_to_pass_stays_passable(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    for name in FOLDERS:
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (tmp_path / name).touch()
    (tmp_path / "token.gone").symlink_to(tmp_path / "nowhere")  # as what another process takes away meanwhile
    modes = FOLDERS | FILES
    for name, (mode, _) in modes.items():
        (tmp_path / name).chmod(mode)
    wanted = {tmp_path / name for name, (before, after) in modes.items() if before != after}
    assert set(folder.exposed(settings)) == wanted
    assert set(folder.hide(settings)) == wanted
    assert {name: _mode(tmp_path / name) for name in modes} == {name: after for name, (_, after) in modes.items()}
    assert folder.exposed(settings) == []
