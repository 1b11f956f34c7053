"""Planted bug: a partner's answer is read as far as it goes."""

import aiohttp

from gateway.partners.transport_http import HttpTransport


async def read(self: HttpTransport, response: aiohttp.ClientResponse) -> bytes:
    return await response.read()


setattr(HttpTransport, "_read", read)  # noqa: B010
