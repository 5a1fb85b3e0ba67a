"""What is read out of a serial console, which may say anything."""

import pytest

from vpsd.hypervisor.serial_text import clean_lines, last_lines, read_signs


@pytest.mark.parametrize(
    ("raw", "lines"),
    [
        (b"one\r\ntwo\n\n\n three \n", ["one", "two", "three"]),
        (b"\x1b[2J\x1b[1;31mred\x1b[0m \x1b(B\x1b]0;a title\x07plain\x1b7", ["red plain"]),
        (b"[    ] waits\r[  OK  ] done\r\n", ["[    ] waits", "[  OK  ] done"]),
        (b"\x00\x07bell\x08 \xff \xe2\x80\xae\xc2\x9b\xe2\x80\xa8", ["bell �"]),
        (b"\x1b[2J\x1b[1;1HSeaBIOS\x1b[2;1H\x1b[0mNo bootable device.", ["SeaBIOS", "No bootable device."]),
        ("grüße".encode(), ["grüße"]),
        (b"", []),
    ],
)
def test_what_cannot_be_printed_is_left_out(raw: bytes, lines: list[str]) -> None:
    assert clean_lines(raw) == lines


def test_the_end_is_short_and_of_one_line() -> None:
    assert last_lines("\n".join(map(str, range(100))).encode()) == " | ".join(map(str, range(90, 100)))
    long = last_lines(b"a" * 5000 + b"end")
    assert (len(long), long[0], long[-3:]) == (1000, "…", "end")


@pytest.mark.parametrize(
    ("raw", "shows_login", "stuck"),
    [
        ("web login: ", True, None),
        ("web login: [   20.1] random: crng init done\n[  21.0] more", True, None),
        ("---[ end Kernel panic - not syncing: VFS: Unable to mount root fs ]---", False, "its kernel panicked"),
        ("Kernel panic - not syncing: x\nRebooting in 5 seconds..\nweb login: ", True, None),
        ("web login: \n[  99.0] Kernel panic - not syncing: x", False, "its kernel panicked"),
        ("BusyBox v1.35\n\n(initramfs) ", False, "it is in an emergency shell"),
        ("Welcome to emergency mode!\nYou are in emergency mode. After", False, "it is in an emergency shell"),
        ("SeaBIOS\nNo bootable device.", False, "it finds nothing to boot from its disk"),
        ("error: no such device.\ngrub rescue> ", False, "it finds nothing to boot from its disk"),
        ("BdsDxe: No bootable option or device was found.", False, "it finds nothing to boot from its disk"),
        ("Kernel panic - not syncing: x\n" + "booting again\n" * 60, False, None),
        ("[  OK  ] Reached target Multi-User System.", False, None),
        ("", False, None),
    ],
)
def test_what_came_last_counts(raw: str, shows_login: bool, stuck: str | None) -> None:
    assert read_signs(raw.encode()) == (shows_login, stuck)
