"""A log that something in a guest writes without a pause: whatever is missing in the middle of it shows."""

from itertools import count

from tests.guests.login import Login
from tests.running import until

# Each line is one write.
_WRITER = """
cat > /root/writer <<'END'
i=0
while :; do i=$((i+1)); echo "line $i of the log, $i"; done >> /root/log
END
touch /root/log
setsid sh /root/writer < /dev/null > /dev/null 2>&1 &
"""


def start_writer(login: Login) -> None:
    """Have it written from now on, until the guest goes down."""
    login.run(_WRITER)
    until(lambda: written(login) > 100, "the writer to be busy")


def written(login: Login) -> int:
    """How many lines there are."""
    return int(login.run("wc -l < /root/log"))


def whole_lines(login: Login) -> int:
    """How many lines there are, of a log that is what was written up to some moment: none torn, none missing."""
    text = login.run("cat /root/log") + "\n"
    at, whole = 0, 0
    for number in count(1):
        line = f"line {number} of the log, {number}\n"
        if not text.startswith(line, at):
            assert at == len(text), f"after {whole} lines: {text[at : at + 100]!r}"
            return whole
        at, whole = at + len(line), number
    raise AssertionError
