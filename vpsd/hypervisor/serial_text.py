"""What a guest's serial console tells about its boot. The guest controls the text: it may say anything."""

import re

_LAST_LINES = 10
_LAST_CHARACTERS = 1000
_SIGN_LINES = 60  # a panic's call trace is about that long

_JUMP = re.compile(r"\x1b\[[0-9;]*[Hf]")  # firmware and boot loaders place the cursor where others begin a line
# ECMA-48: control sequences, strings that end with BEL or ST, other escapes.
_ESCAPE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[ -/]*[0-~]")

_LOGIN = re.compile(r"\S login:(?: |$)")
_STUCK = (
    (re.compile(r"Kernel panic - not syncing"), "its kernel panicked"),
    (
        re.compile(
            r"^You are in (?:emergency|rescue) mode|[Ee]ntering emergency mode|^\(initramfs\)(?: |$)"
            r"|emergency recovery shell launched|^Give root password for maintenance"
        ),
        "it is in an emergency shell",
    ),
    (
        re.compile(
            r"^No bootable device|^Boot failed: not a bootable disk|^BdsDxe: No bootable option|^UEFI Interactive Shell"
            r"|^grub(?: rescue)?>|^error: no such partition|^Operating [Ss]ystem not found|^Missing operating system"
        ),
        "it finds nothing to boot from its disk",
    ),
)


def clean_lines(raw: bytes) -> list[str]:
    """The lines that are not empty, without escape sequences and characters that cannot be printed."""
    text = _ESCAPE.sub("", _JUMP.sub("\n", raw.decode(errors="replace")))
    lines = ("".join(c for c in line if c.isprintable() or c == "\t").strip() for line in re.split(r"[\r\n]+", text))
    return [line for line in lines if line]


def last_lines(raw: bytes) -> str:
    """The end of the text as one line, for messages: ten lines and 1,000 characters at most."""
    joined = " | ".join(clean_lines(raw)[-_LAST_LINES:]).replace("\t", " ")
    return joined if len(joined) <= _LAST_CHARACTERS else f"…{joined[1 - _LAST_CHARACTERS :]}"


def read_signs(raw: bytes) -> tuple[bool, str | None]:
    """Whether the guest shows a login prompt, and otherwise why it gets nowhere, if it says so.

    What came last counts: a guest that panics and then reboots may be well.
    """
    for line in reversed(clean_lines(raw)[-_SIGN_LINES:]):
        for sign, reason in _STUCK:
            if sign.search(line):
                return False, reason
        if _LOGIN.search(line):
            return True, None
    return False, None
