"""Lists of checksums in the forms of Debian, Ubuntu, Fedora, Rocky and others."""

import hashlib

import pytest

from vpsd.errors import Unusable
from vpsd.images.checksums import Checksum, find

LIST, URL = "https://example.test/images/SUMS", "https://example.test/images/disk.img"
DIGESTS = {name: hashlib.new(name, b"disk").hexdigest() for name in ("md5", "sha1", "sha256", "sha384", "sha512")}
S256, S512 = DIGESTS["sha256"], DIGESTS["sha512"]
OTHER = hashlib.sha256(b"other").hexdigest()

SIGNED = f"""-----BEGIN PGP SIGNED MESSAGE-----
Hash: SHA256

# disk.img: 4 bytes
SHA256 (disk.img) = {S256}
- - a line that begins with a dash
-----BEGIN PGP SIGNATURE-----

iQIzBAEBCAAdFiEEqgQ
SHA256 (disk.img) = {OTHER}
-----END PGP SIGNATURE-----
"""


@pytest.mark.parametrize(
    ("text", "algorithm"),
    [
        (f"{OTHER}  other.img\n{S512}  disk.img\n", "sha512"),  # Debian's SHA512SUMS
        (f"{S256} *disk.img\n", "sha256"),  # Ubuntu's
        (f"{S256}  ./disk.img", "sha256"),
        (f"{S256}  images/disk.img", "sha256"),  # of a list further up
        (f"# disk.img: 4 bytes\r\nSHA256 (disk.img) = {S256.upper()}\r\n", "sha256"),  # Rocky's CHECKSUM
        (f"SHA512 (disk.img) = {S512}", "sha512"),  # BSD's
        (f"SHA2-256(disk.img)= {S256}", "sha256"),  # OpenSSL's
        (f"{S256}\n", "sha256"),  # disk.img.sha256, bare
        (f"\ufeff{DIGESTS['sha384']}", "sha384"),
        (SIGNED, "sha256"),  # Fedora's
        ("".join(f"{digest}  disk.img\n" for digest in DIGESTS.values()), "sha512"),
        (f"{S256}  disk.img\n{S256}  disk.img\n", "sha256"),
        (f"{S256}  disk.img\n{OTHER}  old/disk.img\n", "sha256"),
    ],
)
def test_the_strongest_checksum_is_found(text: str, algorithm: str) -> None:
    assert find(text.encode(), LIST, URL) == Checksum(algorithm, DIGESTS[algorithm])


def test_a_name_in_an_url_may_be_quoted() -> None:
    url = "https://example.test/images/disk%2B1.img?mirror=3"
    assert find(f"{S256}  disk+1.img".encode(), LIST, url).hex == S256


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", r"no checksum for disk\.img"),
        (f"{S256}  other-disk.img", r"no checksum for disk\.img"),
        (f"SHA512 (disk.img) = {S256}", r"no checksum for disk\.img"),  # not what it says
        (f"{DIGESTS['md5']}  disk.img\n{DIGESTS['sha1']}  disk.img", "only MD5 and SHA1"),
        (f"{S256}  disk.img\n{OTHER}  disk.img", r"two different SHA256 checksums for disk\.img"),
        (f"{S256}\n{OTHER}", "two different"),
        ("<!doctype html><html>", "is an HTML page, not a list"),
        ("-----BEGIN PGP SIGNATURE-----\n\niQIz\n-----END PGP SIGNATURE-----", "is a signature or another file"),
        (f"-----BEGIN PGP MESSAGE-----\n{S256}", "is an encrypted or signed PGP message"),
        ("\x89\0\x01", "another file"),
    ],
)
def test_a_list_that_proves_nothing_is_refused(text: str, why: str) -> None:
    with pytest.raises(Unusable, match=why):
        find(text.encode(), LIST, URL)
