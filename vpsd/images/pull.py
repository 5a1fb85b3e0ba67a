"""Downloads over HTTP: resumed where the server allows it, verified, and moved into place atomically."""

import asyncio
import hashlib
import re
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import httpx

from vpsd.core.units import GIB, MIB
from vpsd.errors import Unavailable, Unusable
from vpsd.hypervisor.protocol import Progress

_TIMEOUT = httpx.Timeout(20, read=60)
_CHUNK_BYTES = MIB
_SUMS_LIMIT_BYTES = MIB
_LIMIT_BYTES = 64 * GIB
_MB = 1_000_000


async def pull(
    url: str,
    target: Path,
    progress: Progress,
    *,
    part: Path,
    sha256: str | None = None,
    sums_url: str | None = None,
    timeout: httpx.Timeout = _TIMEOUT,
) -> None:
    """Download `url` to `target`; `part` keeps a partial download for the next try.

    Verified against `sha256`, or against the line for this file in the SHA256SUMS file at `sums_url`.
    Raises `Unavailable` where trying again may help, `Unusable` for a missing file or a wrong checksum.
    """
    async with httpx.AsyncClient(timeout=timeout, follow_redirects=True, max_redirects=5) as client:
        try:
            wanted = (sha256 or await _published_sum(client, url, sums_url)).lower()
            resumed = part.exists() and part.stat().st_size > 0
            found = await _fetch(client, url, part, progress)
            if found != wanted and resumed:
                # the file may have changed on the server since the first part arrived
                part.unlink()
                found = await _fetch(client, url, part, progress)
        except httpx.TransportError as error:
            raise Unavailable(f"{url} cannot be reached: {str(error) or type(error).__name__}") from error
        except (httpx.InvalidURL, httpx.TooManyRedirects, httpx.DecodingError) as error:
            raise Unusable(f"{url} cannot be used: {error}") from error
    if found != wanted:
        part.unlink()
        raise Unusable(f"{url} has the checksum {found}, not {wanted}; the download was deleted.")
    part.replace(target)


async def _published_sum(client: httpx.AsyncClient, url: str, sums_url: str | None) -> str:
    if sums_url is None:
        raise Unusable(f"No checksum is known for {url}; set its SHA-256, or the URL of a SHA256SUMS file.")
    content = b""
    async with client.stream("GET", sums_url) as response:
        _check(response)
        async for chunk in response.aiter_bytes():
            content += chunk
            if len(content) > _SUMS_LIMIT_BYTES:
                raise Unusable(f"{sums_url} is too large for a list of checksums.")
    name = PurePosixPath(urlsplit(url).path).name
    for line in content.decode(errors="replace").splitlines():
        found = re.fullmatch(r"([0-9a-fA-F]{64})\s+[*]?(?:\./)?(.+)", line.strip())
        if found and found[2] == name:
            return found[1]
    raise Unusable(f"{sums_url} has no checksum for {name}.")


async def _fetch(client: httpx.AsyncClient, url: str, part: Path, progress: Progress) -> str:
    """Download the rest of `part` and return the SHA-256 of the whole file."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    async with client.stream("GET", url, headers=headers) as response:
        if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            return await asyncio.to_thread(lambda: _digest(part).hexdigest())  # either complete or corrupt
        _check(response)
        goes_on = response.status_code == httpx.codes.PARTIAL_CONTENT and _starts_at(response, have)
        if response.status_code == httpx.codes.PARTIAL_CONTENT and not goes_on:
            raise Unusable(f"{url} returned a different part of the file than requested.")
        have = have if goes_on else 0
        digest = await asyncio.to_thread(_digest, part) if goes_on else hashlib.sha256()
        total = have + int(response.headers.get("Content-Length", 0))
        with part.open("ab" if goes_on else "wb") as file:
            async for chunk in response.aiter_raw(_CHUNK_BYTES):
                file.write(chunk)
                digest.update(chunk)
                have += len(chunk)
                if have > _LIMIT_BYTES:
                    raise Unusable(f"{url} is larger than {_LIMIT_BYTES // _MB} MB.")
                progress(have / max(total, have), f"downloaded {have // _MB} of {max(total, have) // _MB} MB")
    return digest.hexdigest()


def _check(response: httpx.Response) -> None:
    status, url = response.status_code, response.request.url
    if status >= 500 or status in (408, 425, 429):
        raise Unavailable(f"{url} returned {status} {response.reason_phrase}.")
    if status not in (200, 206):
        raise Unusable(f"{url} returned {status} {response.reason_phrase}.")


def _starts_at(response: httpx.Response, position: int) -> bool:
    return str(response.headers.get("Content-Range", "")).startswith(f"bytes {position}-")


def _digest(path: Path) -> "hashlib._Hash":
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256")
