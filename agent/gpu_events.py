"""XID events, counted: what the driver says when something goes wrong on a GPU.

NVML shows only new events to a waiter, so the waiting is done by a thread of its own, all the time.
"""

import ctypes
import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import pynvml

from agent.gpu_reading import APPLICATION_XIDS, NO_XID
from fleetpulse.telemetry import logger

_log = logger(__name__)

# How long one wait lasts, hence how long stop() takes at most.
WAIT_MILLISECONDS: Final = 500


class XidEvents:
    """Waits for XID events of some devices; ``devices`` maps hw.id to NVML's handle. Start it once, stop it once."""

    def __init__(self, devices: Mapping[str, Any], seen: Mapping[str, Counter[int]]) -> None:
        self._hw_ids = {_address(handle): hw_id for hw_id, handle in devices.items()}
        self._lock = threading.Lock()
        self._counts = {hw_id: Counter(counts) for hw_id, counts in seen.items()}
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._set = pynvml.nvmlEventSetCreate()
        for hw_id, handle in devices.items():
            self._register(hw_id, handle)

    def start(self) -> None:
        """Begin to wait, if any device reports events."""
        if not self._counts:
            return
        self._thread = threading.Thread(target=self._wait_until_stopped, name="agent-xid", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the waiting, within about WAIT_MILLISECONDS; a driver that hangs keeps its event set."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(timeout=4 * WAIT_MILLISECONDS / 1000)
            if self._thread.is_alive():
                _log.warning("the NVIDIA driver does not come back from waiting for XID events")
                return
        pynvml.nvmlEventSetFree(self._set)

    def counts(self) -> dict[str, Counter[int]]:
        """Events by device and code. A device without a key reports no XID events."""
        with self._lock:
            return {hw_id: Counter(counts) for hw_id, counts in self._counts.items()}

    def _register(self, hw_id: str, handle: Any) -> None:
        try:
            pynvml.nvmlDeviceRegisterEvents(handle, pynvml.nvmlEventTypeXidCriticalError, self._set)
        except pynvml.NVMLError as error:
            _log.info("this GPU reports no XID events", extra={"hw_id": hw_id, "error": str(error)})
        else:
            self._counts.setdefault(hw_id, Counter({NO_XID: 0}))

    def _wait_until_stopped(self) -> None:
        told = False
        while not self._stopped.is_set():
            try:
                event = pynvml.nvmlEventSetWait_v2(self._set, WAIT_MILLISECONDS)
            except pynvml.NVMLError_Timeout:
                continue
            except pynvml.NVMLError as error:
                # A lost GPU makes some drivers fail every wait at once: go on, for the sake of the others.
                if not told:
                    _log.warning("waiting for XID events failed", extra={"error": str(error)})
                    told = True
                self._stopped.wait(WAIT_MILLISECONDS / 1000)
                continue
            if event.eventType == pynvml.nvmlEventTypeXidCriticalError:
                self._count(event)

    def _count(self, event: Any) -> None:
        code = int(event.eventData)
        # NVML names no device when it cannot tell which one it was; then it may be any of them.
        named = self._hw_ids.get(_address(event.device))
        with self._lock:
            affected = [named] if named is not None else list(self._counts)
            for hw_id in affected:
                self._counts.setdefault(hw_id, Counter({NO_XID: 0}))[code] += 1
        application = code in APPLICATION_XIDS
        tell = _log.warning if application else _log.error
        tell("XID event", extra={"hw_ids": affected, "xid": code, "application_error": application})


def _address(handle: Any) -> int | None:
    return ctypes.cast(handle, ctypes.c_void_p).value
