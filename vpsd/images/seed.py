"""The cloud-init seed of a server: a NoCloud ISO 9660 image, the same bytes for the same input."""

import base64
import hashlib
import json
import shlex
from collections.abc import Iterator, Sequence
from io import BytesIO

import pycdlib

from vpsd.errors import Unusable

SEED_BYTES = 256 * 1024
"""Size of every seed, so that one can replace another under a running guest. 64 KiB of user data fit."""

_SECTOR = 2048
_DIRECTORY_DATE = bytes([100, 1, 1, 0, 0, 0, 0])  # 2000-01-01, ISO 9660 9.1.5
_VOLUME_DATE = b"2000010100000000\0"  # the same, ISO 9660 8.4.26.1


def seed_iso(
    *,
    instance_id: str,
    hostname: str,
    ssh_keys: Sequence[str] = (),
    password_hash: str | None = None,
    mac: str | None = None,
    user_data: str | None = None,
) -> bytes:
    """Make the seed of one server: always `SEED_BYTES` long.

    `hostname` may be fully qualified. The guest applies keys, password (a crypt hash) and host keys once per
    `instance_id`, the hostname on every boot. Without `mac` the network is set on the first `e*` interface.
    `user_data` is the customer's, in a cloud-init format. Raises `Unusable` if everything does not fit.
    """
    own = _user_data(hostname, ssh_keys, password_hash)
    files = {
        "meta-data": _meta_data(instance_id, hostname),
        "user-data": own if user_data is None else _together(user_data, own, _access(ssh_keys, password_hash)),
        "network-config": _network_config(mac),
    }
    content = _undated(_iso(files))
    if len(content) > SEED_BYTES:
        raise Unusable.plain("SSH keys and user data are too long for a seed; use fewer or shorter ones.")
    return content.ljust(SEED_BYTES, b"\0")


def _meta_data(instance_id: str, hostname: str) -> str:
    return f"instance-id: {_quote(instance_id)}\nlocal-hostname: {_quote(hostname)}\n"


def _user_data(hostname: str, ssh_keys: Sequence[str], password_hash: str | None) -> str:
    """One item per line: Tiny Linux reads it with a shell."""
    lines = [
        "#cloud-config",
        f"hostname: {_quote(hostname.partition('.')[0])}",
        f"fqdn: {_quote(hostname)}",
        "preserve_hostname: false",
        "manage_etc_hosts: true",
        "disable_root: false",
        f"ssh_pwauth: {'true' if password_hash else 'false'}",
    ]
    if ssh_keys:
        lines += ["ssh_authorized_keys:", *(f"- {_quote(key.strip())}" for key in ssh_keys)]
    if not password_hash:
        return "\n".join([*lines, "users: []", ""])
    # hashed_passwd is set before sshd starts; chpasswd would run seconds later
    lines += ["users:", "- name: root", "  lock_passwd: false", f"  hashed_passwd: {_quote(password_hash)}"]
    lines += ["write_files:"]
    for path, options in _SSHD_FILES.items():
        lines += [f"- path: {path}", '  permissions: "0644"', "  content: |", *(f"    {option}" for option in options)]
    return "\n".join([*lines, ""])


_SSHD_FILES = {
    "/etc/ssh/sshd_config.d/10-vpsd.conf": ("PermitRootLogin yes", "PasswordAuthentication yes"),
    # where cloud-init writes ssh_pwauth; it restarts sshd, seconds after it came up, only when this changes
    "/etc/ssh/sshd_config.d/50-cloud-init.conf": ("PasswordAuthentication yes",),
}

# How cloud-init merges vpsd's part, which comes after the customer's: the customer's options win, and lists are
# appended to. As vendor data it would lose: a customer's `users` would replace those that make the password work.
_MERGE = 'merge_how: "list(append)+dict(no_replace,recurse_list)+str()"'


def _access(ssh_keys: Sequence[str], password_hash: str | None) -> tuple[str, str]:
    """What makes the way in hold whatever was merged: a #cloud-config of options that win, and a #cloud-boothook.

    A list cannot be appended to an empty `users:`, and an #include may say anything. The hook is no part of what is
    merged: it runs before the modules, which add to what it writes, once per instance.
    """
    wins = ["#cloud-config", "disable_root: false", *(["ssh_pwauth: true"] if password_hash else []), ""]
    done = "/var/lib/cloud/instance/vpsd-access"
    lines = ["#cloud-boothook", "#!/bin/sh", f"[ -e {done} ] && exit 0", "umask 077", "file=/root/.ssh/authorized_keys"]
    if ssh_keys:
        lines += ["mkdir -p /root/.ssh", '[ -s $file ] && [ -n "$(tail -c 1 $file)" ] && echo >> $file']
    for key in ssh_keys:
        quoted = shlex.quote(key.strip())
        lines += [f"grep -qxF {quoted} $file 2>/dev/null || printf '%s\\n' {quoted} >> $file"]
    if password_hash:
        lines += [f"printf '%s\\n' {shlex.quote(f'root:{password_hash}')} | chpasswd -e"]
        lines += ["umask 022", "mkdir -p /etc/ssh/sshd_config.d"]
        for path, options in _SSHD_FILES.items():
            lines += [f"printf '%s\\n' {' '.join(map(shlex.quote, options))} > {path}"]
    lines += ["command -v restorecon > /dev/null && restorecon -RF /root/.ssh /etc/ssh", f": > {done}", ""]
    return "\n".join(wins), "\n".join(lines)


def _together(user_data: str, own: str, access: tuple[str, str]) -> str:
    """One MIME message of the customer's user data and vpsd's, in this order.

    vpsd's parts are plain text, so that an older Tiny Linux image still finds keys and password in the first of them.
    CRLF becomes LF, as cloud-init has it for scripts: they run on every image.
    """
    user_data = user_data.replace("\r\n", "\n")
    boundary = f"vpsd-{hashlib.sha256(user_data.encode()).hexdigest()}"  # no text contains its own hash
    if user_data.lower().startswith(("mime-version:", "content-type:")):
        part = user_data  # already a MIME message with headers
    else:
        encoded = base64.encodebytes(user_data.encode()).decode()
        part = f"Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: base64\n\n{encoded}"
    own = own.replace("\n", f"\n{_MERGE}\n", 1)
    wins, hook = access
    parts = [
        part,
        *(
            f"Content-Type: text/cloud-{kind}\n\n{text}"
            for kind, text in (("config", own), ("config", wins), ("boothook", hook))
        ),
    ]
    head = f'MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary="{boundary}"\n'
    return head + "".join(f"\n--{boundary}\n{part}" for part in parts) + f"\n--{boundary}--\n"


def _network_config(mac: str | None) -> str:
    """QEMU's user-mode network; its addresses are QEMU's own defaults."""
    match = ["macaddress: " + _quote(mac.lower())] if mac else ['name: "e*"']
    # cloud-init's renderers without globs (networkd, eni) need an interface with a known name
    rename = ["    set-name: eth0"] if mac else []
    lines = ["version: 2", "ethernets:", "  eth0:", "    match:", *(f"      {line}" for line in match), *rename]
    lines += ["    addresses:", "    - 10.0.2.15/24"]
    lines += ["    routes:", "    - to: 0.0.0.0/0", "      via: 10.0.2.2"]
    lines += ["    nameservers:", "      addresses: [10.0.2.3]", ""]
    return "\n".join(lines)


def _quote(text: str) -> str:
    """A YAML scalar: JSON strings are valid YAML."""
    return json.dumps(text, ensure_ascii=False)


def _iso(files: dict[str, str]) -> bytes:
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, vol_ident="cidata", joliet=3, rock_ridge="1.09")
    for number, (name, text) in enumerate(files.items()):
        data = text.encode()
        iso.add_fp(BytesIO(data), len(data), f"/FILE{number}.;1", rr_name=name, joliet_path=f"/{name}")
    output = BytesIO()
    iso.write_fp(output)
    iso.close()
    return output.getvalue()


def _undated(iso: bytes) -> bytes:
    """Replace every date with a fixed one: pycdlib writes the current time and the local time zone."""
    content = bytearray(iso)
    for volume in _volumes(content):
        for start in range(volume + 813, volume + 813 + 4 * 17, 17):
            content[start : start + 17] = _VOLUME_DATE
        _undate_record(content, volume + 156)
        extent = int.from_bytes(content[volume + 158 : volume + 162], "little") * _SECTOR
        length = int.from_bytes(content[volume + 166 : volume + 170], "little")
        for record in _records(content, extent, length):
            _undate_record(content, record)
    return bytes(content)


def _volumes(content: bytearray) -> Iterator[int]:
    start = 16 * _SECTOR
    while content[start] != 255:  # the terminator
        yield start
        start += _SECTOR


def _records(content: bytearray, start: int, length: int) -> Iterator[int]:
    end = start + length
    while start < end and content[start]:
        yield start
        start += content[start]


def _undate_record(content: bytearray, record: int) -> None:
    content[record + 18 : record + 25] = _DIRECTORY_DATE
    name_length = content[record + 32]
    entry = record + 33 + name_length + (1 - name_length % 2)
    end = record + content[record]
    while entry + 4 < end:  # Rock Ridge: signature, length, version, data
        if content[entry : entry + 2] == b"TF":
            for start in range(entry + 5, entry + content[entry + 2], 7):
                content[start : start + 7] = _DIRECTORY_DATE
        entry += max(content[entry + 2], 1)
