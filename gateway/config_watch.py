"""Changes of the configuration, noticed while the gateway runs, without a restart.

Each component that keeps a part of it in force watches all of its files, because load() checks them together: what was
refused for a mistake in another file has to be taken up when that one is mended. What was read is known by stamps of
before the reading, so what is written meanwhile is read at the next look.
"""

import time
from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path

import structlog

from gateway.metrics import CONFIG_REFUSED, RELOADS
from gateway.settings import Settings, SettingsError, Stamps, load, stamps_of

log = structlog.get_logger()

_AGAIN_S = 30.0
"""What was refused is tried again then, though no file has changed: a mistake may be elsewhere (an adapter that is not
there, no file descriptor left). A load holds the process for some 8 ms: not at every look."""


class Component(StrEnum):
    """Who keeps a part of the configuration in force."""

    DIRECTORY = "directory"
    PARTNERS = "partners"
    USAGE_MONITORING = "usage_monitoring"


class ConfigWatch:
    """One component's look at the configuration. When changed() gives settings, taken() or refused() has to follow."""

    def __init__(
        self, component: Component, settings: Settings, own_files: Callable[[Settings], Iterable[Path]]
    ) -> None:
        """To be made before the component reads its own files: those of the configuration that it keeps in force, and
        those that these name."""
        self._component, self._own_files = component, own_files
        self._seen: Stamps = {}
        self._own: Stamps = {}
        self._note(settings)
        self._in_force = self._own
        self._mistakes: list[str] = []
        self._refused_at = 0.0
        CONFIG_REFUSED.labels(component).set(0)

    def changed(self) -> Settings | None:
        """The configuration, if the component has something to take up. What load() refuses is refused here."""
        stamps = stamps_of(self._seen)
        if stamps == self._seen and not (self._mistakes and time.monotonic() - self._refused_at >= _AGAIN_S):
            return None
        self._seen = stamps
        try:
            settings = load()
        except SettingsError as error:
            self.refused(error.mistakes)
            return None
        self._note(settings)
        return settings if self._mistakes or self._own != self._in_force else None

    def taken(self) -> None:
        """What changed() gave is in force."""
        self._in_force = self._own
        self._mistakes = []
        CONFIG_REFUSED.labels(self._component).set(0)
        RELOADS.labels(self._component, "taken").inc()
        log.info("configuration change taken up", component=self._component)

    def refused(self, mistakes: list[str]) -> None:
        """The last good state stays. Told once, and again when the mistakes are others."""
        self._refused_at = time.monotonic()
        if mistakes == self._mistakes:
            return
        self._mistakes = mistakes
        CONFIG_REFUSED.labels(self._component).set(1)
        RELOADS.labels(self._component, "refused").inc()
        log.error("configuration change refused", component=self._component, mistakes=mistakes)

    def _note(self, settings: Settings) -> None:
        own_files = list(self._own_files(settings))
        self._seen = stamps_of(own_files) | settings.stamps  # those of before load() count
        self._own = {file: self._seen[file] for file in own_files}
