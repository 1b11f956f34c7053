"""Whom we believe when we call over TLS."""

import ssl
from pathlib import Path


def client_context(ca_file: Path | None) -> ssl.SSLContext:
    """TLS 1.2 or later to hosts that `ca_file` (None: the system's authorities) vouches for. Raises ValueError."""
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except ssl.SSLError:
        raise ValueError(f"{ca_file}: not certificates") from None
    except OSError as error:
        raise ValueError(f"{ca_file}: {error.strerror}") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
