"""Lines of public keys: what servers could not read, or what is no lock, is refused by name."""

import base64
import random
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from vpsd.ssh_keys.known import PUBLISHED
from vpsd.ssh_keys.lines import TYPES, parse

PrivateKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

ED25519 = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKXAUNfJY/JyqXeO35s/xoksDoq86DgTYmivuCURdqkV"
KIND, ENCODED = ED25519.split()
CURVES = {"nistp256": ec.SECP256R1(), "nistp384": ec.SECP384R1(), "nistp521": ec.SECP521R1()}


def line_of(key: PrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def line(kind: str, *fields: bytes) -> str:
    blob = b"".join(len(field).to_bytes(4, "big") + field for field in (kind.encode(), *fields))
    return f"{kind} {base64.b64encode(blob).decode()}"


def mpint(number: int) -> bytes:
    return number.to_bytes(number.bit_length() // 8 + 1, "big")


def rsa_line(bits: int, exponent: int = 65537) -> str:
    """Not a key that anybody has: only its size matters."""
    return line("ssh-rsa", mpint(exponent), mpint(random.Random(bits).getrandbits(bits) | 1 << (bits - 1) | 1))


def refusal(text: str) -> str:
    with pytest.raises(ValueError, match=r"\w") as caught:
        parse(text)
    assert len(text) < 40 or text[20:60] not in str(caught.value), "it is repeated, and may be a secret"
    return str(caught.value)


def reads(folder: Path, text: str) -> bool:
    """Whether OpenSSH does."""
    path = folder / "key.pub"
    path.write_text(f"{text}\n")
    return subprocess.run(["ssh-keygen", "-lf", path], capture_output=True, check=False).returncode == 0


def good_lines() -> list[str]:
    point = ec.derive_private_key(77, CURVES["nistp256"]).public_key()
    uncompressed = point.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return [
        ED25519,
        *(line_of(ec.derive_private_key(77 + number, curve)) for number, curve in enumerate(CURVES.values())),
        *(rsa_line(bits) for bits in (2048, 3072, 4096, 8192)),
        rsa_line(2048, 3),
        line("sk-ssh-ed25519@openssh.com", base64.b64decode(ENCODED)[-32:], b"ssh:"),
        line("sk-ecdsa-sha2-nistp256@openssh.com", b"nistp256", uncompressed, b"ssh:"),
    ]


def test_what_openssh_reads_of_every_kind_is_accepted(tmp_path: Path) -> None:
    assert {text.split()[0] for text in good_lines()} == set(TYPES)
    for text in good_lines():
        kept, fingerprint = parse(f"{text} ana@laptop\r\n")
        assert kept == f"{text} ana@laptop"
        path = tmp_path / "key.pub"
        path.write_text(kept)
        said = subprocess.run(["ssh-keygen", "-lf", path], capture_output=True, text=True, check=True).stdout
        assert said.split()[1] == fingerprint


def test_whatever_is_accepted_of_damaged_keys_is_read_by_openssh(tmp_path: Path) -> None:
    chance, accepted = random.Random(5), 0
    for text in good_lines():
        kind, encoded = text.split()
        for _ in range(12):
            blob = bytearray(base64.b64decode(encoded))
            for _ in range(chance.choice([1, 1, 3])):
                blob[chance.randrange(len(blob))] = chance.randrange(256)
            damaged = f"{kind} {base64.b64encode(blob).decode()}"
            try:
                parse(damaged)
            except ValueError:
                continue
            accepted += 1
            assert reads(tmp_path, damaged), damaged
    assert accepted > 10


@pytest.mark.parametrize("curve", CURVES)
def test_a_point_beside_its_nist_curve_is_refused(curve: str) -> None:
    point = bytearray(
        ec.derive_private_key(99, CURVES[curve])
        .public_key()
        .public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    )
    point[-1] ^= 1
    assert "no point of its curve" in refusal(line(f"ecdsa-sha2-{curve}", curve.encode(), bytes(point)))
    if curve == "nistp256":
        sk = line("sk-ecdsa-sha2-nistp256@openssh.com", curve.encode(), bytes(point), b"ssh:")
        assert "no point of its curve" in refusal(sk)


@pytest.mark.parametrize("kind", ["ssh-ed25519", "sk-ssh-ed25519@openssh.com"])
def test_what_is_no_point_of_edwards25519_is_refused(kind: str) -> None:
    chance, rest = random.Random(6), (b"ssh:",) if kind.startswith("sk-") else ()
    for _ in range(20):
        seed = chance.randbytes(32)
        parse(line(kind, ed25519.Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw(), *rest))
    beside = 0
    for _ in range(40):
        try:
            parse(line(kind, chance.randbytes(32), *rest))
        except ValueError:
            beside += 1
    assert 8 < beside < 32  # half of all numbers


# All encodings of points of order 1, 2, 4 and 8, and numbers that are too large (RFC 7748 lists them for X25519).
SMALL_ORDER = [0, 1, 2**255 - 20, 2**255 - 19, 2**255 - 18, 2**255 - 1]
SMALL_ORDER += [2707385501144840649318225287225658788936804267575313519463743609750303821402 * 10 + 2]
SMALL_ORDER += [55188659117513257062467267217118295137698188065244968500265048394206261417927]


@pytest.mark.parametrize("y", SMALL_ORDER)
def test_a_point_that_verifies_anything_is_refused(y: int) -> None:
    for sign in (0, 1 << 255):
        refusal(line("ssh-ed25519", (y | sign).to_bytes(32, "little")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (rsa_line(1024), "at least 2048 bits"),
        (rsa_line(2047), "at least 2048 bits"),
        (rsa_line(8193), "at most 8192 bits"),
        (rsa_line(16384), "at most 8192 bits"),
        (rsa_line(2048, 1), "damaged"),
        (rsa_line(2048, 65536), "damaged"),
        (rsa_line(4096, 2**65 + 1), "damaged"),
        (line("ssh-rsa", mpint(65537), b"\x80" + b"\x01" * 256), "damaged"),  # a negative number
        (line("ssh-rsa", mpint(65537), b""), "damaged"),
        (line("ssh-dss", b"x"), "'ssh-dss' is not accepted"),
        (f"{ED25519} {'c' * 9000}", "has 9000 characters; 255 are the limit"),
        (f"{ED25519} {'ä' * 256}", "has 256 characters; 255 are the limit"),
        (f"\ufeff{ED25519}", r"Character 1 is U\+FEFF \(BYTE ORDER MARK\), which one does not see"),
        (f"ssh-ed25519\u200b {ENCODED}", r"Character 12 is U\+200B \(ZERO WIDTH SPACE\)"),
        (f"{KIND} {ENCODED[:9]}\u200b{ENCODED[9:]}", r"Character 22 is U\+200B \(ZERO WIDTH SPACE\)"),
        (f"{KIND} {ENCODED[:9]}\u00ad{ENCODED[9:]}", r"U\+00AD \(SOFT HYPHEN\)"),
        (f"\u201c{ED25519}\u201d", r"Character 1 is U\+201C \(LEFT DOUBLE QUOTATION MARK\): it"),
        (f'"{ED25519}"', r"Character 1 is U\+0022 \(QUOTATION MARK\): it"),
        (f"\x1b{ED25519}", r"U\+001B \(a control character\)"),
        (f"{KIND} {ENCODED[:30]}\n{ENCODED[30:]}", "has a line break in it"),
        (f"{KIND} {ENCODED[:30]}\r\n{ENCODED[30:]}", "has a line break in it"),
        (f"{KIND}\n{ENCODED}", "has a line break in it"),
        (f"{ED25519} a\n{ED25519} b", "These are 2 keys"),
        (f'command="id" {ED25519}', "Options before the key"),
        (f"no-pty,no-user-rc {ED25519}", "Options before the key"),
        (f"ssh-ed25519-cert-v01@openssh.com {ENCODED}", "This is a certificate"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl\n", "This is a private key"),
        ("PuTTY-User-Key-File-3: ssh-ed25519\n", "private key of PuTTY"),
        ("---- BEGIN SSH2 PUBLIC KEY ----\nAAAA\n", "ssh-keygen -i -f"),
        ("-----BEGIN PUBLIC KEY-----\nMIIB\n", "ssh-keygen -i -m PKCS8"),
        ("-----BEGIN RSA PUBLIC KEY-----\nMIIB\n", "ssh-keygen -i -m PEM"),
    ],
)
def test_what_is_wrong_is_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_a_comment_that_just_fits_is_kept_and_loses_what_nobody_sees() -> None:
    comment = "c" * 255
    assert parse(f"{ED25519} {comment}")[0] == f"{ED25519} {comment}"
    refusal(f"{ED25519} {comment}c")
    assert parse(f"{ED25519} ana\u200b\ufeff@laptop")[0] == f"{ED25519} ana@laptop"


VAGRANT = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIN1YdxBpNlzxDqfJyw/QKow1F+wvG9hXGoqiysfJOn5Y vagrant insecure public key"
RFC_8032 = [  # section 7.1, TEST 1 to 3
    "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
    "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
    "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
]
RFC_6979 = {  # appendix A.2.5 to A.2.7
    "nistp256": "C9AFA9D845BA75166B5C215767B1D6934E50C3DB36E89B127B8A622B120F6721",
    "nistp384": "6B9D3DAD2E1B8C1C05B19875B6659F4DE23C3B667BF297BA9AA47740787137D896D5724E4C70A825F872C9EA60D2EDF5",
    "nistp521": "0FAD06DAA62BA3B25D2FB40133DA757205DE67F5BB0018FEE8C86E1B68C7E75C"
    "AA896EB32F1F47C70855836A6D16FCC1466F6D8FBEC67DB89EC0C08B0E996B83538",
}
PUBLIC: list[PrivateKey] = [ed25519.Ed25519PrivateKey.from_private_bytes(bytes.fromhex(seed)) for seed in RFC_8032]
PUBLIC += [ec.derive_private_key(int(number, 16), CURVES[curve]) for curve, number in RFC_6979.items()]


@pytest.mark.parametrize("text", [VAGRANT, *map(line_of, PUBLIC)])
def test_a_key_whose_other_half_is_published_is_refused_with_that_reason(text: str) -> None:
    message = refusal(text)
    assert message.startswith("Anybody can log in with this key: it is ")
    assert any(where in message for where in PUBLISHED.values())


def test_the_list_holds_fingerprints() -> None:
    for fingerprint in PUBLISHED:
        assert len(base64.b64decode(fingerprint.removeprefix("SHA256:") + "=", validate=True)) == 32
