"""Personal data at rest: sealed values, the key store, blind indexes, pseudonyms."""

import base64
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from uuid import UUID, uuid4

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.crypto.blind_index import BlindIndex
from gateway.crypto.key_files import FileKeyStore, KeyFile, create_missing, open_folder
from gateway.crypto.key_store import KeyStoreError, KeyUse
from gateway.crypto.pseudonym import CARD_REF_PATTERN, Pseudonyms
from gateway.crypto.sealing import Sealer, SealError, SealingAlgorithm, UnknownDataKey, WrappedDataKey, new_data_key
from gateway.domain.masking import Secret

COLUMN, OTHER_COLUMN = b"card.holder_sealed", b"card.number_sealed"
ROW, OTHER_ROW = uuid4().bytes, uuid4().bytes
TEXT = '["张三","1961-01-01"]'.encode()


def new_store() -> FileKeyStore:
    return FileKeyStore([KeyFile("kek-1", KeyUse.KEK, os.urandom(32))])


def working_key() -> Secret[bytes]:
    return Secret(os.urandom(32))


STORE, OTHER_STORE = new_store(), new_store()

ALGORITHMS: tuple[SealingAlgorithm, ...] = ("SM4-GCM", "AES-256-GCM")
SM4, AES = 1, 3  # data keys of SEALER


def sealer_of(*ids: int, store: FileKeyStore = STORE) -> Sealer:
    """Odd and even ids are two keys of one algorithm: 1 and 2 of SM4-GCM, 3 and 4 of AES-256-GCM."""
    sealer = Sealer()
    rows = [WrappedDataKey(number, *new_data_key(store, ALGORITHMS[(number - 1) // 2 % 2])) for number in ids]
    sealer.add(rows, store)
    return sealer


SEALER = sealer_of(1, 2, 3, 4)
each_algorithm = pytest.mark.parametrize("data_key", [SM4, AES], ids=ALGORITHMS)


@each_algorithm
@given(plaintext=st.binary(max_size=500))
def test_what_is_sealed_opens_again_and_shows_nothing(data_key: int, plaintext: bytes) -> None:
    sealed = SEALER.seal(data_key, COLUMN, ROW, plaintext)
    assert SEALER.open(COLUMN, ROW, sealed) == plaintext
    assert len(sealed) == 1 + 4 + 12 + len(plaintext) + 16
    assert len(plaintext) < 4 or plaintext not in sealed


@each_algorithm
def test_a_sealed_value_names_its_algorithm_and_data_key(data_key: int) -> None:
    sealed = SEALER.seal(data_key, COLUMN, ROW, TEXT)
    assert sealed[:5] == {SM4: b"\x02", AES: b"\x01"}[data_key] + data_key.to_bytes(4, "big")
    assert SEALER.knows(sealed) and not SEALER.knows(b"\x03" + sealed[1:]) and not sealer_of(2).knows(sealed)


@each_algorithm
def test_the_same_text_is_sealed_differently_each_time(data_key: int) -> None:
    assert len({SEALER.seal(data_key, COLUMN, ROW, TEXT) for _ in range(100)}) == 100


OLD_DATA_KEY = "1d424a927b4767236227daab7dfe278edaeb52e8558551f527131161bd7ff45e4524ed443c9536b7"
OLD_SEALED = (
    "010000000795afb38b990d39539237ff136258a1d161d9a3f12b2e8e4103c7ebc0e36a68bc48e69d96610bb3e4f5488209e02848c466cd49"
)


def test_what_aes_sealed_before_sm4_was_the_default_stays_readable() -> None:
    """A value of the first release, byte for byte: AES-256-GCM, data key 7 under a KEK of zeros."""
    sealer, kek = Sealer(), KeyFile("kek-1", KeyUse.KEK, bytes(32))
    wrapped = bytes.fromhex(OLD_DATA_KEY)
    sealer.add([WrappedDataKey(7, "kek-1", "AES-256-GCM", wrapped)], FileKeyStore([kek]))
    assert sealer.open(COLUMN, bytes(16), bytes.fromhex(OLD_SEALED)) == TEXT


def with_data_key(sealed: bytes, number: int) -> bytes:
    return sealed[:1] + number.to_bytes(4, "big") + sealed[5:]


MOVED: dict[str, Callable[[bytes], tuple[bytes, bytes, bytes]]] = {
    "to another row": lambda sealed: (COLUMN, OTHER_ROW, sealed),
    "to another column": lambda sealed: (OTHER_COLUMN, ROW, sealed),
    "to a column whose name ends where the row begins": lambda sealed: (COLUMN + ROW[:1], ROW[1:] + b"x", sealed),
    "to another data key": lambda sealed: (COLUMN, ROW, with_data_key(sealed, sealed[4] + 1)),
}


@each_algorithm
@pytest.mark.parametrize("how", MOVED)
def test_a_sealed_value_that_was_moved_does_not_open(how: str, data_key: int) -> None:
    with pytest.raises(SealError):
        SEALER.open(*MOVED[how](SEALER.seal(data_key, COLUMN, ROW, TEXT)))


@each_algorithm
@given(data=st.data())
def test_a_sealed_value_with_any_byte_changed_does_not_open(data_key: int, data: st.DataObject) -> None:
    sealed = bytearray(SEALER.seal(data_key, COLUMN, ROW, TEXT))
    place = data.draw(st.integers(0, len(sealed) - 1))
    sealed[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises((SealError, UnknownDataKey)):
        SEALER.open(COLUMN, ROW, bytes(sealed))


@each_algorithm
@pytest.mark.parametrize("length", [0, 1, 4, 5, 16, 17, 32, 33])
def test_a_sealed_value_that_was_cut_does_not_open(length: int, data_key: int) -> None:
    sealed = SEALER.seal(data_key, COLUMN, ROW, TEXT)
    with pytest.raises(SealError):
        SEALER.open(COLUMN, ROW, sealed[:length])


@given(st.binary(max_size=60) | st.binary(max_size=60).map(lambda rest: b"\x02\0\0\0\x01" + rest))
def test_garbage_is_refused_in_words_we_know(sealed: bytes) -> None:
    with pytest.raises((SealError, UnknownDataKey)):
        SEALER.open(COLUMN, ROW, sealed)


def test_a_data_key_that_is_not_loaded_is_told_apart_from_tampering() -> None:
    """It was made by another process after our start: loading it is worth a try."""
    with pytest.raises(UnknownDataKey):
        sealer_of(1).open(COLUMN, ROW, with_data_key(SEALER.seal(1, COLUMN, ROW, TEXT), 7))


def test_a_data_key_of_the_same_number_and_another_secret_does_not_open() -> None:
    with pytest.raises(SealError):
        sealer_of(1).open(COLUMN, ROW, SEALER.seal(1, COLUMN, ROW, TEXT))


@pytest.mark.parametrize(
    ("row", "error"),
    [
        (WrappedDataKey(1, "kek-1", "SM4-GCM", new_data_key(OTHER_STORE).wrapped), SealError),
        (WrappedDataKey(1, "kek-1", "SM4-GCM", new_data_key(STORE).wrapped[:-1]), SealError),
        (WrappedDataKey(1, "kek-1", "SM4-GCM", b""), SealError),
        (WrappedDataKey(1, "kek-1", "SM4-CBC", new_data_key(STORE).wrapped), SealError),
        (WrappedDataKey(1, "kek-1", "AES-256-GCM", new_data_key(STORE, "SM4-GCM").wrapped), SealError),
        (WrappedDataKey(1, "kek-1", "SM4-GCM", new_data_key(STORE, "AES-256-GCM").wrapped), SealError),
        (WrappedDataKey(1, "kek-2", "SM4-GCM", new_data_key(STORE).wrapped), KeyStoreError),
    ],
    ids=[
        "wrapped by another KEK",
        "cut",
        "empty",
        "another algorithm",
        "16 bytes for AES",
        "32 for SM4",
        "an unknown KEK",
    ],
)
def test_a_data_key_that_does_not_unwrap_is_refused(row: WrappedDataKey, error: type[Exception]) -> None:
    with pytest.raises(error):
        Sealer().add([row], STORE)


def test_data_keys_are_all_different() -> None:
    assert len({new_data_key(STORE).wrapped for _ in range(50)}) == 50


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    create_missing(tmp_path / "keys")
    return tmp_path / "keys"


def test_missing_keys_are_made_once_and_never_replaced(tmp_path: Path) -> None:
    made = create_missing(tmp_path / "keys")
    assert sorted(made) == sorted(f"{use}-1" for use in KeyUse)
    before = {file.name: file.read_bytes() for file in (tmp_path / "keys").iterdir()}
    assert create_missing(tmp_path / "keys") == []
    (tmp_path / "keys" / "kek-1.json").unlink()
    assert create_missing(tmp_path / "keys") == ["kek-1"]
    after = {file.name: file.read_bytes() for file in (tmp_path / "keys").iterdir()}
    assert {name for name in before if before[name] != after[name]} == {"kek-1.json"}
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "keys").iterdir()} == {0o600}
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700


def test_the_newest_key_is_the_one_with_the_highest_number(folder: Path) -> None:
    for number in (2, 10):
        text = (folder / "kek-1.json").read_text().replace("kek-1", f"kek-{number}")
        (folder / f"kek-{number}.json").write_text(text)
        (folder / f"kek-{number}.json").chmod(0o600)
    store = open_folder(folder)
    assert [found.kid for found in store.keys(KeyUse.KEK)] == ["kek-1", "kek-2", "kek-10"]
    assert store.wrap(b"s" * 16).kek_id == "kek-10"


def test_a_key_does_not_show_itself(folder: Path) -> None:
    text = (folder / "index-1.json").read_text()
    file, (secret,) = msgspec.json.decode(text, type=KeyFile), open_folder(folder).working_keys(KeyUse.INDEX)
    assert secret.reveal() == file.key == base64.b64decode(json.loads(text)["key"])
    shown = f"{file} {file!r} {[file]} {secret} {[secret]}"
    assert repr(file.key) not in shown and json.loads(text)["key"] not in shown
    assert "KeyFile(index-1)" in shown


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o610])
@pytest.mark.parametrize("name", ["kek-1.json", "."])
def test_a_key_that_others_may_read_is_refused(folder: Path, name: str, mode: int) -> None:
    path = folder / name
    path.chmod(mode | (0o100 if name == "." else 0))
    with pytest.raises(KeyStoreError, match="others may read it"):
        open_folder(folder)


@pytest.mark.parametrize("use", KeyUse)
def test_a_use_without_a_key_is_named(folder: Path, use: KeyUse) -> None:
    (folder / f"{use}-1.json").unlink()
    with pytest.raises(KeyStoreError, match=f"no key for {use}:"):
        open_folder(folder)


def test_no_folder_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(KeyStoreError, match="init-keys"):
        open_folder(tmp_path / "none")


GOOD = {"kid": "kek-1", "use": "kek", "key": base64.b64encode(bytes(32)).decode()}
MALFORMED = {
    "empty": "", "not JSON": "{", "a list": "[]", "no key": json.dumps({"kid": "kek-1", "use": "kek"}),
    "16 bytes": json.dumps(GOOD | {"key": base64.b64encode(bytes(16)).decode()}),
    "not base64": json.dumps(GOOD | {"key": "!" * 44}), "an unknown use": json.dumps(GOOD | {"use": "fun"}),
    "another use": json.dumps(GOOD | {"use": "index"}), "another kid": json.dumps(GOOD | {"kid": "kek-2"}),
    "a kid without a number": json.dumps(GOOD | {"kid": "kek"}), "an unknown field": json.dumps(GOOD | {"note": 1}),
}  # fmt: skip


@pytest.mark.parametrize("how", MALFORMED)
def test_a_malformed_key_file_is_named_and_not_shown(folder: Path, how: str) -> None:
    (folder / "kek-1.json").write_text(MALFORMED[how])
    with pytest.raises(KeyStoreError, match=r"kek-1\.json: not a key file") as caught:
        open_folder(folder)
    assert GOOD["key"] not in str(caught.value)


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared") / "keys"
    create_missing(folder)
    (folder / "kek-2.json").touch(mode=0o600)
    return folder


values = st.none() | st.integers() | st.text(max_size=50) | st.lists(st.text(max_size=3), max_size=2)
times = st.datetimes().map(str) | st.datetimes(timezones=st.timezones()).map(lambda time: time.isoformat())
key_files = st.builds(
    lambda change: json.dumps(GOOD | {"kid": "kek-2"} | change).encode(),
    st.dictionaries(st.sampled_from(["kid", "use", "key", "z"]), values, max_size=2)
    | st.fixed_dictionaries({"active_from": times | values}),
)


@given(content=st.binary(max_size=200) | key_files, cut=st.integers(0, 200))
def test_any_key_file_is_taken_or_refused_with_a_key_store_error(shared_folder: Path, content: bytes, cut: int) -> None:
    for text in (content, content[:cut]):
        (shared_folder / "kek-2.json").write_bytes(text)
        try:
            store = open_folder(shared_folder)
        except KeyStoreError as error:
            assert GOOD["key"] not in str(error)
            continue
        assert [key.kid for key in store.keys(KeyUse.KEK)] == ["kek-1", "kek-2"]
        assert store.unwrap(*store.wrap(b"s" * 32)) == b"s" * 32
        start = store.keys(KeyUse.KEK)[-1].active_from
        assert start is None or start.timestamp() is not None, "it can be compared with a clock"


@pytest.mark.parametrize("name", ["kek-x.json", "kek.json", "backup.json", "kek-01.json"])
def test_a_key_file_of_another_name_is_refused(folder: Path, name: str) -> None:
    kid = name.removesuffix(".json")
    (folder / name).write_text(json.dumps(GOOD | {"kid": kid}))
    (folder / name).chmod(0o600)
    with pytest.raises(KeyStoreError, match="not a key file"):
        open_folder(folder)


INDEX = BlindIndex(working_key())
IDS = ["330424190001010016", "AB1234567", "330424D15600000500000000000000A1", ""]


@pytest.mark.parametrize("text", IDS)
def test_each_column_and_each_key_has_an_index_of_its_own(text: str) -> None:
    other = BlindIndex(working_key())
    found = [
        index(text) for one in (INDEX, other) for index in (one.number, one.id_number, lambda t, o=one: o.chip(t, ""))
    ]
    assert len(set(found)) == 6 and {len(each) for each in found} == {32}
    assert INDEX.number(text) == INDEX.number(text)


def test_the_index_of_a_chip_is_that_of_the_pair() -> None:
    pairs = [("AB1234567", IDS[2]), ("AB1234568", IDS[2]), ("AB1234567", IDS[2][:-1] + "2")]
    assert len({INDEX.chip(*pair) for pair in pairs}) == 3


PSEUDONYMS = Pseudonyms([working_key()])


@given(st.binary(min_size=16, max_size=16))
def test_a_card_ref_turns_back_into_its_card_for_its_caller_alone(card_id: bytes) -> None:
    ref = PSEUDONYMS.card_ref("demo-merchant", card_id)
    assert PSEUDONYMS.card_id("demo-merchant", ref) == card_id
    assert PSEUDONYMS.card_id("demo-bank", ref) != card_id
    assert PSEUDONYMS.card_ref("demo-bank", card_id) != ref
    assert card_id.hex() not in ref


def test_a_card_ref_has_the_form_that_is_published() -> None:
    ref = PSEUDONYMS.card_ref("demo-merchant", UUID(int=7).bytes)
    assert re.fullmatch(CARD_REF_PATTERN, ref), (CARD_REF_PATTERN, ref)
    assert not re.fullmatch(CARD_REF_PATTERN, ref + "\n") and not re.search(CARD_REF_PATTERN, ref + "\n")


def test_references_of_an_older_key_still_open_after_a_rotation() -> None:
    old, new = working_key(), working_key()
    card_id = uuid4().bytes
    before = Pseudonyms([old]).card_ref("demo-merchant", card_id)
    rotated = Pseudonyms([old, new])
    after = rotated.card_ref("demo-merchant", card_id)
    assert before[0] != after[0] and before != after
    assert rotated.card_id("demo-merchant", before) == rotated.card_id("demo-merchant", after) == card_id
