"""POST /v1/callers/self/keys."""

import msgspec

from gateway.api import signatures
from gateway.api.effects import do_once
from gateway.api.middleware import Call
from gateway.api.payloads import KeyChange, effect_decoder
from gateway.api.reply import Reply
from gateway.flows.rotate_caller_key import Change

_decode = effect_decoder(KeyChange)


async def change_keys(call: Call) -> Reply:
    if call.evidence is None:  # a token alone is not enough to take a caller over, whatever its configuration says
        raise signatures.refused()
    asked: KeyChange = _decode(call.body)
    jwk = None if asked.jwk is None else msgspec.to_builtins(asked.jwk)
    change = Change(call.caller, asked.use, jwk, asked.retire)
    return await do_once(call, call.gateway.rotate_caller_key, change)
