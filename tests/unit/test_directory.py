"""The callers and scenes in force: a change is taken whole or not at all."""

import datetime as dt
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from gateway.crypto import ed25519_points
from gateway.crypto.signatures import verify
from gateway.directory import QUOTA_SLOTS, Directory, quota_slot
from gateway.domain.benefits import Entitled, Facts
from gateway.domain.callers import KeyPurpose
from gateway.sandbox.callers import write_callers
from gateway.settings import Settings, SettingsError, load
from tests.jwks import ANYBODYS, FOR_OTHERS, FORGED, UNFIT, UNFIT_KIDS
from tests.running import ROOT

MERCHANT = "sandbox/callers/public/demo-merchant.json"


class House:
    """A configuration and its data folder."""

    def __init__(self, folder: Path) -> None:
        self.config, self.data = folder / "config", folder / "data"
        shutil.copytree(ROOT / "config", self.config)
        self.environment = {"CONFIG_DIR": str(self.config), "DATA_DIR": str(self.data)}
        write_callers(self.settings())

    def settings(self) -> Settings:
        return load(self.environment)

    def edit(self, name: str, old: str, new: str) -> None:
        file = self.config / name
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new, 1))

    def link_to_itself(self, name: str) -> None:
        """Stands for any failure of the file system."""
        (self.config / name).unlink()
        (self.config / name).symlink_to(self.config / name)

    def keys(self, name: str = "demo-merchant") -> dict[str, Any]:
        return dict(json.loads((self.data / "sandbox" / "callers" / "public" / f"{name}.json").read_text()))

    def put_keys(self, document: Any, name: str = "demo-merchant") -> None:
        text = document if isinstance(document, str) else json.dumps(document)
        (self.data / "sandbox" / "callers" / "public" / f"{name}.json").write_text(text)


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    house = House(tmp_path)
    for name, value in house.environment.items():
        monkeypatch.setenv(name, value)
    return house


def counted(result: str) -> float:
    return (
        REGISTRY.get_sample_value("yikatong_config_reloads_total", {"component": "directory", "result": result}) or 0.0
    )


def test_nothing_is_read_again_while_nothing_changes(house: House) -> None:
    directory = Directory(house.settings())
    before = directory.callers
    assert directory.reload_if_changed() is False and directory.callers is before


def test_a_change_is_taken_up_once(house: House) -> None:
    directory, taken = Directory(house.settings()), counted("taken")
    house.edit("callers.toml", "quota_per_second = 10", "quota_per_second = 11")
    house.edit("scenes.toml", 'field = "hotel"', 'field = "lodging"')
    assert directory.reload_if_changed() is True
    assert directory.callers["demo-limited"].caller.quota_per_second == 11
    assert directory.scenes["hotel.checkin"].field == "lodging"
    assert directory.reload_if_changed() is False
    assert counted("taken") == taken + 1


def test_a_new_scene_and_its_benefit_are_taken_up_together(house: House) -> None:
    """Adding them is a change of data; a scene of before gets its new benefit too."""
    directory = Directory(house.settings())
    holder = Facts(30, "third_gen", "330424", dt.date(2026, 11, 23))
    with (house.config / "scenes.toml").open("a") as scenes:
        scenes.write('[scenes."pool.entry"]\nname = "游泳馆"\nfield = "pool"\ncallers = ["merchant"]\nmoney = true\n')
    with (house.config / "benefits.toml").open("a") as benefits:
        benefits.write(
            '[benefits."pool.cheap"]\nname = "游泳优惠"\nscenes = ["pool.entry", "market.till"]\n'
            "discount = { percent = 20 }\ncaps = { day = 1 }\n"
        )
    assert directory.scenes["market.till"].benefits is None
    assert directory.reload_if_changed()
    for scene in ("pool.entry", "market.till"):
        found = directory.scenes[scene]
        assert found.money and found.benefits is not None
        assert found.benefits.entitled(holder) == Entitled((), ("pool.cheap",))
    taken = directory.scenes
    house.edit("benefits.toml", "percent = 20", "percent = 200")
    assert not directory.reload_if_changed() and directory.scenes is taken, "the last good state stays"


def test_rotated_keys_are_taken_up(house: House) -> None:
    """First the old and the new one together, then the new one alone."""
    directory = Directory(house.settings())
    old, new = house.keys()["keys"][0], house.keys("demo-kiosk")["keys"][0]
    house.put_keys({"keys": [old, new]})
    assert directory.reload_if_changed()
    assert [key.kid for key in directory.callers["demo-merchant"].keys] == [old["kid"], new["kid"]]
    house.put_keys({"keys": [new]})
    assert directory.reload_if_changed()
    assert [key.kid for key in directory.callers["demo-merchant"].keys] == [new["kid"]]


BROKEN: dict[str, Callable[[House], object]] = {
    "not TOML": lambda h: (h.config / "callers.toml").write_text("= ["),
    "not UTF-8": lambda h: (h.config / "callers.toml").write_bytes(b'a = "\xff"'),
    "nested without end": lambda h: (h.config / "callers.toml").write_text("callers = " + "[" * 3000),
    "gone": lambda h: (h.config / "scenes.toml").unlink(),
    "benefits gone": lambda h: (h.config / "benefits.toml").unlink(),
    "callers that are a number": lambda h: (h.config / "callers.toml").write_text("callers = 3\n"),
    "an unknown scope": lambda h: h.edit("callers.toml", '"usage:write"', '"usage:wipe"'),
    "a link to itself": lambda h: h.link_to_itself("callers.toml"),
    "keys in a file that cannot be": lambda h: h.edit("callers.toml", MERCHANT, "a\\u0000b"),
    "keys gone": lambda h: (h.data / MERCHANT).unlink(),
    "keys that are not JSON": lambda h: h.put_keys("{"),
    "keys that are nested without end": lambda h: h.put_keys('{"keys":' * 5000),
    "keys that are a list": lambda h: h.put_keys([]),
    "no keys": lambda h: h.put_keys({"keys": []}),
    "three keys": lambda h: h.put_keys({"keys": [h.keys(name)["keys"][0] for name in
                                                 ("demo-merchant", "demo-kiosk", "demo-transit")]}),
    "the same kid twice": lambda h: h.put_keys({"keys": h.keys()["keys"] * 2}),
    "a key of another algorithm": lambda h: h.put_keys(h.keys("demo-bank")),
    "a private key": lambda h: h.put_keys({"keys": [h.keys()["keys"][0] | {"d": "AAAA"}]}),
    "a key without a kid": lambda h: h.put_keys({"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "AAAA"}]}),
    "a key too short": lambda h: h.put_keys({"keys": [h.keys()["keys"][0] | {"x": "AAAA"}]}),
    "a key that is no text": lambda h: h.put_keys({"keys": [h.keys()["keys"][0] | {"x": 1}]}),
    "a point that is not on the curve": lambda h: h.put_keys(
        {"keys": [h.keys("demo-bank")["keys"][0] | {"y": "A" * 43}]}, "demo-bank"
    ),
    "keys that are huge": lambda h: h.put_keys(json.dumps(h.keys()) + " " * 70_000),
}  # fmt: skip


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_change_leaves_everything_as_it_was(house: House, how: str) -> None:
    directory, refused = Directory(house.settings()), counted("refused")
    before = directory.callers, directory.scenes
    house.edit("callers.toml", "quota_per_second = 10", "quota_per_second = 11")
    BROKEN[how](house)
    assert directory.reload_if_changed() is False
    assert directory.callers is before[0] and directory.scenes is before[1]
    assert directory.callers["demo-limited"].caller.quota_per_second == 10
    assert counted("refused") == refused + 1


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_configuration_does_not_start_and_is_named(house: House, how: str) -> None:
    BROKEN[how](house)
    with pytest.raises(SettingsError) as caught:
        Directory(house.settings())
    assert all(
        mistake.startswith(("callers.toml: ", "scenes.toml: ", "benefits.toml: ")) for mistake in caught.value.mistakes
    )
    assert '"d"' not in str(caught.value) and "AAAA" not in str(caught.value)


def test_the_key_that_is_wrong_is_named(house: House) -> None:
    good = house.keys()["keys"][0]
    house.put_keys({"keys": [good, good | {"kid": "second", "x": "AAAA"}]})
    with pytest.raises(SettingsError, match=r"keys_file: .*: key 'second': the key is malformed"):
        Directory(house.settings())


UNFIT_IN_FILES = UNFIT | {name: (change, f"see its {name}") for name, change in FOR_OTHERS.items()}


@pytest.mark.parametrize("file", ["keys_file", "signing_keys_file"])
@pytest.mark.parametrize("how", UNFIT_IN_FILES)
def test_an_unfit_key_of_a_file_is_named_with_its_caller(house: House, file: str, how: str) -> None:
    """By check-config, which does this, and at the start."""
    name = "demo-merchant" if file == "keys_file" else "demo-merchant.signing"
    change, said = UNFIT_IN_FILES[how]
    house.put_keys({"keys": [house.keys(name)["keys"][0] | {"kid": "unfit"} | change]}, name)
    with pytest.raises(SettingsError) as caught:
        Directory(house.settings())
    (mistake,) = caught.value.mistakes
    assert (
        mistake.startswith(f"callers.toml: callers.demo-merchant.{file}: ") and f"{name}.json: key 'unfit'" in mistake
    )
    assert said in mistake and str(change.get("x", "no x")) not in mistake


def kept_the_last_good(directory: Directory, house: House) -> str:
    """The one mistake of the configuration as it is now: said at a start, and a running directory stays as it was."""
    before = directory.callers
    assert directory.reload_if_changed() is False and directory.callers is before
    with pytest.raises(SettingsError) as caught:
        Directory(house.settings())
    (mistake,) = caught.value.mistakes
    return mistake


@pytest.mark.parametrize("kid", UNFIT_KIDS)
def test_a_signing_key_of_a_file_has_a_kid_that_a_signature_can_name(house: House, kid: str) -> None:
    directory = Directory(house.settings())
    house.put_keys({"keys": [house.keys("demo-merchant.signing")["keys"][0] | {"kid": kid}]}, "demo-merchant.signing")
    mistake = kept_the_last_good(directory, house)
    assert mistake.startswith("callers.toml: callers.demo-merchant.signing_keys_file: ")
    assert mistake.endswith(f'key {kid[:100]!r}: its kid has to be 1 to 100 visible ASCII characters without " and \\')
    assert directory.callers["demo-merchant"].holds(KeyPurpose.SIGNING, "demo-merchant-signing-1")


@pytest.mark.parametrize("kid", ['bureau_"2026"', "a\\b", "bureau key 1", "人社局-1"])
def test_a_token_key_of_a_file_has_any_printable_kid(house: House, kid: str) -> None:
    """It stands in a JWT, as text."""
    house.put_keys({"keys": [house.keys()["keys"][0] | {"kid": kid}]})
    assert Directory(house.settings()).callers["demo-merchant"].token_kids == {kid}


@pytest.mark.parametrize("kid", ["a\nb", "a\0b", "", "k" * 101])
def test_a_token_key_of_a_file_has_no_other_kid(house: House, kid: str) -> None:
    """PostgreSQL takes no NUL: asking for such a kid would fail for the keys of all."""
    directory = Directory(house.settings())
    house.put_keys({"keys": [house.keys()["keys"][0] | {"kid": kid}]})
    assert kept_the_last_good(directory, house).endswith("its kid has to be 1 to 100 printable characters")


def test_a_key_is_not_in_both_files(house: House) -> None:
    directory = Directory(house.settings())
    house.put_keys({"keys": [house.keys()["keys"][0] | {"kid": "s-1"}]}, "demo-merchant.signing")
    mistake = kept_the_last_good(directory, house)
    assert mistake.startswith("callers.toml: callers.demo-merchant.signing_keys_file: ")
    assert mistake.endswith("key 's-1': it is in keys_file too: each use needs keys of its own")


def test_without_the_check_a_key_of_no_owner_would_be_in_force(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the test above: what anybody can write is taken for the caller's signature."""
    monkeypatch.setattr(ed25519_points, "refuse_unfit", lambda encoded: None)
    for name in ("demo-merchant", "demo-kiosk.signing"):
        house.put_keys({"keys": [house.keys(name)["keys"][0] | {"x": ANYBODYS}]}, name)
    callers = Directory(house.settings()).callers
    keys = *callers["demo-merchant"].keys, *callers["demo-kiosk"].signing_keys
    assert len(keys) == 2 and all(verify(key, b"pay me", FORGED) for key in keys)


def test_a_repaired_change_is_taken_up(house: House) -> None:
    directory = Directory(house.settings())
    house.edit("callers.toml", "quota_per_second = 10", "quota_per_second = ten")
    assert directory.reload_if_changed() is False
    house.edit("callers.toml", "quota_per_second = ten", "quota_per_second = 12")
    assert directory.reload_if_changed() is True
    assert directory.callers["demo-limited"].caller.quota_per_second == 12


def test_callers_with_a_quota_have_slots_of_their_own(house: House) -> None:
    slots: dict[int, str] = {}
    for number in range(5000):
        name = f"caller-{number}"
        other = slots.setdefault(quota_slot(name), name)
        if other != name:
            break
    assert 0 <= quota_slot(name) == quota_slot(other) < QUOTA_SLOTS and name != other
    block = '\n[callers.{}]\nname = "x"\nkind = "merchant"\nscopes = []\nalgorithm = "EdDSA"\nquota_per_second = 1\n'
    with (house.config / "callers.toml").open("a") as stream:
        stream.write("".join(f'{block.format(name)}keys_file = "{MERCHANT}"\n' for name in (name, other)))
    with pytest.raises(SettingsError, match="shares its quota slot"):
        Directory(house.settings())
