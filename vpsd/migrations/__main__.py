"""`make migrations`: writes down what each migration makes, and the hash of a new one."""

import asyncio
import hashlib
import tempfile
from pathlib import Path

from sqlalchemy import Connection

from vpsd.migrations import schema, shape

VERSIONS = Path(__file__).with_name("versions")
HASHES = Path(__file__).with_name("versions.sha256")


def shapes(connection: Connection) -> str:
    """What `shapes.txt` has to say: found out by running the migrations, one by one, on an empty database."""
    from alembic import command

    config = schema.alembic_config(connection)
    before: shape.Shape = frozenset()
    lines = []
    for revision in schema.revisions(config):
        command.upgrade(config, revision)
        now = shape.describe(connection)
        gone, new = sorted(before - now), sorted(now - before)
        lines += [revision, *(f"- {line}" for line in gone), *(f"+ {line}" for line in new)]
        before = now
    return "\n".join(lines) + "\n"


def hashes() -> dict[str, str]:
    """SHA-256 of every migration, by the name of its file."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(VERSIONS.glob("[0-9]*.py"))}


def main() -> None:
    """Write both files; a hash that is written already stays as it is."""
    with tempfile.TemporaryDirectory() as folder:
        shape.SHAPES.write_text(asyncio.run(schema.run(f"sqlite:///{folder}/empty.sqlite", shapes)), encoding="utf-8")
    known = HASHES.read_text(encoding="utf-8") if HASHES.exists() else ""
    new = [f"{digest}  {name}\n" for name, digest in hashes().items() if f"  {name}\n" not in known]
    HASHES.write_text(known + "".join(new), encoding="utf-8")


if __name__ == "__main__":
    main()
