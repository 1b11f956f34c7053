"""TLS towards partners: the certificates that vouch for them, and ours."""

import ssl
from pathlib import Path

from gateway.domain.partners import PartnerHttp, PartnerLink


def tls_context(connection: PartnerHttp | PartnerLink, data_dir: Path) -> ssl.SSLContext | None:
    """None where there is no TLS: http:// and links without a ca_file. Raises OSError (ssl.SSLError among them)."""
    if isinstance(connection, PartnerHttp):
        wanted = connection.base_url.startswith("https://")
    else:
        wanted = connection.ca_file is not None
    if not wanted:
        return None
    context = ssl.create_default_context(cafile=data_dir / connection.ca_file if connection.ca_file else None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if connection.client_cert_file is not None and connection.client_key_file is not None:
        files = (data_dir / connection.client_cert_file, data_dir / connection.client_key_file)
        context.load_cert_chain(*files, password="")  # an enciphered key is refused, not asked about
    return context
