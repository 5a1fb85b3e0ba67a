"""A connection to libvirt: opened on demand, monitored by keepalive, reopened after it was lost."""

import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import libvirt

from vpsd.errors import Unavailable
from vpsd.hypervisor.libvirt.failures import translate

# A host that is silent for 15 s (libvirt waits once more) is gone, and calls that wait for it fail: before their own
# time is over, so that their threads are free again.
_KEEPALIVE_SECONDS = 3
_KEEPALIVE_MISSES = 4
_OPEN_WAIT_SECONDS = 60.0  # for another thread that is connecting

_log = logging.getLogger(__name__)
_loop_lock = threading.Lock()
_loop_running = False


class Connection:
    """The host's libvirt. Methods block; call them from the driver's threads."""

    def __init__(
        self,
        find_uri: Callable[[], str],
        on_connect: Callable[[], None],
        on_change: Callable[[str], None],
        on_reboot: Callable[[str], None],
    ) -> None:
        """`find_uri` returns the URI to open, and starts the daemon if needed.

        `on_connect` is called for each new connection: cached facts about the host may be stale. `on_change` is called
        with the name of a domain that changed, `on_reboot` with that of one that was reset.
        """
        self._find_uri = find_uri
        self._on_connect = on_connect
        self._on_change = on_change
        self._on_reboot = on_reboot
        self._lock = threading.Lock()
        self._open: libvirt.virConnect | None = None
        self.uri = ""

    def get(self) -> libvirt.virConnect:
        """The open connection; raises `Unavailable` if the host cannot be reached."""
        present = self._open
        if present is not None and present.isAlive():
            return present
        if not self._lock.acquire(timeout=_OPEN_WAIT_SECONDS):
            raise Unavailable("The host's libvirt does not answer.")
        try:
            if self._open is None or not self._open.isAlive():
                self._open = None
                self._open = self._connect()
                self._on_connect()
            return self._open
        finally:
            self._lock.release()

    def is_lost(self) -> bool:
        """Whether the connection is gone: an error that came with that says nothing about the request."""
        present = self._open
        return present is None or not present.isAlive()

    def close(self) -> None:
        """Disconnect; a later `get` connects again."""
        with self._lock:
            present, self._open = self._open, None
        if present is not None:
            _ignoring_errors(present.close)

    def _connect(self) -> libvirt.virConnect:
        _run_event_loop()
        self.uri = self._find_uri()
        try:
            opened = libvirt.open(self.uri)
        except libvirt.libvirtError as error:
            raise translate(error, f"be reached at {self.uri}") from error
        _ignoring_errors(partial(opened.setKeepAlive, _KEEPALIVE_SECONDS, _KEEPALIVE_MISSES))
        for event in (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, libvirt.VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE):
            _ignoring_errors(partial(opened.domainEventRegisterAny, None, event, self._on_event, self._on_change))
        reboot = libvirt.VIR_DOMAIN_EVENT_ID_REBOOT
        _ignoring_errors(partial(opened.domainEventRegisterAny, None, reboot, self._on_event, self._on_reboot))
        return opened

    def _on_event(self, _: Any, domain: libvirt.virDomain, *more: Any) -> None:
        """In the event thread: libvirt must not be called here, and no error may escape."""
        try:
            more[-1](domain.name())
        except Exception:
            _log.exception("a watcher of the host failed")


def _ignoring_errors(call: Callable[[], Any]) -> None:
    """Make an optional call that some libvirt drivers do not support (`test:///` has no keepalive)."""
    try:
        call()
    except libvirt.libvirtError as error:
        _log.debug("libvirt: %s", error)


def _run_event_loop() -> None:
    """Run libvirt's event loop in a thread, once per process; it has to exist before the first connection."""
    global _loop_running
    with _loop_lock:
        if _loop_running:
            return
        libvirt.registerErrorHandler(lambda *_: None, None)  # errors are raised; libvirt would also print them
        libvirt.virEventRegisterDefaultImpl()
        threading.Thread(target=_run_events, name="libvirt-events", daemon=True).start()
        _loop_running = True


def _run_events() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()
