"""No bug: changes are looked for ten times a second, for tests of what a change does and not of when it is noticed."""

from gateway import directory
from gateway.crypto import key_watch
from gateway.partners import registry

directory.POLL_S = key_watch.POLL_S = registry.POLL_S = 0.1  # type: ignore[assignment]
