"""New and removed key files are taken up without a restart; a mistake leaves the keys that are in use."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import structlog

from gateway.crypto.key_files import open_folder
from gateway.crypto.key_store import KeyStore, KeyStoreError
from gateway.metrics import OWN_KEY_RELOADS

log = structlog.get_logger()

POLL_S = 5


class KeyWatch:
    """Holds the key files in use; `taken` is told of every change."""

    def __init__(self, folder: Path, taken: Callable[[KeyStore], None]) -> None:
        self._folder = folder
        self._taken = taken
        self._stamps = _stamps(folder)
        self.store: KeyStore = open_folder(folder)

    async def watch(self) -> None:
        """Look for changes every POLL_S seconds, until cancelled."""
        while True:
            await asyncio.sleep(POLL_S)
            self.reload_if_changed()

    def reload_if_changed(self) -> bool:
        """Whether a change was taken up."""
        stamps = _stamps(self._folder)
        if stamps == self._stamps:
            return False
        self._stamps = stamps
        try:
            self.store = open_folder(self._folder)
        except (KeyStoreError, OSError) as error:
            OWN_KEY_RELOADS.labels("refused").inc()
            log.error("key change refused; the keys in use stay", error=str(error))
            return False
        self._taken(self.store)
        OWN_KEY_RELOADS.labels("taken").inc()
        log.info("key change taken up")
        return True


def _stamps(folder: Path) -> frozenset[tuple[str, int, int, int]]:
    """What differs once a key file was added, replaced, removed, or may be read by others."""
    stamps = []
    for path in [folder, *folder.glob("*.json")]:
        try:
            state = path.stat()
        except OSError:
            continue  # removed meanwhile: the next look sees the rest
        changed = 0 if path == folder else state.st_ctime_ns
        stamps.append((path.name, state.st_mode, state.st_uid, changed))
    return frozenset(stamps)
