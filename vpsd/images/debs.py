"""Debian packages from the host's own mirrors, unpacked without installing them and without privileges."""

import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from vpsd.errors import Misconfigured, Unavailable
from vpsd.images.programs import run

_LIBRARY = re.compile(r"(lib|zlib)[a-z0-9.+-]+")
_NO_LIBRARY = re.compile(r"lib(perl|pam|text|file|number|semanage|.*-perl)")


class Source(msgspec.Struct, frozen=True):
    """One line of the host's package sources."""

    uri: str
    suite: str
    component: str


async def sources(log: Path, codename: str) -> list[Source]:
    """The host's Debian sources for one release (with its updates and security suites), as apt sees them.

    Third-party sources are left out. Raises `Misconfigured` when the host has none.
    """
    form = "$(ORIGIN)|$(CODENAME)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)"
    text = await run("apt-get", "indextargets", "Created-By: Packages", "--format", form, log=log, timeout_seconds=60)
    suites = {codename, f"{codename}-updates", f"{codename}-security"}
    found = []
    for line in text.splitlines():
        origin, release, uri, suite, component = line.split("|")
        if origin == "Debian" and release in suites:
            found.append(Source(uri, suite, component))
    if not any(source.suite == codename for source in found):
        raise Misconfigured(
            f"This machine's apt has no Debian source for {codename}: add one to /etc/apt/sources.list.d/, "
            "then run apt-get update."
        )
    return list(dict.fromkeys(found))


async def kernel_package(log: Path) -> str:
    """The package name of the newest cloud kernel."""
    text = await _apt_cache("depends", "linux-image-cloud-amd64", log=log)
    names = re.findall(r"Depends: (linux-image-\S+)", text)
    if not names:
        raise Unavailable("apt cannot find linux-image-cloud-amd64; run apt-get update and try again.")
    return str(names[0])


async def with_libraries(names: Sequence[str], log: Path) -> list[str]:
    """The packages, and those of the shared libraries that they depend on."""
    exclude = [f"--no-{kind}" for kind in ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")]
    text = await _apt_cache("depends", "--recurse", *exclude, *names, log=log)
    needs: dict[str, list[str]] = {}
    package = ""
    for line in text.splitlines():
        if not line.startswith(" "):
            package = line.strip()
        elif found := re.match(r"\s+\|?(?:Pre)?Depends: (\S+)$", line):
            needs.setdefault(package, []).append(found[1])
    wanted, queue = dict.fromkeys(names), list(names)
    while queue:
        for need in needs.get(queue.pop(), []):
            if need not in wanted and _LIBRARY.fullmatch(need) and not _NO_LIBRARY.match(need):
                wanted[need] = None
                queue.append(need)
    return list(wanted)


async def unpack(names: Sequence[str], folder: Path, work: Path, log: Path) -> None:
    """Download the packages and unpack them over each other into `folder`; nothing is installed."""
    downloads = work / "debs"
    downloads.mkdir(exist_ok=True)
    # apt's sandbox user cannot write into a private folder
    await run(
        "apt-get", "-q", "-o", "APT::Sandbox::User=", "download", *names,
        log=log, timeout_seconds=600, error=_NoPackages, cwd=downloads,
    )  # fmt: skip
    for package in sorted(downloads.glob("*.deb")):
        await run("dpkg-deb", "-x", package, folder, log=log, timeout_seconds=120)
        package.unlink()


async def _apt_cache(*argv: str, log: Path) -> str:
    return await run("apt-cache", *argv, log=log, timeout_seconds=60, error=_NoPackages)


class _NoPackages(Unavailable):
    def __init__(self, text: str) -> None:
        super().__init__(f"The Debian packages are not available; run apt-get update and try again. {text}")


def program(packages: Path, path: str) -> tuple[Path | str, ...]:
    """The start of a command line that runs a program from unpacked packages with their own libraries."""
    folders = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")
    return loader(packages), "--library-path", ":".join(str(packages / folder) for folder in folders), packages / path


async def libraries(packages: Path, path: str, log: Path) -> set[Path]:
    """The shared libraries in unpacked packages that one of their programs needs."""
    start, *search, binary = program(packages, path)
    said = await run(start, *search, "--list", binary, log=log, timeout_seconds=10)
    return {Path(word) for word in said.split() if word.startswith(str(packages)) and ".so" in word} - {
        loader(packages)
    }


def loader(packages: Path) -> Path:
    """The dynamic loader in unpacked packages."""
    return packages / "lib64/ld-linux-x86-64.so.2"
