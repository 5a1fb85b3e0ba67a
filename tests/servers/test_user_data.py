"""What user data may be: what it begins with, and the YAML of a cloud-config."""

import pytest

from vpsd.servers.user_data import LARGEST_BYTES, refusal

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


@pytest.mark.parametrize(
    "text",
    ["", " ", "\n#!/bin/sh\n", " #!/bin/sh", "\ufeff#!/bin/sh", "#!", "#! ", "echo hello", "packages: [htop]", "{}"]
    + ["#Cloud-config\n{}", "#cloud-configuration\n{}", "#upstart-job\n", "## template: jinja\n", "## template: jinja"]
    + ["## template: jinja\necho", "Content-Type: text/x-shellscript\n\n#!/bin/sh"],
)
def test_what_begins_with_nothing_known_is_refused_with_what_may_be(text: str) -> None:
    said = refusal(text)
    assert said is not None
    assert said.startswith("User data begins, in its first column, with one of #! and a program, #cloud-config, ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("#cloud-config\na: [1\n", "Line 3, column 1: did not find expected ',' or ']'."),
        ("#cloud-config\na: b\n  c: d\n", "Line 3, column 4: mapping values are not allowed in this context."),
        ("#cloud-config\na:\n\t- b\n", "Line 3, column 1: found character that cannot start any token."),
        ("#cloud-config\n- a\n", "Line 2, column 1: below #cloud-config there have to be options, like packages:"),
        ("#cloud-config\n", "Line 2, column 1: below #cloud-config there have to be options"),
        ("#cloud-config # as you like it\n[]", "Line 2, column 1: below #cloud-config there have to be options"),
        ("#cloud-config\njust words\n", "Line 2, column 1: below #cloud-config there have to be options"),
        ("#cloud-config-archive\na: b\n", "Line 2, column 1: below #cloud-config-archive there have to be parts"),
        ("#cloud-config\na: b\n---\nc: d\n", "Line 3, column 1: but found another document."),
        ("#cloud-config\na: *b\n", "Line 2, column 4: found undefined alias."),
        ("#cloud-config\na: !!python/object:os.system x\n", "Line 2, column 4: could not determine a constructor"),
        ("#cloud-config\n? [a]\n: b\n", "Line 2, column 3: found unhashable key."),
        ("#cloud-config\na: 2001-99-99\n", "This is not valid YAML: "),
        ("#cloud-config\na: \x07\n", "This is not valid YAML: "),
        ("#cloud-config\na: &a [*a]\n", "Line 2, column 8: *a is inside of what it stands for."),
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
    assert "Here it becomes too much; the limits are 10000 values" in (refusal(text) or "")


def test_what_aliases_repeat_within_the_limits_is_taken() -> None:
    assert refusal(_bomb(4, 10)) is None
