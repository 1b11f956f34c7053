"""Settings: every mistake is named by its path, and nothing starts with one."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from gateway.domain.masking import Secret
from gateway.settings import ENVIRONMENT, SettingsError, load
from tests.running import ROOT

Change = Callable[[str], str]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "config", tmp_path / "config")
    return tmp_path / "config"


def mistakes_of(config: Path, **environment: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load({"CONFIG_DIR": str(config)} | environment)
    assert str(caught.value) == "\n".join(caught.value.mistakes)
    return caught.value.mistakes


def edit(file: Path, change: Change) -> None:
    text = file.read_text()
    changed = change(text)
    assert changed != text, "the file does not hold what was to be changed"
    file.write_text(changed)


def test_the_configuration_that_is_shipped_is_good(config: Path) -> None:
    settings = load({"CONFIG_DIR": str(config)})
    assert settings.config_dir == config
    assert set(settings.callers) == {
        "demo-merchant", "demo-bank", "demo-transit", "demo-talent", "demo-kiosk", "demo-bureau", "demo-region",
        "demo-limited",
    }  # fmt: skip
    assert {name for name, caller in settings.callers.items() if caller.quota_per_second} == {"demo-limited"}
    assert {caller.kind for caller in settings.callers.values()} >= {"merchant", "bank", "transit", "talent"}


SCENES = (
    "parking.entry parking.exit hotel.checkin dining.till market.till transit.bus transit.metro library.loan"
    " scenic.entry medical.window bank.counter gov.window exam.checkin talent.service kiosk.service region.visit"
)
SCOPES = {
    "demo-merchant": "cards:verify payments:write points:read",
    "demo-bank": "cards:verify usage:write cards:loss cards:issue",
    "demo-transit": "cards:verify transit:read transit:write",
    "demo-talent": "cards:verify talent:check",
    "demo-kiosk": "cards:verify cards:loss points:read points:write",
    "demo-bureau": "usage:read indicators:read cards:loss cards:issue",
    "demo-region": "cards:verify",
}


def test_the_sandbox_has_the_scenes_and_scopes_of_the_contract() -> None:
    """api.md, The sandbox."""
    settings = load({})
    assert set(SCENES.split()) <= set(settings.scenes)
    assert {name: set(settings.callers[name].scopes) for name in SCOPES} == {
        name: set(scopes.split()) for name, scopes in SCOPES.items()
    }


def replace(old: str, new: str) -> Change:
    return lambda text: text.replace(old, new, 1)


def append(more: str) -> Change:
    return lambda text: text + more


MISTAKES: dict[str, tuple[str, Change, str]] = {
    "a port that is no number": ("gateway.toml", replace("port = 8080", 'port = "http"'), "http.port"),
    "a port out of range": ("gateway.toml", replace("port = 8080", "port = 70000"), "http.port"),
    "a port with a fraction": ("gateway.toml", replace("port = 8080", "port = 80.5"), "http.port"),
    "a header timeout beyond the promise": ("gateway.toml", replace("= 14", "= 16"), "http.header_timeout_s"),
    "a body timeout beyond the promise": (
        "gateway.toml", replace("body_timeout_s = 15", "body_timeout_s = 21"), "http.body_timeout_s"
    ),
    "an acquire timeout beyond the promise": ("gateway.toml", replace("= 250", "= 251"), "database.acquire_timeout_ms"),
    "no pool": ("gateway.toml", replace("pool_size = 4", "pool_size = 0"), "database.pool_size"),
    "a missing value": ("gateway.toml", replace("pool_size = 4", ""), "database.pool_size"),
    "a missing table": ("gateway.toml", replace("[tokens]", "[tokenz]"), "tokens"),
    "an unknown value": ("gateway.toml", replace("[tokens]", "quue_max = 5\n[tokens]"), "effects.quue_max"),
    "an unknown table": ("gateway.toml", append("\n[more]\n"), "more"),
    "an unknown value at the top": ("gateway.toml", replace("keys_dir =", "key_dir = 1\nkeys_dir ="), "key_dir"),
    "a table that is a number": (
        "gateway.toml", lambda text: "ops = 1\n" + text.replace('[ops]\nhost = "127.0.0.1"\nport = 9090\n', ""), "ops"
    ),
    "an unknown log level": ("gateway.toml", replace('"info"', '"loud"'), "log_level"),
    "a cipher we do not have": ("gateway.toml", replace('"SM4-GCM"', '"SM4-ECB"'), "sealing.algorithm"),
    "a slow lane without threads": ("gateway.toml", replace("threads = 1", "threads = 0"), "sm2.threads"),
    "rejects that are not kept": (
        "gateway.toml", replace("rejects_days = 400", "rejects_days = 0"), "usage_return.rejects_days"
    ),
    "dead letters that are kept for ever": (
        "gateway.toml", replace("dead_letters_days = 400", ""), "outbox.dead_letters_days"
    ),
    "a slow lane without an end": ("gateway.toml", replace("waiting_max = 100", ""), "sm2.waiting_max"),
    "a flag that is a text": (
        "callers.toml", append('[callers.demo-more]\nenabled = "yes"\n'), "callers.demo-more.enabled"
    ),
    "an unknown kind": ("callers.toml", replace('kind = "bank"', 'kind = "mafia"'), "callers.demo-bank.kind"),
    "an unknown scope": ("callers.toml", replace('"usage:write"', '"usage:wipe"'), "callers.demo-bank.scopes"),
    "an algorithm we do not take": ("callers.toml", replace('"ES256"', '"HS256"'), "callers.demo-bank.algorithm"),
    "a caller without a name": ("callers.toml", replace('"示范银行(合成)"', '""'), "callers.demo-bank.name"),
    "a caller without keys": (
        "callers.toml", replace('keys_file = "sandbox/callers/public/demo-bank.json"', ""),
        "callers.demo-bank.keys_file",
    ),
    "a negative quota": ("callers.toml", replace("quota_per_second = 10", "quota_per_second = -1"),
                         "callers.demo-limited.quota_per_second"),
    "an unknown value of a caller": (
        "callers.toml", replace("quota_per_second = 10", "quota = 10"), "callers.demo-limited.quota"
    ),
    "an id in capitals": ("callers.toml", replace("[callers.demo-bank]", "[callers.Demo]"), "callers.Demo"),
    "an id with a line break": ("callers.toml", replace("[callers.demo-bank]", '[callers."ab\\n"]'), "callers.ab\n"),
    "an unknown table of callers": ("callers.toml", append("\n[caller.x]\n"), "caller"),
    "callers that are a number": ("callers.toml", lambda _: "callers = 3\n", "callers"),
    "callers that are a list": ("callers.toml", lambda _: "callers = []\n", "callers"),
    "a caller that is a number": ("callers.toml", lambda text: f"callers.demo-x = 3\n{text}", "callers.demo-x"),
    "a scene's field in capitals": ("scenes.toml", replace('field = "hotel"', 'field = "Hotel"'),
                                    'scenes.hotel.checkin.field'),
    "an unknown medium": ("scenes.toml", append('[scenes."a.b"]\nname="x"\nfield="y"\ncallers=[]\nmedia=["fax"]\n'),
                          "scenes.a.b.media"),
    "money that is a word": ("scenes.toml", replace("money = true", 'money = "yes"'), "scenes.parking.exit.money"),
    "a benefit of no scene": ("benefits.toml", replace('["parking.exit"]', '["parking.lot"]'),
                              "benefits.parking.first_hour_free.scenes"),
    "a benefit without scenes": ("benefits.toml", replace('["parking.exit"]', "[]"),
                                 "benefits.parking.first_hour_free.scenes"),
    "a benefit without a dot": ("benefits.toml", append('[benefits.free]\nname="x"\nscenes=["parking.exit"]\n'),
                                "benefits.free"),
    "a discount of two kinds": ("benefits.toml", replace("{ fen = 500 }", "{ fen = 500, free = true }"),
                                "benefits.parking.first_hour_free.discount"),
    "a discount of 101 percent": ("benefits.toml", replace("percent = 10", "percent = 101"),
                                  "benefits.hotel.member_rate.discount.percent"),
    "half a fen": ("benefits.toml", replace("fen = 500", "fen = 0.5"), "benefits.parking.first_hour_free.discount.fen"),
    "an unknown condition": ("benefits.toml", replace("age_from = 60", "age_form = 60"),
                             "benefits.dining.elder_meal.age_form"),
    "an age band that ends before it begins": ("benefits.toml", replace("age_to = 69", "age_to = 59"),
                                               "benefits.transit.elder_half.age_to"),
    "a region of five digits": ("benefits.toml", replace('"330424"', '"33042"'), "benefits.dining.elder_meal.regions"),
    "caps of nothing": ("benefits.toml", replace("{ day = 2, month = 40 }", '{ per = "card" }'),
                        "benefits.dining.elder_meal.caps"),
    "a cap of nobody's": ("benefits.toml", replace("day = 2,", 'day = 2, per = "household",'),
                          "benefits.dining.elder_meal.caps.per"),
    "no day": ("benefits.toml", replace("2026-01-01", '"2026-02-30"'), "benefits.scenic.resident_free.valid_from"),
    "an end before the beginning": ("benefits.toml", replace("valid_from = 2026-01-01",
                                    "valid_from = 2026-01-01\nvalid_to = 2025-12-31"),
                                    "benefits.scenic.resident_free.valid_to"),
    "a scene's points without a limit": (
        "scenes.toml", replace("{ per_yuan = 1, daily_max = 50 }", "{ per_yuan = 1 }"),
        "scenes.parking.exit.points.daily_max",
    ),
    "an item that is money": ("points.toml", replace('"goods"', '"cash"'), "items.rice-5kg.kind"),
    "an item for nothing": ("points.toml", replace("points = 300", "points = 0"), "items.rice-5kg.points"),
    "an item in capitals": ("points.toml", replace('[items."rice-5kg"]', '[items."Rice"]'), "items.Rice"),
    "an item that is not there": ("points.toml", replace('["rice-5kg"', '["rice-9kg"'), "outlets.wuyuan-01.items"),
    "an outlet of nobody": ("points.toml", replace('"demo-kiosk"', '"demo-desk"'), "outlets.wuyuan-01.caller"),
    "an outlet of one who may not": ("points.toml", replace('"demo-kiosk"', '"demo-bank"'), "outlets.wuyuan-01.caller"),
    "an outlet where no card is taken": (
        "points.toml", replace('scene = "points.redeem"', 'scene = "bank.counter"'), "outlets.wuyuan-01.caller"
    ),
    "two senders with one folder": (
        "gateway.toml",
        append('[usage_return.files.demo-kiosk]\nencoding = "gbk"\nfolder = "usage-files/demo-bank/"\n'),
        "usage_return.files.demo-kiosk.folder",
    ),
    "a rule that is no flag": (
        "anomalies.toml", replace("enabled = true", "enabled = 1"), "two_places.enabled"
    ),
    "a rule without its number": ("anomalies.toml", replace("refused_min = 8", ""), "refusals.refused_min"),
    "a rule that nobody knows": ("anomalies.toml", append("\n[more]\n"), "more"),
    "a number of cards below one": (
        "anomalies.toml", replace('"market.till" = 30', '"market.till" = 0'), "many_cards.cards_min"
    ),
    "more cards than are remembered": (
        "anomalies.toml", replace('"market.till" = 30', '"market.till" = 501'), "many_cards.cards_min"
    ),
    "cards at no scene": ("anomalies.toml", replace('"market.till" =', '"market.tell" ='), "many_cards.cards_min"),
    "points of no scene": ("anomalies.toml", replace('["market.till"', '["market.tell"'), "points_farming.scenes"),
    "slots that do not fill a day": (
        "anomalies.toml", replace("slot_minutes = 30", "slot_minutes = 31"), "sudden_volume.slot_minutes"
    ),
    "a town off the earth": ("anomalies.toml", replace("latitude = 30.53", "latitude = 91"), "towns.武原.latitude"),
    "an outlet in no town": ("anomalies.toml", replace('town = "武原"', 'town = "武元"'), "outlets.WY-MK.town"),
    "an outlet of no caller": ("anomalies.toml", replace('["demo-merchant", "demo-bank"]', '["demo-shop"]'),
                               "outlets.WY-MK.callers"),
    "terminals of two outlets": ("anomalies.toml", replace('"WY-DN-*"', '"WY-MK-*"'), "outlets.WY-DN.terminals"),
    "terminals that are all": ("anomalies.toml", replace('"WY-MK-*"', '"*"'), "outlets.WY-MK.terminals"),
    "points at no scene": ("points.toml", replace('"points.redeem"', '"points.spend"'), "scene"),
    "points that are good for ever": ("points.toml", replace("valid_months = 24", ""), "valid_months"),
    "a scene without a dot": ("scenes.toml", append('[scenes.pool]\nname="x"\nfield="y"\ncallers=[]\n'), "scenes.pool"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_by_its_file_and_path(config: Path, name: str) -> None:
    file, change, path = MISTAKES[name]
    edit(config / file, change)
    assert any(mistake.startswith(f"{file}: {path}: ") for mistake in mistakes_of(config)), mistakes_of(config)


def test_all_mistakes_are_named_at_once(config: Path) -> None:
    for file, change, _ in (MISTAKES[name] for name in ("no pool", "an unknown log level", "an unknown kind")):
        edit(config / file, change)
    edit(config / "scenes.toml", replace('field = "hotel"', 'field = "Hotel"'))
    starts = [mistake.rsplit(": ", 1)[0] for mistake in mistakes_of(config)]
    assert len(starts) == 4
    assert {start.split(": ")[1] for start in starts} == {
        "database.pool_size", "log_level", "callers.demo-bank.kind", "scenes.hotel.checkin.field",
    }  # fmt: skip


@pytest.mark.parametrize(
    "file", ["gateway.toml", "callers.toml", "scenes.toml", "benefits.toml", "points.toml", "anomalies.toml"]
)
@pytest.mark.parametrize("how", ["missing", "not TOML", "not UTF-8", "a long number", "a folder", "not ours to read"])
def test_a_file_that_cannot_be_read_is_named(config: Path, file: str, how: str) -> None:
    path = config / file
    if how == "not ours to read":
        # root may read everything: a link in a circle stands for any other failure of the system
        path.unlink()
        path.symlink_to(path)
    elif how in ("missing", "a folder"):
        path.unlink()
        if how == "a folder":
            path.mkdir()
    else:
        path.write_bytes({"not TOML": b"= [", "not UTF-8": b'a = "\xff"'}.get(how, b"a = " + b"9" * 5000))
    assert any(mistake.startswith(f"{file}: ") for mistake in mistakes_of(config))


PLATFORM = """
[partners.cards-of-all]
name = "平台(合成)"
adapter = "ecard_platform"
operations = ["verify_ecard_code", "notify_loss"]
http = { base_url = "http://127.0.0.1:9" }
"""
OVERRIDES = {
    "HOST": ("10.0.0.1", "10.0.0.1"), "PORT": ("8081", 8081), "WORKERS": ("3", 3), "ISSUER": ("https://g.example",) * 2,
    "OPS_HOST": ("10.0.0.1", "10.0.0.1"), "OPS_PORT": ("9091", 9091), "DATABASE_URL": ("postgresql:///x",) * 2,
    "DATA_DIR": ("elsewhere", "elsewhere"), "KEYS_DIR": ("secret", "secret"), "LOG_LEVEL": ("debug", "debug"),
    "ECARD_PARTNER": ("cards-of-all", "cards-of-all"),
    "LOSS_ROUTES": ('{"a-bank": "cards-of-all"}', {"a-bank": "cards-of-all"}),
    "OUTBOX_ENABLED": ("false", False),
}  # fmt: skip


@pytest.mark.parametrize("name", ENVIRONMENT)
def test_the_environment_goes_before_the_file(config: Path, name: str) -> None:
    text, value = OVERRIDES[name]
    (config / "partners.toml").write_text(PLATFORM)
    found = load({"CONFIG_DIR": str(config), name: text}).gateway
    for key in ENVIRONMENT[name]:
        found = getattr(found, key)
    assert (found.reveal() if isinstance(found, Secret) else found) == value


@pytest.mark.parametrize(
    ("name", "text", "path"),
    [
        ("PORT", "http", "http.port"), ("PORT", "", "http.port"), ("PORT", "0", "http.port"),
        ("PORT", "80.5", "http.port"), ("WORKERS", "65", "http.workers"), ("OPS_PORT", "x", "ops.port"),
        ("LOG_LEVEL", "loud", "log_level"), ("LOSS_ROUTES", "a-bank=x", "losses.routes"),
        ("LOSS_ROUTES", '["x"]', "losses.routes"), ("LOSS_ROUTES", '{"a-bank": 1}', "losses.routes"),
        ("LOSS_ROUTES", "[" * 100_000, "losses.routes"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_environment_is_named_too(config: Path, name: str, text: str, path: str) -> None:
    (mistake,) = mistakes_of(config, **{name: text})
    assert mistake.startswith(f"gateway.toml: {path}: ")


@pytest.mark.parametrize("name", ENVIRONMENT)
def test_what_is_no_text_in_the_environment_is_named(config: Path, name: str) -> None:
    assert mistakes_of(config, **{name: '{"\udc80": "x"}'}) == [f"the environment: {name}: not UTF-8"]


def test_the_environment_meets_a_file_of_another_shape(config: Path) -> None:
    (config / "gateway.toml").write_text("http = 3\n")
    assert any(mistake.startswith("gateway.toml: http: ") for mistake in mistakes_of(config, PORT="8081"))


def test_what_follows_from_the_settings(config: Path, tmp_path: Path) -> None:
    plain = load({"CONFIG_DIR": str(config), "DATA_DIR": str(tmp_path), "PORT": "8081"})
    assert plain.issuer == "http://127.0.0.1:8081"
    assert plain.keys_dir == tmp_path / "keys"
    assert plain.metrics_dir.is_relative_to(plain.run_dir) and plain.run_dir.is_relative_to(tmp_path)
    elsewhere = load({"CONFIG_DIR": str(config), "ISSUER": "https://g.example", "KEYS_DIR": "/keys"})
    assert (elsewhere.issuer, elsewhere.keys_dir) == ("https://g.example", Path("/keys"))


def test_the_password_of_the_database_does_not_show(config: Path) -> None:
    settings = load({"CONFIG_DIR": str(config), "DATABASE_URL": "postgresql://u:s3cr3t@h/x"})
    assert "s3cr3t" not in f"{settings!r} {settings} {settings.gateway.database}"
    with pytest.raises(TypeError):
        msgspec.json.encode(settings.gateway.database)


BLOCK = """
[partners.platform]
name = "x"
adapter = "ecard_platform"
operations = ["scan_login"]
http = { base_url = "https://x.example" }
"""


def test_a_bank_is_reached_by_a_partner_that_can_undo_what_it_does(config: Path) -> None:
    routed = BLOCK.replace("partners.platform", "partners.bank-haiyan").replace('"scan_login"', '"purchase"')
    (config / "partners.toml").write_text(routed)
    path = "gateway.toml: payments.routes.bank-haiyan: partners.bank-haiyan.operations lacks "
    assert mistakes_of(config) == [path + "reverse"]
    edit(config / "partners.toml", lambda text: text.replace('"purchase"', '"scan_login"'))
    assert mistakes_of(config) == [path + "purchase", path + "reverse"]
    edit(config / "partners.toml", lambda text: text.replace('"scan_login"', '"purchase", "reverse"'))
    load({"CONFIG_DIR": str(config)})


def test_the_platform_of_ecards_is_a_partner_that_can_be_asked(config: Path) -> None:
    path = "gateway.toml: verify.ecard_partner: "
    edit(config / "gateway.toml", lambda text: text.replace('ecard_partner = ""', 'ecard_partner = "platform"'))
    assert mistakes_of(config) == [path + "no such partner in partners.toml"]
    (config / "partners.toml").write_text(BLOCK)
    assert mistakes_of(config) == [path + "partners.platform.operations lacks verify_ecard_code"]
    edit(config / "partners.toml", lambda text: text.replace("scan_login", "verify_ecard_code"))
    assert load({"CONFIG_DIR": str(config)}).gateway.verify.ecard_partner == "platform"
    edit(config / "partners.toml", lambda text: text.replace("[partners.platform]", "[partners.platform]\nwrong = 1"))
    assert mistakes_of(config) == ["partners.toml: partners.platform.wrong: unknown key"], "and no more than that"


def test_who_takes_loss_notices_is_a_partner_that_can(config: Path) -> None:
    path = "gateway.toml: losses.routes.bank-x: "
    edit(config / "gateway.toml", lambda text: text.replace("routes = {}", 'routes = { bank-x = "platform" }'))
    assert mistakes_of(config) == [path + "no such partner in partners.toml"]
    (config / "partners.toml").write_text(BLOCK)
    assert mistakes_of(config) == [path + "partners.platform.operations lacks notify_loss"]
    edit(config / "partners.toml", lambda text: text.replace("scan_login", "notify_loss"))
    assert load({"CONFIG_DIR": str(config)}).gateway.losses.routes == {"bank-x": "platform"}


def test_a_subscriber_of_the_feed_is_a_partner_that_takes_usage(config: Path) -> None:
    assert load({"CONFIG_DIR": str(config)}).gateway.outbox.subscribers.keys() == {"bureau", "province"}
    path = "gateway.toml: outbox.subscribers"
    missing = [f"{path}.{name}.partner: no such partner in partners.toml" for name in ("bureau", "province")]
    assert mistakes_of(config, OUTBOX_ENABLED="true") == missing
    (config / "partners.toml").write_text(BLOCK.replace("[partners.platform]", "[partners.bureau]"))
    lacks = f"{path}.bureau.partner: partners.bureau.operations lacks deliver_usage"
    assert mistakes_of(config, OUTBOX_ENABLED="true") == [lacks, missing[1]]
    edit(config / "gateway.toml", lambda text: text.replace("[outbox.subscribers.bureau]", "[outbox.subscribers.BJ]"))
    assert mistakes_of(config) == [f"{path}.BJ: a key must match ^[a-z][a-z0-9-]{{1,39}}$"]


@pytest.mark.parametrize(
    ("url", "good"),
    [
        ("", True), ("tls://nats.example:4222", True), ("nats://127.0.0.1:4222", True), ("nats://localhost", True),
        ("nats://nats.example:4222", False), ("nats://127.0.0.1.example", False), ("tls://user:word@nats", False),
    ],
)  # fmt: skip
def test_a_stream_without_tls_is_on_loopback_alone(config: Path, url: str, good: bool) -> None:
    edit(
        config / "gateway.toml",
        lambda text: text.replace('url = ""                   # empty: none', f'url = "{url}" #'),
    )
    if good:
        assert load({"CONFIG_DIR": str(config)}).gateway.outbox.nats.url == url
    else:
        (mistake,) = mistakes_of(config)
        assert mistake.startswith("gateway.toml: outbox.nats.url: ") and "example" not in mistake


def test_without_asserts_nothing_starts() -> None:
    command = [sys.executable, "-O", "-m", "gateway", "check-config"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, "PYTHONOPTIMIZE" in ended.stderr) == (1, True), ended.stderr
