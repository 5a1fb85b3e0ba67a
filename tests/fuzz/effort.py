"""How much is tried, and from which seed on: a short form in `make test`, a long one in `make fuzz`."""

import os

LONG = os.environ.get("FUZZ") == "long"
SEED = int(os.environ.get("FUZZ_SEED", "1"))


def again(where: str, seed: int = SEED) -> str:
    """How to see the same once more."""
    form = "FUZZ=long " if LONG else ""
    return f"to repeat: {form}FUZZ_SEED={seed} .venv/bin/python -m pytest tests/fuzz/{where}"
