"""A change of the configuration is taken up in the end, whichever file kept it back and whenever it was written."""

import datetime as dt
import re
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

import adapters
from gateway import config_watch
from gateway.directory import Directory
from gateway.metrics import CONFIG_REFUSED
from gateway.partners.registry import Registry
from gateway.settings import Settings, SettingsError, load
from tests.conftest import lot
from tests.running import ROOT
from tests.tls import make_certificates
from tests.unit.test_directory import House
from tests.unit.test_directory import house as house  # a fixture

CAP, LESS = "caps = { day = 2, month = 40 }", "caps = { day = 1, month = 20 }"


def shown(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def day_cap(directory: Directory) -> int:
    """Of the benefit that CAP is of."""
    benefits = directory.scenes["dining.till"].benefits
    assert benefits is not None
    return benefits.counters("dining.elder_meal", dt.date(2026, 11, 27))[0].most


@asynccontextmanager
async def working(house: House) -> AsyncIterator[Registry]:
    registry = Registry(house.settings())
    await registry.open()
    try:
        yield registry
    finally:
        await registry.close()


def during_load(monkeypatch: pytest.MonkeyPatch, write: Callable[[], object]) -> None:
    """Somebody writes while the next load is under way, after the files were read."""

    def slow() -> Settings:
        monkeypatch.setattr(config_watch, "load", load)
        settings = load()
        write()
        return settings

    monkeypatch.setattr(config_watch, "load", slow)


def test_all_files_that_are_read_are_watched(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: set[Path] = set()
    really = Path.open

    def watched(path: Path, *args: Any, **kwargs: Any) -> Any:
        opened.add(path)
        return really(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", watched)
    settings = load()
    assert opened == set(settings.stamps) >= set(house.config.glob("*.toml")) and all(settings.stamps.values())


def test_a_removed_caller_is_out_when_the_file_that_still_named_it_is_mended(house: House) -> None:
    directory = Directory(house.settings())
    callers = (house.config / "callers.toml").read_text()
    (house.config / "callers.toml").write_text(re.sub(r"\[callers\.demo-region\]\n(?:[^\[].*\n|\n)*", "", callers))
    with pytest.raises(SettingsError, match=r"anomalies\.toml: .*demo-region"):
        load()
    assert directory.reload_if_changed() is False and "demo-region" in directory.callers
    anomalies = house.config / "anomalies.toml"
    kept = [line for line in anomalies.read_text().splitlines() if "demo-region" not in line]
    anomalies.write_text("\n".join(kept) + "\n")
    assert directory.reload_if_changed() is True and "demo-region" not in directory.callers


def test_a_lower_cap_is_in_force_when_another_file_is_mended(house: House) -> None:
    directory = Directory(house.settings())
    house.edit("anomalies.toml", "refused_min = 8", "refused_min = eight")
    house.edit("benefits.toml", CAP, LESS)
    assert directory.reload_if_changed() is False and day_cap(directory) == 2
    house.edit("anomalies.toml", "refused_min = eight", "refused_min = 8")
    assert directory.reload_if_changed() is True and day_cap(directory) == 1
    assert directory.reload_if_changed() is False


async def test_a_new_merchant_is_connected_when_its_caller_is_there(house: House) -> None:
    (house.config / "partners.toml").write_text("")
    async with working(house) as registry:
        block = lot(house.data).replace('caller = "demo-merchant"', 'caller = "new-shop"')
        (house.config / "partners.toml").write_text(block)
        assert await registry.reload_if_changed() is False and registry.get("lot") is None
        callers = (house.config / "callers.toml").read_text()
        like_it = callers[callers.index("[callers.demo-merchant]") : callers.index("[callers.demo-bank]")]
        (house.config / "callers.toml").write_text(callers + like_it.replace("demo-merchant]", "new-shop]"))
        assert await registry.reload_if_changed() is True and registry.get("lot") is not None


def test_what_was_written_since_the_process_read_the_configuration_is_read(house: House) -> None:
    settings = house.settings()
    house.edit("benefits.toml", CAP, LESS)
    directory = Directory(settings)
    assert day_cap(directory) == 2
    assert directory.reload_if_changed() is True and day_cap(directory) == 1


def test_what_is_written_while_it_is_read_is_read_next(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = Directory(house.settings())
    house.edit("callers.toml", "quota_per_second = 10", "quota_per_second = 110")
    during_load(monkeypatch, lambda: house.edit("benefits.toml", CAP, LESS + "  # since"))
    assert directory.reload_if_changed() is True
    assert directory.callers["demo-limited"].caller.quota_per_second == 110 and day_cap(directory) == 2
    assert directory.reload_if_changed() is True and day_cap(directory) == 1


async def test_a_partner_that_is_written_while_others_are_read_is_read_next(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = house.config / "partners.toml"
    file.write_text("")
    async with working(house) as registry:
        first = lot(house.data)
        second = first.replace("partners.lot", "partners.lot-two").replace('"P-*"', '"Q-*"')
        file.write_text(first)
        during_load(monkeypatch, lambda: file.write_text(first + second))
        assert await registry.reload_if_changed() is True and registry.get("lot-two") is None
        assert await registry.reload_if_changed() is True and registry.get("lot-two") is not None


def test_a_refusal_is_told_once_and_shown_until_it_is_taken_up(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_watch, "_AGAIN_S", 0.0)  # every look tries again
    CONFIG_REFUSED.clear()
    directory = Directory(house.settings())
    refused = shown("yikatong_config_reloads_total", component="directory", result="refused")
    assert REGISTRY.get_sample_value("yikatong_config_refused", {"component": "directory"}) == 0, "there from the start"
    house.edit("callers.toml", "quota_per_second = 10", "quota_per_second = ten")
    with capture_logs() as lines:
        for _ in range(3):
            assert directory.reload_if_changed() is False
        assert shown("yikatong_config_refused", component="directory") == 1
        house.edit("benefits.toml", CAP, "caps = 2")
        for _ in range(3):
            assert directory.reload_if_changed() is False
        house.edit("benefits.toml", "caps = 2", CAP)
        house.edit("callers.toml", "quota_per_second = ten", "quota_per_second = 10")
        assert directory.reload_if_changed() is True
    assert [(line["event"], line["component"], len(line.get("mistakes", ()))) for line in lines] == [
        ("configuration change refused", "directory", 1),
        ("configuration change refused", "directory", 2),
        ("configuration change taken up", "directory", 0),
    ]
    assert shown("yikatong_config_refused", component="directory") == 0
    assert shown("yikatong_config_reloads_total", component="directory", result="refused") == refused + 2


def test_a_refused_change_is_not_read_at_every_look(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A load holds the process; and what is refused there is nobody's change."""
    directory = Directory(house.settings())
    house.edit("anomalies.toml", "refused_min = 8", "refused_min = eight")
    assert directory.reload_if_changed() is False
    with monkeypatch.context() as patched:
        patched.delattr(config_watch, "load")
        assert directory.reload_if_changed() is False


def test_a_refusal_for_a_mistake_of_others_ends_with_it(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing of one's own has changed, too: the alert would stay."""
    monkeypatch.setattr(config_watch, "_AGAIN_S", 0.0)
    directory = Directory(house.settings())
    house.edit("anomalies.toml", "refused_min = 8", "refused_min = eight")
    assert directory.reload_if_changed() is False
    assert shown("yikatong_config_refused", component="directory") == 1
    house.edit("anomalies.toml", "refused_min = eight", "refused_min = 8")
    assert directory.reload_if_changed() is True
    assert shown("yikatong_config_refused", component="directory") == 0
    assert directory.reload_if_changed() is False, "and is not tried again"


def test_the_certificates_that_callers_keys_are_fetched_by_are_watched(house: House) -> None:
    make_certificates(house.data)
    good = (house.data / "ca.pem").read_bytes()
    house.edit("gateway.toml", 'ca_file = ""               #', 'ca_file = "ca.pem" #')
    directory = Directory(house.settings())
    house.edit("benefits.toml", CAP, LESS)
    (house.data / "ca.pem").write_text("no certificates")
    assert directory.reload_if_changed() is False and day_cap(directory) == 2
    (house.data / "ca.pem").write_bytes(good)
    assert directory.reload_if_changed() is True and day_cap(directory) == 1


async def test_a_mistake_that_is_in_no_file_keeps_no_change_back(
    house: House, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (house.config / "partners.toml").write_text("")
    async with working(house) as registry:
        (house.config / "partners.toml").write_text(lot(house.data).replace("merchant_signed_http", "of_tomorrow"))
        assert await registry.reload_if_changed() is False
        shutil.copy(ROOT / "adapters" / "merchant_signed_http.py", tmp_path / "of_tomorrow.py")
        monkeypatch.setattr(adapters, "__path__", [*adapters.__path__, str(tmp_path)])
        assert await registry.reload_if_changed() is False, "not at every look: a load holds the process"
        monkeypatch.setattr(config_watch, "_AGAIN_S", 0.0)
        assert await registry.reload_if_changed() is True and registry.get("lot") is not None


async def test_a_key_file_is_taken_up_when_its_rights_alone_are_mended(house: House) -> None:
    (house.config / "partners.toml").write_text("")
    async with working(house) as registry:
        (house.config / "partners.toml").write_text(lot(house.data))
        (house.data / "lot.key").chmod(0o640)
        assert await registry.reload_if_changed() is False
        (house.data / "lot.key").chmod(0o600)
        assert await registry.reload_if_changed() is True and registry.get("lot") is not None


async def test_a_change_of_others_is_no_change(house: House) -> None:
    """Nothing is told by those who keep nothing of it, and nothing of theirs is made anew."""
    (house.config / "partners.toml").write_text("")
    directory = Directory(house.settings())
    before = directory.callers
    async with working(house) as registry:
        (house.config / "partners.toml").write_text(lot(house.data))
        with capture_logs() as lines:
            assert directory.reload_if_changed() is False and directory.callers is before
            assert await registry.reload_if_changed() is True
            house.edit("anomalies.toml", "refused_min = 8", "refused_min = 5")
            assert directory.reload_if_changed() is False and await registry.reload_if_changed() is False
    assert [line["component"] for line in lines] == ["partners"]
