"""The second half of the mutants: something of another form, signed by the right key; and all of them together."""

import base64
import hashlib
import itertools
from collections.abc import Iterator

from tests.api.mutations import (
    Parts,
    Sent,
    bytes_changed,
    digest_of,
    lines_changed,
    moved,
    parts_of,
    signatures_changed,
)
from tests.signing import COMPONENTS, Signing


def signed_otherwise(parts: Parts, other: Signing) -> Iterator[tuple[str, Sent]]:
    """Signed with the caller's own key (but for the last ones), over something else than what is agreed."""
    yield from _other_times(parts)
    yield from _other_parameters(parts)
    yield from _other_names(parts, other)
    yield from _other_components(parts)
    yield from _other_digests(parts)
    for label in ("sig2", "sig", "Sig1", "*", "sig1-a", "pyhms"):
        yield f"label {label}", parts._replace(label=label).sign()
    yield "another caller's key under our name", parts._replace(signing=other._replace(kid=parts.signing.kid)).sign()
    yield "another caller's key and its name", parts_of(other, *parts[1:5]).sign()
    yield (
        "another caller's key and algorithm under our name",
        parts._replace(signing=other, alg=f'"{other.algorithm}"').sign(),
    )


def _other_times(parts: Parts) -> Iterator[tuple[str, Sent]]:
    now = int(parts.created)
    for created in (
        "0",
        "1",
        "-1",
        str(-now),
        str(now - 310),
        str(now + 1000),
        str(now - 86_400),
        str(now + 86_400),
        str(now * 1000),
        "9" * 11,
        "9" * 12,
        "9" * 15,
        "9" * 400,
        f"{now}.0",
        f"0{now}",
        f"+{now}",
        f'"{now}"',
        f"{now}e0",
        "",
        "?1",
        f":{now}:",
        hex(now),
        f"{now} ",
        f" {now}",
        "１" * 10,
        f"{now}_0",
        f"@{now}",
    ):
        yield f"created {created[:30]}", parts._replace(created=created).sign()


def _other_parameters(parts: Parts) -> Iterator[tuple[str, Sent]]:
    now = int(parts.created)
    names = parts.good_params()
    for order in itertools.permutations(names):
        if order != tuple(names):
            yield f"parameters {order}", parts._replace(params="".join(f";{n}={names[n]}" for n in order)).sign()
    whole = "".join(f";{name}={value}" for name, value in names.items())
    for name, value in names.items():
        yield f"no {name}", parts._replace(params=whole.replace(f";{name}={value}", "") or ";x").sign()
        yield f"{name} twice", parts._replace(params=f"{whole};{name}={value}").sign()
        yield f"{name} without a value", parts._replace(params=whole.replace(f"{name}={value}", name)).sign()
        yield f"blank before {name}", parts._replace(params=whole.replace(f";{name}", f"; {name}")).sign()
        yield f"blank behind {name}", parts._replace(params=whole.replace(f"{name}=", f"{name} =")).sign()
        yield f"{name.upper()}", parts._replace(params=whole.replace(f";{name}=", f";{name.upper()}=")).sign()
    for more in (f";expires={now + 60}", f";expires={now - 1}", ';nonce="n"', ";x", ';x="y"', ";", " ", ";created=1"):
        yield f"more: {more}", parts._replace(params=whole + more).sign()
        yield f"more before: {more}", parts._replace(params=more + whole).sign()


def _other_names(parts: Parts, other: Signing) -> Iterator[tuple[str, Sent]]:
    for alg in (
        "hmac-sha256",
        "rsa-pss-sha512",
        "rsa-v1_5-sha256",
        "ecdsa-p384-sha384",
        "none",
        "",
        "ED25519",
        "EdDSA",
        "ES256",
        "x" * 41,
        "sm2-sm3",
        "ed25519",
        "ecdsa-p256-sha256",
    ):
        if alg != parts.signing.algorithm:
            yield f"alg {alg}", parts._replace(alg=f'"{alg}"').sign()
    yield "alg a token", parts._replace(alg=parts.signing.algorithm).sign()
    kid = parts.signing.kid
    for name in (
        other.kid,
        "nobody",
        "",
        kid.upper(),
        kid + "x",
        kid[:-1],
        f"{kid[:-9]}1",
        "x" * 101,
        "x" * 5000,
        "../" + kid,
    ):
        yield f"keyid {name[:30]}", parts._replace(kid=f'"{name}"').sign()
    yield "keyid a token", parts._replace(kid=kid).sign()
    yield "keyid escaped", parts._replace(kid=f'"\\{kid}"').sign()
    for tag in ("yikatong-v2", "", "YIKATONG-V1", "onecard-v1", "yikatong-v1 "):
        yield f"tag {tag}", parts._replace(tag=f'"{tag}"').sign()


def _other_components(parts: Parts) -> Iterator[tuple[str, Sent]]:
    quoted = [f'"{name}"' for name in COMPONENTS]

    def of(items: list[str]) -> Sent:
        return parts._replace(components="(" + " ".join(items) + ")").sign()

    for place, item in enumerate(quoted):
        yield f"{item} not covered", of(quoted[:place] + quoted[place + 1 :])
        yield f"{item} twice", of([*quoted, item])
        yield f"{item} last", of([*(quoted[:place] + quoted[place + 1 :]), item][::-1])
        for parameter in (";sf", ";bs", ";req", ";tr", ';key="sha-256"', ";x=1"):
            yield f"{item}{parameter}", of([*quoted[:place], item + parameter, *quoted[place + 1 :]])
        yield f"{item} in capitals", of([*quoted[:place], item.upper(), *quoted[place + 1 :]])
    for place in range(len(quoted) - 1):
        swapped = quoted.copy()
        swapped[place], swapped[place + 1] = swapped[place + 1], swapped[place]
        yield f"{swapped[place]} before {swapped[place + 1]}", of(swapped)
    for more in ("content-type", "@target-uri", "@scheme", "@request-target", "host", "x-request-id", "content-length"):
        yield f'"{more}" too', of([*quoted, f'"{more}"'])
        yield f'"{more}" too, first', of([f'"{more}"', *quoted])
    yield "nothing covered", parts._replace(components="()").sign()
    for what, text in {
        "two blanks": parts.components.replace(" ", "  "),
        "a blank first": parts.components.replace("(", "( "),
        "a blank last": parts.components.replace(")", " )"),
        "a tab": parts.components.replace(" ", "\t", 1),
    }.items():
        yield f"components with {what}", parts._replace(components=text).sign()


def _other_digests(parts: Parts) -> Iterator[tuple[str, Sent]]:
    body, good = parts.body, digest_of(parts.body)
    raw = good.removeprefix("sha-256=:").removesuffix(":")
    for what, digest in {
        "of another body": digest_of(body + b" "),
        "of nothing": digest_of(b""),
        "sm3 of another body": digest_of(b"", "sm3"),
        "sha-256 under the name sm3": good.replace("sha-256", "sm3"),
        "sm3 under the name sha-256": digest_of(body, "sm3").replace("sm3", "sha-256"),
        "SHA-256": good.replace("sha", "SHA"),
        "sha256": good.replace("-", ""),
        "sha-512": "sha-512=:" + base64.b64encode(hashlib.sha512(body).digest()).decode() + ":",
        "md5": "md5=:" + base64.b64encode(hashlib.md5(body).digest()).decode() + ":",  # noqa: S324 - it must be refused
        "both": f"{good}, {digest_of(body, 'sm3')}",
        "twice": f"{good}, {good}",
        "a wrong one beside": f"{good}, {digest_of(b'', 'sm3')}",
        "a parameter": f"{good};x",
        "without padding": f"sha-256=:{raw.rstrip('=')}:",
        "more padding": f"sha-256=:{raw}=:",
        "a blank": good.replace("=:", "= :", 1),
        "not in colons": f"sha-256={raw}",
        "in hex": f"sha-256=:{hashlib.sha256(body).hexdigest()}:",
        "of the digest": digest_of(hashlib.sha256(body).digest()),
        "cut": "sha-256=:" + base64.b64encode(hashlib.sha256(body).digest()[:16]).decode() + ":",
        "empty": "sha-256=::",
        "url-safe": f"sha-256=:{base64.urlsafe_b64encode(bytes([255] * 32)).decode()}:",
        "the old header's form": raw,
    }.items():
        yield f"digest {what}", parts._replace(digest=digest).sign()


def mutants(parts: Parts, other: Signing) -> dict[str, Sent]:
    """All of them by name; none is the good request."""
    good = parts.sign()
    path = parts.target.partition("?")[0].encode()
    found = dict(
        itertools.chain(
            bytes_changed(good),
            moved(good, path),
            lines_changed(good),
            signatures_changed(good, parts.signing.algorithm),
            signed_otherwise(parts, other),
        )
    )
    assert good not in found.values()
    return found
