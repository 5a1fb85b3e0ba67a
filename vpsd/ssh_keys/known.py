"""Keys whose private half anybody can read, by fingerprint: who has a server with one of them has no lock on it.

A small list. Fingerprints are those of the published public keys (`ssh-keygen -lf`), and say where those are published.
"""

_VAGRANT = "Vagrant's insecure key (github.com/hashicorp/vagrant, keys/)"
_RFC_8032 = "a test key of RFC 8032 (section 7.1)"
_RFC_6979 = "a test key of RFC 6979 (appendix A.2)"


def _badkeys(name: str) -> str:
    return f"the key of {name} (github.com/rapid7/ssh-badkeys)"


PUBLISHED = {
    "SHA256:1M4RzhMyWuFS/86uPY/ce2prh/dVTHW7iD2RhpquOZA": _VAGRANT,
    "SHA256:WkvqjnyPAeC0cbPErYiGP9vqHdgL1MqqvPdIe3lvHgI": _VAGRANT,
    "SHA256:mNz9adiNUt9xnouQa1sVz3M2zmUV/nTEjUOucMNM9l4": "the insecure key of phusion/baseimage-docker",
    "SHA256:Z+q4XhSwWY7q0BIDVPR1v/S306FjGBsid7tLq/8kIxM": _badkeys("Ceragon FibeAir, CVE-2015-0936"),
    "SHA256:9prMbqhS4QteoFQ1ZRJDqSBLWoHXPyKB0iWR05Ghro4": _badkeys("F5 BIG-IP, CVE-2012-1493"),
    "SHA256:WtRSB8XG5R0LFE1KvRKV7sa2pTCQBpbVm8W7QLbCb5A": _badkeys("Seagate GoFlex"),
    "SHA256:AKABay46vBa2bhMYZU2V/z5uqlAUXcuBTxMkW4MHd9s": _badkeys("Westermo MRD-310"),
    "SHA256:zaEfS0zzZ4DyGf0BjXPPkEi+6puzJs73EkbEm3XSSqU": _badkeys("Zyxel FSG2200"),
    "SHA256:fKki+o9MyIk8XUThmRfoejJudcef7mGvkooMCBLyqCM": _badkeys("Advantech EKI"),
    "SHA256:4REJomy/ZbGbLVcbZzR/i6CQuzF+EI6DMvu/lHCxh4M": _badkeys("Kali Linux for Raspberry Pi 2"),
    "SHA256:bbXpuKG6zhzdmnxq256TlqzFBzRl2f6OOg722cYNbU8": _RFC_8032,
    "SHA256:F34nin7tcaYH6WR5LSWSfj6weFBPfBpuyUUoPFP9YjA": _RFC_8032,
    "SHA256:s3Z2A+mldeflHo5TMMEUA7MlkMg96xvtqH9DGLHHZmE": _RFC_8032,
    "SHA256:hfuNWmjIYvsBGZ6dpCLTTAEa5LxbZABRHHVoynAxFlo": _RFC_6979,
    "SHA256:r2gb6ll4RdAhNje52WqzvC1ICUeSzSZMbpRpQKNxTQw": _RFC_6979,
    "SHA256:OKhGsQFTbsHhYl6O3WOTYhhcpWrB+ocpaF9jPa5h/Ag": _RFC_6979,
}
