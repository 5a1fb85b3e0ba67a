"""One connection to libvirt: opened when needed, watched by keepalive, opened again when it was lost."""

import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import libvirt

from vpsd.errors import Unavailable
from vpsd.hypervisor.libvirt.failures import translate

_KEEPALIVE_SECONDS = 5
_KEEPALIVE_MISSES = 4  # a host that says nothing for 20 s is gone, and calls that wait for it fail
_OPEN_WAIT_SECONDS = 60.0  # for another thread that is opening

_log = logging.getLogger(__name__)
_loop_lock = threading.Lock()
_loop_runs = False


class Connection:
    """The host's libvirt. Methods block; call them from the driver's threads."""

    def __init__(
        self, find_uri: Callable[[], str], renewed: Callable[[], None], changed: Callable[[str], None]
    ) -> None:
        """`find_uri` says what to open and starts it where that is ours to do.

        `renewed` is called for each new connection: what was remembered of the host may be wrong. `changed` is
        called with the name of a domain that something happened to.
        """
        self._find_uri = find_uri
        self._renewed = renewed
        self._changed = changed
        self._lock = threading.Lock()
        self._open: libvirt.virConnect | None = None
        self.uri = ""

    def get(self) -> libvirt.virConnect:
        """The open connection; raises `Unavailable` when the host cannot be reached."""
        present = self._open
        if present is not None and present.isAlive():
            return present
        if not self._lock.acquire(timeout=_OPEN_WAIT_SECONDS):
            raise Unavailable("The host's libvirt does not answer.")
        try:
            if self._open is None or not self._open.isAlive():
                self._open = None
                self._open = self._connect()
                self._renewed()
            return self._open
        finally:
            self._lock.release()

    def is_lost(self) -> bool:
        """Whether the last connection has gone: an error that came with that says nothing of the request."""
        present = self._open
        return present is None or not present.isAlive()

    def close(self) -> None:
        """Let go; a later `get` opens again."""
        with self._lock:
            present, self._open = self._open, None
        if present is not None:
            _quietly(present.close)

    def _connect(self) -> libvirt.virConnect:
        _run_event_loop()
        self.uri = self._find_uri()
        try:
            opened = libvirt.open(self.uri)
        except libvirt.libvirtError as error:
            raise translate(error, f"be reached at {self.uri}") from error
        _quietly(partial(opened.setKeepAlive, _KEEPALIVE_SECONDS, _KEEPALIVE_MISSES))
        for event in (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, libvirt.VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE):
            _quietly(partial(opened.domainEventRegisterAny, None, event, self._on_event, None))
        return opened

    def _on_event(self, _: Any, domain: libvirt.virDomain, *__: Any) -> None:
        """In the event thread: nothing may be asked of libvirt here, and no error may leave."""
        try:
            self._changed(domain.name())
        except Exception:
            _log.exception("a watcher of the host failed")


def _quietly(call: Callable[[], Any]) -> None:
    """Do what helps where the driver knows it (`test:///` has no keepalive)."""
    try:
        call()
    except libvirt.libvirtError as error:
        _log.debug("libvirt: %s", error)


def _run_event_loop() -> None:
    """Serve libvirt's events and keepalive in a thread, one in a process; must be there before the first open."""
    global _loop_runs
    with _loop_lock:
        if _loop_runs:
            return
        libvirt.registerErrorHandler(lambda *_: None, None)  # errors are raised; libvirt would print them too
        libvirt.virEventRegisterDefaultImpl()
        threading.Thread(target=_run_events, name="libvirt-events", daemon=True).start()
        _loop_runs = True


def _run_events() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()
