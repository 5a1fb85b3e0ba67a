"""The seed, read back by another path than it was written by."""

import email
import io
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pycdlib
import pytest

from vpsd.errors import Unusable
from vpsd.images.seed import SEED_BYTES, seed_iso

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDummy alice: her #1 key"
HASH = "$6$salt$hash"


def read(iso_bytes: bytes) -> dict[str, str]:
    iso = pycdlib.PyCdlib()
    iso.open_fp(io.BytesIO(iso_bytes))
    assert iso.pvd.volume_identifier.decode().strip() == "cidata"
    files = {}
    for name in ("meta-data", "user-data", "network-config"):
        by_joliet, by_rock_ridge = io.BytesIO(), io.BytesIO()
        iso.get_file_from_iso_fp(by_joliet, joliet_path=f"/{name}")
        iso.get_file_from_iso_fp(by_rock_ridge, rr_path=f"/{name}")
        assert by_joliet.getvalue() == by_rock_ridge.getvalue()
        files[name] = by_joliet.getvalue().decode()
    iso.close()
    return files


def test_a_seed_with_a_key_lets_root_in_by_that_key_only() -> None:
    files = read(seed_iso(instance_id="i-1", hostname="web", ssh_keys=[KEY]))
    assert files == {
        "meta-data": 'instance-id: "i-1"\nlocal-hostname: "web"\n',
        "user-data": (
            '#cloud-config\nhostname: "web"\nfqdn: "web"\npreserve_hostname: false\nmanage_etc_hosts: true\n'
            f'disable_root: false\nssh_pwauth: false\nssh_authorized_keys:\n- "{KEY}"\nusers: []\n'
        ),
        "network-config": (
            'version: 2\nethernets:\n  eth0:\n    match:\n      name: "e*"\n    addresses:\n    - 10.0.2.15/24\n'
            "    routes:\n    - to: 0.0.0.0/0\n      via: 10.0.2.2\n    nameservers:\n      addresses: [10.0.2.3]\n"
        ),
    }


def test_a_seed_with_a_password_lets_root_in_by_password() -> None:
    text = read(seed_iso(instance_id="i-1", hostname="web", password_hash=HASH))["user-data"]
    assert "ssh_pwauth: true\n" in text
    assert f'users:\n- name: root\n  lock_passwd: false\n  hashed_passwd: "{HASH}"\n' in text
    assert "- path: /etc/ssh/sshd_config.d/10-vpsd.conf\n" in text
    assert "    PermitRootLogin yes\n    PasswordAuthentication yes\n" in text


def test_a_qualified_hostname_is_split_into_host_and_domain() -> None:
    files = read(seed_iso(instance_id="i-1", hostname="web.example.org"))
    assert 'hostname: "web"\nfqdn: "web.example.org"\n' in files["user-data"]
    assert 'local-hostname: "web.example.org"\n' in files["meta-data"]


def test_a_known_mac_names_the_interface() -> None:
    text = read(seed_iso(instance_id="i-1", hostname="web", mac="52:54:00:AB:CD:EF"))["network-config"]
    assert '    match:\n      macaddress: "52:54:00:ab:cd:ef"\n    set-name: eth0\n' in text


def test_text_in_a_key_cannot_become_configuration() -> None:
    text = read(seed_iso(instance_id="i-1", hostname="web", ssh_keys=['ssh-rsa A b"\nruncmd: [reboot]']))["user-data"]
    assert '- "ssh-rsa A b\\"\\nruncmd: [reboot]"\n' in text


def parts_of(user_data: str, **options: Any) -> list[tuple[str, str]]:
    """Type and text of every part of the seed's user-data, as a reader of MIME finds them."""
    text = read(seed_iso(instance_id="i-1", hostname="web", user_data=user_data, **options))["user-data"]
    walked = [part for part in email.message_from_string(text).walk() if not part.is_multipart()]
    return [(part.get_content_type(), bytes(part.get_payload(decode=True)).decode()) for part in walked]


MIME = (
    'Content-Type: multipart/mixed; boundary="=="\nMIME-Version: 1.0\n\n--==\nContent-Type: text/x-shellscript\n\n'
    "#!/bin/sh\n--==\nContent-Type: text/cloud-config\n\n#cloud-config\nhashed_passwd: none\n--==--\n"
)


@pytest.mark.parametrize("text", ["#!/bin/sh\necho \u00e4\n--vpsd-\n", "#cloud-config\nhostname: mine", "#!/bin/sh"])
def test_user_data_stands_before_what_vpsd_adds_and_is_not_altered(text: str) -> None:
    theirs, own, _, _ = parts_of(text, password_hash=HASH)
    assert theirs == ("text/plain", text)
    assert own[0] == "text/cloud-config"
    assert own[1].startswith('#cloud-config\nmerge_how: "list(append)+dict(no_replace,recurse_list)+str()"\nhostname:')
    assert f'hashed_passwd: "{HASH}"' in own[1]


def test_user_data_of_several_parts_keeps_them() -> None:
    first, second, own, _, _ = parts_of(MIME, ssh_keys=[KEY])
    assert (first, second[0]) == (("text/x-shellscript", "#!/bin/sh"), "text/cloud-config")
    assert f'ssh_authorized_keys:\n- "{KEY}"\n' in own[1]


@pytest.mark.parametrize("text", ["#!/bin/sh\r\necho\r\n", MIME.replace("\n", "\r\n")])
def test_line_ends_of_windows_become_those_of_every_shell(text: str) -> None:
    assert all("\r" not in content for _, content in parts_of(text, ssh_keys=[KEY]))


def test_options_that_would_shut_root_out_are_set_once_more_after_everything(tmp_path: Path) -> None:
    assert parts_of("#!/bin/sh", ssh_keys=[KEY])[2] == ("text/cloud-config", "#cloud-config\ndisable_root: false\n")
    assert parts_of("#!/bin/sh", password_hash=HASH)[2][1].endswith("ssh_pwauth: true\n")


def test_a_hook_lets_root_in_whatever_was_merged_and_once_only(tmp_path: Path) -> None:
    keys = [KEY, "ssh-rsa AAAA o'brien; $(reboot)"]
    kind, hook = parts_of("#!/bin/sh", ssh_keys=keys, password_hash=HASH)[3]
    assert kind == "text/cloud-boothook"
    assert hook.startswith("#cloud-boothook\n#!/bin/sh\n")
    for path in ("/root/", "/etc/ssh/", "/var/lib/cloud/instance/"):
        hook = hook.replace(path, f"{tmp_path}{path}")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/chpasswd").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/said; cat >> {tmp_path}/said\n')
    (tmp_path / "bin/chpasswd").chmod(0o755)
    (tmp_path / "var/lib/cloud/instance").mkdir(parents=True)
    (tmp_path / "root/.ssh").mkdir(parents=True)
    file = tmp_path / "root/.ssh/authorized_keys"
    file.write_text(f"of the image\n{KEY}")  # without an end of line
    environment = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin"}
    for _ in range(2):
        subprocess.run(["sh", "-eu", "-c", hook.partition("\n")[2]], env=environment, check=True)
        assert file.read_text().splitlines() == ["of the image", *keys]
        assert (tmp_path / "said").read_text() == f"-e\nroot:{HASH}\n"
    assert (tmp_path / "etc/ssh/sshd_config.d/50-cloud-init.conf").read_text() == "PasswordAuthentication yes\n"
    file.write_text("changed")
    subprocess.run(["sh", "-c", hook.partition("\n")[2]], env=environment, check=True)
    assert file.read_text() == "changed"


def test_the_most_user_data_fits_beside_the_longest_key() -> None:
    text = "#!/bin/sh\n".ljust(64 * 1024, "#")
    assert len(seed_iso(instance_id="i-1", hostname="w" * 253, ssh_keys=["k" * 16384], user_data=text)) == SEED_BYTES


def test_equal_input_gives_equal_bytes_at_any_time_in_any_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = set()
    for now, zone in ((1_000_000_000.0, "UTC"), (1_700_000_000.0, "Asia/Tokyo")):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        monkeypatch.setitem(os.environ, "TZ", zone)
        time.tzset()
        seeds.add(seed_iso(instance_id="i-1", hostname="web", ssh_keys=[KEY]))
    monkeypatch.undo()
    time.tzset()
    assert len(seeds) == 1


def test_every_seed_has_the_same_size() -> None:
    few = seed_iso(instance_id="i-1", hostname="w")
    many = seed_iso(instance_id="i-2", hostname="web.example.org", ssh_keys=[KEY] * 500, password_hash=HASH)
    assert len(few) == len(many) == SEED_BYTES


def test_keys_that_do_not_fit_are_refused() -> None:
    with pytest.raises(Unusable, match="too long"):
        seed_iso(instance_id="i-1", hostname="web", ssh_keys=[KEY] * 4000)
