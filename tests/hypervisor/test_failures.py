"""What libvirt says, in vpsd's words."""

import libvirt
import pytest

from vpsd.errors import Unavailable, Unusable
from vpsd.hypervisor.libvirt.failures import translate


@pytest.mark.parametrize(
    ("said", "kind", "text"),
    [
        ("operation failed: Unable to find any firmware to satisfy 'efi'", Unusable, "install Debian's package ovmf"),
        ("internal error: the sky fell", Unavailable, "The host could not start web: the sky fell"),
    ],
)
def test_a_failure_says_whether_to_try_again_and_what_helps(said: str, kind: type[Exception], text: str) -> None:
    error = translate(libvirt.libvirtError(said), "start web")
    assert type(error) is kind
    assert text in str(error)
