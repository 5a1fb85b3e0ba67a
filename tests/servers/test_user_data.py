"""What user data may be: what it begins with, and the YAML of a cloud-config."""

import asyncio
import base64
import gzip
import json
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from vpsd.servers import cloud_config, user_data
from vpsd.servers.cloud_config import Task, judge
from vpsd.servers.user_data import LARGEST_BYTES, check, installed_schema, refusal


def judged(text: str, schema: dict[str, Any] | None = None, *, has_password: bool = True) -> str:
    return judge(Task(text, None if schema is None else json.dumps(schema), has_password)) or ""


MIME = (
    'Content-Type: multipart/mixed; boundary="=="\nMIME-Version: 1.0\n\n--==\nContent-Type: text/x-shellscript\n\n'
    "#!/bin/sh\ntrue\n--==--\n"
)


@pytest.mark.parametrize(
    "text",
    [
        "#cloud-config\npackages: [htop]\n",
        "#cloud-config\r\npackages: [htop]\r\n",
        "#cloud-config\n{}",
        "#cloud-config # as you like it\n{}",
        "#cloud-config # of \U0001f469\u200d\U0001f469\n{}",
        "#!/bin/sh\necho \u200b\n",
        "#cloud-config\nbase: &b {a: 1}\nmore: {<<: *b, c: [*b, *b]}\n",
        "#cloud-config-archive\n- type: text/x-shellscript\n  content: |\n    #!/bin/sh\n",
        "#cloud-config-jsonp\n[]",
        "#!/bin/sh\necho \u00e4\n",
        "#! /usr/bin/env python3\n",
        "#include\nhttps://example.com/script\n",
        "#include https://example.com/script\n",
        "#include-once\nhttps://example.com/script\n",
        "#cloud-boothook\n#!/bin/sh\n",
        "#part-handler\n",
        "## template: jinja\n#cloud-config\nruncmd: [echo {{ v1.instance_id }}]\n",
        "## template: jinja\n#!/bin/sh\necho {{ v1.region }}\n",
        MIME,
        MIME.replace("\n", "\r\n"),
        "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=xx\n\n--xx\n\n#!/bin/sh\n--xx--\n",
        "#!/bin/sh\n".ljust(LARGEST_BYTES, "#"),
    ],
)
def test_what_cloud_init_understands_is_taken(text: str) -> None:
    assert refusal(text) is None
    assert judged(text.replace("\r\n", "\n")) == ""


@pytest.mark.parametrize(
    "text",
    ["echo hello", "packages", "#cloudy", "#upstart-job\n"] + ["Content-Type: text/x-shellscript\n\n#!/bin/sh"],
)
def test_what_begins_with_nothing_known_is_refused_with_what_may_be(text: str) -> None:
    said = refusal(text)
    assert said is not None
    assert said.startswith("User data begins, in its first column, with one of #! and a program, #cloud-config, ")


CONFIG_LINE = "The first line of a cloud-config is exactly #cloud-config"
SCRIPT_LINE = "The first line of a script is #! and the absolute path of a program"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "It is empty."),
        (" \r\n", "It is empty."),
        ("## template: jinja\necho", "Below ## template: jinja: User data begins"),
        ("## template: jinja\n", "Below ## template: jinja: It is empty."),
        ("\n#!/bin/sh\n", "It begins with a blank line. Begin with #!/bin/sh."),
        ("\r\n#cloud-config\n{}", "It begins with a blank line. Begin with #cloud-config."),
        ("  #!/bin/sh", "It begins with white space. Begin with #!/bin/sh."),
        ("\ufeff#!/bin/sh", "It begins with a byte order mark (U+FEFF)."),
        ("\u200b#!/bin/sh", "Character 1 is U+200B (ZERO WIDTH SPACE), which one does not see"),
        ("\u00a0#cloud-config\n{}", "Character 1 is U+00A0 (NO-BREAK SPACE), which one does not see"),
        ("#!/bin/sh\u200b\necho", "Character 10 is U+200B (ZERO WIDTH SPACE), which one does not see"),
        ("#cloud-config\u200e\n{}", "Character 14 is U+200E (LEFT-TO-RIGHT MARK), which one does not see"),
        ("#include https://example.com/\u2060", "Character 30 is U+2060 (WORD JOINER), which one does not see"),
        ("## template: jinja\n\u200b#!/bin/sh", "Below ## template: jinja: Character 1 is U+200B"),
        ("#!/bin/\x1bsh", "Character 8 is U+001B (it has no name), which one does not see"),
        (base64.b64encode(b"#!/bin/sh\necho").decode(), "This is base64 of a text that begins with #!/bin/sh."),
        (base64.encodebytes(b"#cloud-config\n" * 9).decode(), "This is base64 of a text that begins with #cloud-conf"),
        (base64.b64encode(gzip.compress(b"#!/bin/sh", mtime=0)).decode(), "This is base64 of gzip."),
        ("\x1f\ufffd\x08", "This is gzip."),
        ("# cloud-config\n{}", CONFIG_LINE),
        ("#Cloud-Config\n{}", CONFIG_LINE),
        ("#cloud_config\n{}", CONFIG_LINE),
        ("#cloud-configuration\n{}", CONFIG_LINE),
        ("cloud-config:\n", CONFIG_LINE),
        ("packages: [htop]", "A cloud-config begins with a line of its own, #cloud-config."),
        ("---\npackages: [htop]", "A cloud-config begins with a line of its own, #cloud-config."),
        ("{}", "This is JSON."),
        ('"#!/bin/sh\\n"', "It is quoted once too often."),
        ("#!", SCRIPT_LINE),
        ("#! ", SCRIPT_LINE),
        ("#!bin/sh", SCRIPT_LINE),
        ("# !/bin/sh", SCRIPT_LINE),
        ("!#/bin/sh", SCRIPT_LINE),
        ("#!/bin/sh\recho", "Its lines end with CR alone"),
    ],
)
def test_a_wrong_envelope_is_called_what_it_is(text: str, said: str) -> None:
    assert (refusal(text) or "").startswith(said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("#!/bin/sh \ud800", "Character 11 is half of a surrogate pair."),
        ("#!/bin/sh\n".ljust(LARGEST_BYTES + 1, "#"), "65537 bytes of UTF-8 are too many; 65536 are the limit."),
        ("#!/bin/sh\n" + "\u00e4" * (LARGEST_BYTES // 2), "65546 bytes of UTF-8 are too many"),
        ("MIME-Version: 1.0\n\n#!/bin/sh\n", "A MIME message needs a head with Content-Type: multipart/"),
        (MIME.replace('"=="', '"=!"'), "A MIME message needs a head with Content-Type: multipart/"),
        ("Content-Type: multipart/mixed\n\n--x\n", "A MIME message needs a head"),
    ],
)
def test_what_cannot_be_is_refused_by_its_place(text: str, said: str) -> None:
    assert (refusal(text) or "").startswith(said)


def _bomb(levels: int, times: int, merged: bool = False) -> str:
    lines = ["#cloud-config", "a0: &a0 {k: v}"]
    for level in range(1, levels):
        inner = ", ".join([f"*a{level - 1}"] * times)
        lines.append(f"a{level}: &a{level} " + (f"{{<<: [{inner}]}}" if merged else f"[{inner}]"))
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        _bomb(10, 10),
        _bomb(500, 2),
        _bomb(12, 9, merged=True),
        "#cloud-config\na: " + "[" * 30_000,
        "#cloud-config\na: " + "[" * 1000 + "]" * 1000,
        "#cloud-config\na: " + "{b: " * 10_000,
        "#cloud-config\n" + "\n".join(" " * depth + "a:" for depth in range(300)),
        "#cloud-config\na: [" + "1," * 20_000 + "]",
    ],
    ids=range(8),
)
def test_a_small_text_that_would_become_a_large_thing_is_refused(text: str) -> None:
    assert len(text) <= LARGEST_BYTES
    assert "Here it becomes too much; the limits are 10000 values" in judged(text)
    assert refusal(text) is None  # nothing of YAML is looked at in the process that answers


def test_what_aliases_repeat_within_the_limits_is_taken() -> None:
    assert judged(_bomb(4, 10)) == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("#cloud-config\na: [1\n", "Line 3, column 1: did not find expected ',' or ']'."),
        ("#cloud-config\na: b\n  c: d\n", "Line 3, column 4: mapping values are not allowed in this context."),
        ("#cloud-config\na:\n\t- b\n", "Line 3, column 1: found character that cannot start any token."),
        ("#cloud-config\na: \x07\n", "This is not valid YAML: "),
        ("#cloud-config\na: &a [*a]\n", "Line 2, column 8: *a is inside of what it stands for."),
        ("#cloud-config\n- a\n", "Line 2, column 1: below #cloud-config there have to be options, like packages:"),
        ("#cloud-config\n", "Line 2, column 1: below #cloud-config there have to be options"),
        ("#cloud-config # as you like it\n[]", "Line 2, column 1: below #cloud-config there have to be options"),
        ("#cloud-config\njust words\n", "Line 2, column 1: below #cloud-config there have to be options"),
        ("#cloud-config-archive\na: b\n", "Line 2, column 1: below #cloud-config-archive there have to be parts"),
        ("#cloud-config\na: b\n---\nc: d\n", "Line 3, column 1: but found another document."),
        ("#cloud-config\na: *b\n", "Line 2, column 4: found undefined alias."),
        ("#cloud-config\na: !!python/object:os.system x\n", "Line 2, column 4: could not determine a constructor"),
        ("#cloud-config\n? [a]\n: b\n", "Line 2, column 3: found unhashable key."),
        ("#cloud-config\na: 2001-99-99\n", "Line 2, column 4: this is no timestamp; put it in quotes if it is text."),
        ("#cloud-config\na: 1" + ":59" * 20_000, "Line 2, column 4: this number is too long."),
        ("#cloud-config\na: " + "1" * 5_000, "Line 2, column 4: this number is too long."),
        ("#cloud-config\na: 1" + ":59" * 20_000 + ".5", "Line 2, column 4: this number is too long."),
    ],
    ids=str,
)
def test_what_does_not_load_is_refused_by_its_place(text: str, said: str) -> None:
    assert judged(text).startswith(said)


@pytest.mark.parametrize(
    "value",
    ["!!int x", "!!int ''", "!!float x", "!!float ''", "!!bool x", "!!timestamp x", "!!int 0x", "0x_"]
    + [
        "!!binary '\u00e4'",
        "!!omap x",
        "!!pairs [1]",
        "!!merge x",
        "!!str [1]",
        "!!float {=: x}",
        "!!python/name:os x",
    ],
)
def test_a_value_that_its_tag_cannot_take_is_refused_by_its_place(value: str) -> None:
    assert judged(f"#cloud-config\na: {value}\n").startswith("Line 2, column ")


def test_what_is_quoted_back_is_cut_off() -> None:
    for text in ("a: !<" + "x" * 60_000 + "> b", "a: &" + "x" * 60_000 + " [*" + "x" * 60_000 + "]"):
        assert 0 < len(judged(f"#cloud-config\n{text}\n")) < 1000


def test_an_archive_of_very_many_parts_is_refused_and_so_is_what_is_nested_without_end() -> None:
    assert judged("#cloud-config-archive\n" + "- a\n" * 100) == ""
    assert judged("#cloud-config-archive\n" + "- a\n" * 101) == "It has more than 100 parts. Put some of them together."
    nested = "".join(f'Content-Type: multipart/mixed; boundary="a{i}"\n\n--a{i}\n' for i in range(1000))
    assert judged(nested) == "Its parts are too deep inside of each other. Make it flatter."


SCHEMA = {
    "$schema": "http://json-schema.org/draft-04/schema#",
    "properties": {
        "users": {"type": ["array", "string"], "items": {"properties": {"sudo": {"type": "string"}}}, "minItems": 1},
        "packages": {"type": "array", "items": {"type": "string"}},
        "1": {"type": "string"},
    },
}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nusers:\n", "Line 3, column 1: users is empty. Give it a value, or leave it out."),
        ("users: []\n", "Line 2, column 1: users: [] "),
        ("packages: htop\nusers: 3", "Line 2, column 1: packages: 'htop' is not of type 'array'."),
        ("packages:\n- htop\n- 1.0\n", "Line 4, column 3: packages[1]: 1.0 is not of type 'string'. Put it in quotes."),
        ("base: &b\n  users:\n<<: *b\n", "Line 3, column 3: users is empty."),
        ("1: 2\n", "Line 2, column 1: 1: 2 is not of type 'string'."),
    ],
)
def test_what_cloud_inits_schema_does_not_take_is_refused_by_its_place(text: str, said: str) -> None:
    assert judged(f"#cloud-config\n{text}", SCHEMA).startswith(said)
    assert judged(f"#cloud-config\n{text}") == ""


def test_of_very_many_errors_only_the_first_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    said = []
    in_words = cloud_config._in_words

    def counted(path: Any, error: Any) -> str:
        said.append(path)
        return in_words(path, error)

    monkeypatch.setattr(cloud_config, "_in_words", counted)
    text = "#cloud-config\npackages: [" + "1," * 5000 + "]\n"
    assert judged(text, SCHEMA).startswith("Line 2, column 12: packages[0]: 1 is not of type 'string'.")
    assert len(said) == 20


def test_a_list_of_sudo_rules_is_taken_although_the_schema_forgot_it() -> None:
    assert judged("#cloud-config\nusers: [{name: ann, sudo: ['ALL=(ALL) ALL']}]\n", SCHEMA) == ""
    assert judged("#cloud-config\nusers: [{name: ann, sudo: 5}]\n", SCHEMA) != ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("#cloud-config-archive\n- a\n- |\n  #cloud-config\n  users:\n", "Part 2: Line 2, column 1: users is empty."),
        ("#cloud-config-archive\n- {type: text/cloud-config, content: 'users:'}", "Part 1: Line 1, column 1: users"),
        (MIME.replace("x-shellscript\n\n#!/bin/sh\ntrue", "cloud-config\n\nusers:"), "Part 1: Line 1, column 1: users"),
        (MIME.replace("x-shellscript\n\n#!/bin/sh\ntrue", "plain\n\n#cloud-config\nusers:"), "Part 1: Line 2"),
        ("## template: jinja\n#cloud-config\nusers:\n", "Line 3, column 1: users is empty."),
        (
            "#cloud-config-archive\n- " + json.dumps("#cloud-config\na: " + "[" * 60 + "]" * 60),
            "Part 1: Line 2, column 53",
        ),
    ],
)
def test_every_part_is_looked_at(text: str, said: str) -> None:
    assert judged(text, SCHEMA).startswith(said)


def test_a_template_is_left_to_the_guest() -> None:
    assert judged("## template: jinja\n#cloud-config\nusers: {{ v1.region }}\n", SCHEMA) == ""


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("disable_root: true", "Line 2, column 1: disable_root "),
        ("disable_root: 'yes'", "Line 2, column 1: disable_root "),
        ("cloud_init_modules: [users-groups]", "Line 2, column 1: Without the module ssh "),
        ("write_files:\n- {path: /root/.ssh/authorized_keys, defer: true}", "Line 3, column 4: /root/.ssh"),
    ],
)
@pytest.mark.parametrize("has_password", [True, False])
def test_what_openly_shuts_root_out_is_refused(text: str, place: str, has_password: bool) -> None:
    assert judged(f"#cloud-config\n{text}\n", has_password=has_password).startswith(place)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("ssh_pwauth: no", "Line 2, column 1: "),
        ("users:\n- name: root\n  lock_passwd: true", "Line 4, column 3: "),
        ("users:\n- name: root\n  hashed_passwd: x", "Line 4, column 3: "),
        ("users: {root: {uid: 0}}", "Line 2, column 9: "),
        ("users: ann, root", "Line 2, column 1: "),
        ("user: root\npassword: x", "Line 2, column 1: "),
        ("user: {name: root}", "Line 2, column 1: "),
        ("chpasswd:\n  list: |\n    ann:x\n    root:x\n", "Line 3, column 3: "),
        ("chpasswd: {list: ['root:x']}", "Line 2, column 12: "),
        ("chpasswd: {users: [{name: root, type: RANDOM}]}", "Line 2, column 20: "),
    ],
)
def test_what_takes_away_the_promised_password_is_refused_and_is_free_to_who_has_a_key(text: str, place: str) -> None:
    assert judged(f"#cloud-config\n{text}\n", has_password=True).startswith(place)
    assert judged(f"#cloud-config\n{text}\n", has_password=False) == ""


@pytest.mark.parametrize(
    "text",
    ["users: [default, {name: root}, {name: ann, lock_passwd: true}]", "users: {ann: {}}", "disable_root: false"]
    + ["cloud_init_modules: [[ssh, always]]", "ssh_pwauth: true", "chpasswd: {list: 'ann:x'}", "users: ann"]
    + ["write_files: [{path: /root/.ssh/authorized_keys, append: true, defer: true, content: x}]"],
)
def test_what_leaves_root_alone_is_taken(text: str) -> None:
    assert judged(f"#cloud-config\n{text}\n") == ""


async def test_it_is_judged_in_another_process_with_limits_of_time_and_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert await check("#cloud-config\nusers:\n", json.dumps(SCHEMA), has_password=True, account_id=1) == (
        "Line 2, column 1: users is empty. Give it a value, or leave it out."
    )
    assert (
        await check("#cloud-config\r\npackages: [a]\r\n", json.dumps(SCHEMA), has_password=True, account_id=1) is None
    )
    hungry = {"properties": {"a": {"pattern": "^(x+x+)+y$"}}}
    text = "#cloud-config\na: " + "x" * 60
    monkeypatch.setattr(user_data, "_CHECK_SECONDS", 1)
    assert "too long to check" in (await check(text, json.dumps(hungry), has_password=True, account_id=1) or "")
    program = tmp_path / "python"
    program.write_text(
        f"#!/bin/sh\nexec {sys.executable} -c 'import vpsd.servers.cloud_config as c;"
        'c.judge = lambda task: "x" * 10**9; c.main()\'\n'
    )
    program.chmod(0o755)
    monkeypatch.setattr(user_data, "_CHECK_SECONDS", 30)
    monkeypatch.setattr(sys, "executable", str(program))
    assert "too much time or memory" in (await check("#cloud-config\n{}", None, has_password=True, account_id=1) or "")
    assert cloud_config._MEMORY_BYTES < 10**9


async def test_one_accounts_checks_wait_for_each_other_and_keep_nobody_else_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    let_go = threading.Event()

    def judge_apart(task: bytes) -> str | None:
        return str(let_go.wait(10)) if b"slow" in task else None

    monkeypatch.setattr(user_data, "_judge_apart", judge_apart)
    alices = [
        asyncio.create_task(check("#cloud-config\nslow: 1", None, has_password=True, account_id=1)) for _ in range(3)
    ]
    await asyncio.sleep(0)
    charlies = check("#cloud-config\nquick: 1", None, has_password=True, account_id=2)
    try:
        assert await asyncio.wait_for(charlies, 5) is None
    finally:
        let_go.set()
    assert await asyncio.gather(*alices) == ["True"] * 3


async def test_debians_own_schema_takes_what_people_write_and_refuses_what_would_be_skipped() -> None:
    schema = installed_schema()
    if schema is None:
        pytest.skip("scripts/install could not fetch it")
    common = """#cloud-config
users:
- default
- {name: ann, groups: [sudo], shell: /bin/bash, sudo: ['ALL=(ALL) NOPASSWD:ALL'], ssh_authorized_keys: [ssh-rsa AAAA]}
package_update: true
packages: [htop, [nginx, 1.22]]
apt: {sources: {x: {source: 'deb http://x y main'}}}
chpasswd: {expire: false, list: 'ann:x'}
swap: {filename: /swap, size: 64M}
mounts: [[/dev/vdc, /mnt, auto]]
ntp: {servers: [ntp.example.com]}
locale: en_GB.UTF-8
ca_certs: {trusted: [x]}
write_files: [{path: /a, content: b, permissions: '0644', defer: true}]
runcmd: [[ls, -l], echo]
power_state: {mode: poweroff, delay: now}
"""
    assert judged(common.replace("1.22", "'1.22'"), json.loads(schema)) == ""
    for wrong in ("runcmd: {a: b}", "packages: htop", "write_files: [{path: /a, contents: b}]", "users:", "users: []"):
        assert judged(f"#cloud-config\n{wrong}\n", json.loads(schema)).startswith("Line 2, column ")
