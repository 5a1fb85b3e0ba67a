"""Downloads over HTTP: resumed where the server allows it, verified, and moved into place atomically."""

import asyncio
import hashlib
from pathlib import Path

import httpx

from vpsd.core.units import MIB
from vpsd.errors import Unavailable, Unusable
from vpsd.hypervisor.protocol import Progress
from vpsd.images.checksums import Checksum
from vpsd.images.checksums import find as find_checksum
from vpsd.images.looks import refusal
from vpsd.images.space import require_space

_TIMEOUT = httpx.Timeout(20, read=60)
_CHUNK_BYTES = MIB
_SUMS_LIMIT_BYTES = MIB
_MB = 1_000_000
_THIS_MACHINE = ("127.0.0.1", "::1", "localhost")


async def pull(
    url: str,
    target: Path,
    progress: Progress,
    *,
    part: Path,
    limit_bytes: int,
    sha256: str | None = None,
    sums_url: str | None = None,
    timeout: httpx.Timeout = _TIMEOUT,
) -> None:
    """Download `url` to `target`; `part` keeps a partial download for the next try.

    Verified, as it is published, against `sha256` or the strongest checksum in the list at `sums_url`.
    Raises `Unavailable` where trying again may help, `Unusable` for a missing file, one larger than `limit_bytes`, or a
    wrong checksum.
    """
    async with (
        httpx.AsyncClient(timeout=timeout, follow_redirects=True, max_redirects=5) as client,
        httpx.AsyncClient(
            timeout=timeout, follow_redirects=True, max_redirects=5, event_hooks={"request": [_refuse_forgeable]}
        ) as sums,
    ):
        try:
            wanted = Checksum("sha256", sha256.lower()) if sha256 else await _published_sum(sums, url, sums_url)
            resumed = part.exists() and part.stat().st_size > 0
            found = await _fetch(client, url, part, wanted.algorithm, limit_bytes, progress)
            if found != wanted.hex and resumed:
                # the file may have changed on the server since the first part arrived
                part.unlink()
                found = await _fetch(client, url, part, wanted.algorithm, limit_bytes, progress)
        except httpx.TransportError as error:
            raise Unavailable(f"{url} cannot be reached: {str(error) or type(error).__name__}") from error
        except (httpx.InvalidURL, httpx.TooManyRedirects, httpx.DecodingError) as error:
            raise Unusable(f"{url} cannot be used: {error}") from error
    if found != wanted.hex:
        looks = refusal(part)
        part.unlink()
        what = f" It {looks}." if looks else ""
        raise Unusable(f"{url} has the checksum {found}, not {wanted.hex}; the download was deleted.{what}")
    part.replace(target)


async def _published_sum(client: httpx.AsyncClient, url: str, sums_url: str | None) -> Checksum:
    if sums_url is None:
        raise Unusable(f"No checksum is known for {url}; set its SHA-256, or the URL of a list of checksums.")
    content = b""
    async with client.stream("GET", sums_url) as response:
        _check(response)
        async for chunk in response.aiter_bytes():
            content += chunk
            if len(content) > _SUMS_LIMIT_BYTES:
                raise Unusable(f"{sums_url} is too large for a list of checksums.")
    return find_checksum(content, sums_url, url)


async def _refuse_forgeable(request: httpx.Request) -> None:
    """Raise `Unusable` for a list that whoever is on the way can write anew, and the image with it; also on the way."""
    if request.url.scheme == "http" and request.url.host not in _THIS_MACHINE:
        raise Unusable(
            f"{request.url} is plain HTTP: whoever is on the way could change the image and its checksum. Give the "
            "list's https:// URL as sums_url, or the image's SHA-256 as sha256."
        )


async def _fetch(
    client: httpx.AsyncClient, url: str, part: Path, algorithm: str, limit_bytes: int, progress: Progress
) -> str:
    """Download the rest of `part` and return the digest of the whole file."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    async with client.stream("GET", url, headers=headers) as response:
        if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            return await asyncio.to_thread(lambda: _digest(part, algorithm).hexdigest())  # either complete or corrupt
        _check(response)
        goes_on = response.status_code == httpx.codes.PARTIAL_CONTENT and _starts_at(response, have)
        if response.status_code == httpx.codes.PARTIAL_CONTENT and not goes_on:
            raise Unusable(f"{url} returned a different part of the file than requested.")
        have = have if goes_on else 0
        digest = await asyncio.to_thread(_digest, part, algorithm) if goes_on else hashlib.new(algorithm)
        total = have + int(response.headers.get("Content-Length", 0))
        _check_size(url, max(total, have), limit_bytes)
        with part.open("ab" if goes_on else "wb") as file:
            require_space(part.parent, max(total - have, 0), url)
            async for chunk in response.aiter_raw(_CHUNK_BYTES):
                have += len(chunk)
                _check_size(url, have, limit_bytes)
                require_space(part.parent, len(chunk), url)
                file.write(chunk)
                digest.update(chunk)
                progress(have / max(total, have), f"downloaded {have // _MB} of {max(total, have) // _MB} MB")
    return digest.hexdigest()


def _check_size(url: str, size_bytes: int, limit_bytes: int) -> None:
    if size_bytes > limit_bytes:
        raise Unusable(f"{url} is larger than {limit_bytes // MIB} MiB, the largest image that is taken.")


def _check(response: httpx.Response) -> None:
    status, url = response.status_code, response.request.url
    if status >= 500 or status in (408, 425, 429):
        raise Unavailable(f"{url} returned {status} {response.reason_phrase}.")
    if status not in (200, 206):
        raise Unusable(f"{url} returned {status} {response.reason_phrase}.")


def _starts_at(response: httpx.Response, position: int) -> bool:
    return str(response.headers.get("Content-Range", "")).startswith(f"bytes {position}-")


def _digest(path: Path, algorithm: str) -> "hashlib._Hash":
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm)
