"""The session file: one session, one encoding, one id; anything else is refused in words."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pl.errors import SessionFileError
from p2pl.protocol import bencode, merkle, session
from p2pl.protocol.session import Checkpoint, SessionFile

SPEC = """
name = "two-peers"
seed = 7
comment = "a test"
url-list = ["https://example.org/two-peers.safetensors"]
[task]
input = [1, 28, 28]
classes = 10
mean = [0.1307]
std = [0.3081]
[model]
name = "mlp"
arguments = { hidden = [32, 16] }
[training]
learning_rate = 0.00001
momentum = 0.9
[exchange]
rounds = 20
cohort = 4
[mixing]
rule = "uniform"
"""


def session_file(length: int = 31_400, **changes: Any) -> SessionFile:  # noqa: ANN401
    """Returns a session file over a checkpoint of `length` bytes."""
    spec = session.read_spec(SPEC)
    data = (bytes(range(256)) * (length // 256 + 1))[:length]
    root, layer = merkle.tree(merkle.blocks(io.BytesIO(data)), length)
    made = SessionFile(
        name=spec.name,
        session=spec.session(),
        checkpoint=Checkpoint(size=length, root=root.hex(), layer=layer),
        trackers=(("http://127.0.0.1:7000", "http://b.example"), ("https://c.example/announce",)),
        url_list=spec.url_list,
        comment=spec.comment,
        created_by="p2pl 0.1.0",
        created_at=1_700_000_000,
    )
    return replace(made, **changes)


def tampered(path: tuple[bytes, ...], value: object) -> bytes:
    """Returns the bytes of a session file with one entry replaced (or removed, for None)."""
    top = bencode.decode(session_file().encode())
    table = top
    for key in path[:-1]:
        table = table[key]
    if value is None:
        del table[path[-1]]
    else:
        table[path[-1]] = value
    return bencode.encode(top)


@pytest.mark.parametrize("length", [1, 16_384, 16_385, 31_400, 262_144, 262_145, 5_000_000])
def test_a_session_file_reads_back_as_itself(length: int) -> None:
    made = session_file(length)
    assert session.decode(made.encode()) == made


def test_a_session_keeps_its_id_for_ever() -> None:
    # Changing this breaks every swarm in the world.
    assert session_file().id == "049d00c045697262e19f211594d89e0c14466c2db8314d4c550a15ab22b3d731"


def test_the_id_depends_on_what_peers_must_agree_on_and_on_nothing_else() -> None:
    made = session_file()
    outside = replace(made, trackers=(), comment="", created_at=None, created_by="", url_list=())
    inside = replace(made, session=msgspec.structs.replace(made.session, seed=8))
    assert outside.id == made.id
    assert inside.id != made.id


def test_relays_stand_outside_what_peers_must_agree_on() -> None:
    made = session_file()
    named = replace(made, relays=("relay://relay.example.org:4001", "relays://192.0.2.1:443"))
    assert named.id == made.id
    assert session.decode(named.encode()).relays == named.relays
    assert b"relays" not in made.encode()


@pytest.mark.parametrize(
    "relays",
    [
        ("tcp://192.0.2.1:4001",),
        ("relay.example.org",),
        ("relay://0.0.0.0:1",),
        ("relay://a:1",) * 9,
    ],
)
def test_what_is_no_relay_is_refused(relays: tuple[str, ...]) -> None:
    with pytest.raises(SessionFileError, match="p2pl relays"):
        session.decode(replace(session_file(), relays=relays).encode())


@pytest.mark.parametrize("length", [31_400, 300_000, 5_000_000])
def test_a_bittorrent_library_opens_it_and_agrees_on_id_and_pieces(length: int) -> None:
    libtorrent = pytest.importorskip("libtorrent")
    made = session_file(length)
    loaded = libtorrent.load_torrent_buffer(made.encode())
    info = loaded.ti
    assert info.is_valid()
    assert str(info.info_hashes().v2) == made.id
    assert info.name() == "two-peers.safetensors"
    assert info.piece_length() == merkle.piece_bytes(length)
    assert loaded.trackers == [url for tier in made.trackers for url in tier]


def test_defaults_are_left_out_and_floats_are_plain_decimals() -> None:
    raw = bencode.decode(session_file().encode())[b"info"][b"p2pl"]
    assert raw[b"training"] == {b"learning_rate": b"0.00001", b"momentum": b"0.9"}
    assert raw[b"mixing"] == {b"rule": b"uniform"}
    assert b"wire" not in raw


@given(st.floats(allow_nan=False, allow_infinity=False))
@settings(max_examples=200)
def test_a_decimal_reads_back_as_the_same_float(value: float) -> None:
    text = session.decimal(value)
    assert float(text) == value
    assert "e" not in text


SCALARS = (
    st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from([1, 1.0, 0, 0.0, "0.5", "1", "nan", "float"])
)
ARGUMENTS = st.dictionaries(
    st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,20}\Z"),
    SCALARS | st.lists(SCALARS, max_size=3).map(tuple),
    max_size=4,
)
TABLES = ("task", "model", "mixing", "exchange")


@given(st.sampled_from(TABLES), ARGUMENTS)
@settings(max_examples=300)
def test_arguments_of_every_type_read_back_as_they_were(
    table: str, arguments: dict[str, object]
) -> None:
    made = session_file()
    made = replace(made, session=session.changed(made.session, (f"{table}.arguments", arguments)))
    read = session.decode(made.encode())
    found = getattr(read.session, table).arguments
    assert found == arguments
    assert repr(sorted(found.items())) == repr(sorted(arguments.items()))  # 1 is not 1.0
    assert (read, read.encode(), read.id) == (made, made.encode(), made.id)


def test_an_argument_says_its_type_by_its_bytes() -> None:
    made = session_file()
    arguments = {"a": 1, "b": 1.0, "c": "1", "d": (1, 1.0, "1"), "float": "1"}
    changed = session.changed(made.session, ("mixing.arguments", arguments))
    raw = bencode.decode(replace(made, session=changed).encode())[b"info"][b"p2pl"]
    assert raw[b"mixing"][b"arguments"] == {
        b"a": 1,
        b"b": {b"float": b"1"},
        b"c": b"1",
        b"d": [1, {b"float": b"1"}, b"1"],
        b"float": b"1",
    }


def test_an_argument_that_is_whole_or_a_float_makes_two_sessions() -> None:
    made = session_file()
    changed = [
        replace(made, session=session.changed(made.session, ("mixing.arguments.a", value)))
        for value in (1, 1.0, (1, 2), (1, 2.0), (1.0, 2), ("1", 2))
    ]
    assert len({one.id for one in changed}) == len(changed)


def test_sessions_with_lists_of_whole_numbers_keep_their_ids() -> None:
    made = session_file()
    changed = session.changed(made.session, ("exchange.arguments", {"a": (2, -1), "b": ()}))
    assert (
        replace(made, session=changed).id
        == "99037485a0c264b78ed4aa2afe993fe3be8c9d89252d97aea52d62a33b161b04"
    )


@pytest.mark.parametrize(
    "raw", [b"0.50", b"1e3", b"nan", b"inf", b"1_0", b" 1", b"x", b"", 1, [b"1"], {b"float": b"1"}]
)
@pytest.mark.parametrize("is_list", [False, True])
def test_a_float_is_written_in_one_way(raw: object, is_list: bool) -> None:
    value = [1, {b"float": raw}] if is_list else {b"float": raw}
    with pytest.raises(SessionFileError):
        session.decode(tampered((b"info", b"p2pl", b"model", b"arguments"), {b"a": value}))


NO_SCALARS = (float("nan"), float("inf"), 2**63, True, {"b": 1}, None)


@pytest.mark.parametrize("value", [*NO_SCALARS, *([1, one] for one in NO_SCALARS), [[1]]], ids=repr)
def test_what_no_argument_can_be_is_refused(value: object) -> None:
    with pytest.raises(SessionFileError, match=r"mixing\.arguments"):
        session.changed(session_file().session, ("mixing.arguments.a", value))


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (
            "[wire]\ncompression = 'int5'\n",
            "got 'int5', allowed dither2, dither3, int3, int4, int8, none",
        ),
        ("[wire]\ndtype = 'half'\n", "wire.dtype: got 'half', allowed float16, float32"),
        ("magic = 1\n", "session: unknown field: got 'magic', allowed name, task, model"),
        ("[mixing]\nrul = 'uniform'\n", "mixing: unknown field: got 'rul', allowed rule,"),
        ("[text]\nlenght = 2\n", "text: unknown field: got 'lenght', allowed length, column"),
        (
            "[table]\ntarget = 'a'\ncolumns = [{name = 'b', knd = 'numeric'}]\n",
            r"table.columns\[0\]: unknown field: got 'knd', allowed name, kind, mean",
        ),
    ],
)
def test_an_unknown_field_is_met_with_those_that_there_are(table: str, words: str) -> None:
    toml = (
        'name = "t"\ntask = { input = [2], classes = 2 }\nmodel = { name = "logreg" }\n'
        "training = { learning_rate = 0.1 }\nexchange = { rounds = 1, cohort = 1 }\n"
    )
    with pytest.raises(SessionFileError, match=words):
        session.read_spec(toml + table)


@pytest.mark.parametrize(
    ("change", "path", "value"),
    [
        (("seed", 5), "seed", 5),
        (("exchange.rounds", 3), "exchange.rounds", 3),
        (("exchange", "rounds", 3), "exchange.rounds", 3),
        (("exchange.gossip.mode", "push"), "exchange.gossip.mode", "push"),
        (("exchange", "gossip.mode", "push"), "exchange.gossip.mode", "push"),
        (("exchange.gossip", session.Gossip(mode="push")), "exchange.gossip.mode", "push"),
        (("exchange.raft.term_s", 5.0), "exchange.raft.term_s", 5.0),
        (("exchange.raft.members", ["ab" * 32]), "exchange.raft.members", ("ab" * 32,)),
        (("mixing", {"rule": "none"}), "mixing.rule", "none"),
    ],
)
def test_any_field_can_be_changed_however_deep_it_is(
    change: session.Change, path: str, value: object
) -> None:
    before = session_file().session
    found: Any = session.changed(before, change)
    for part in path.split("."):
        found = getattr(found, part)
    assert found == value
    assert session.changed(before) == before


def test_an_argument_is_changed_by_its_name_dots_and_all() -> None:
    before = session_file().session
    after = session.changed(before, ("model.arguments.a.weight", [3, 4]), ("seed", 1))
    assert after.model.arguments == {"hidden": (32, 16), "a.weight": (3, 4)}
    assert after.seed == 1


def test_a_field_that_is_missing_is_named() -> None:
    toml = 'name = "t"\ntask = { input = [2], classes = 2 }\nmodel = { name = "logreg" }\n'
    with pytest.raises(SessionFileError, match=r"^training: is missing, and has no default"):
        session.read_spec(toml)
    with pytest.raises(SessionFileError, match=r"^training\.learning_rate: is missing"):
        session.read_spec(toml + "[training]\n")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("rounds", 3), "session: unknown field: got 'rounds', allowed task, model"),
        (("exchanges.rounds", 3), "session: unknown field: got 'exchanges', allowed task, model"),
        (("exchange.magic", 3), "exchange: unknown field: got 'magic', allowed rounds, cohort"),
        (("exchange.gossip.magic", 3), "exchange.gossip: unknown field: got 'magic', allowed form"),
        (("exchange.rounds.more", 3), "exchange.rounds.more: got 'more', allowed exchange.rounds,"),
        (("exchange.gossip.mode", "shout"), "exchange.gossip.mode: got 'shout'"),
        (("exchange.rounds", "3"), "exchange.rounds: got '3'"),
        (("mixing.rule", "age"), "with mixing.rule age"),
        (("", 3), "session: unknown field: got ''"),
    ],
)
def test_a_change_that_cannot_be_is_named(change: session.Change, words: str) -> None:
    with pytest.raises(SessionFileError, match=words.replace(".", r"\.")):
        session.changed(session_file().session, change)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ((b"info", b"p2pl", b"training", b"learning_rate"), b"0.000010", "does not read back"),
        ((b"info", b"p2pl", b"training", b"learning_rate"), b"nan", "learning_rate"),
        ((b"info", b"p2pl", b"training", b"learning_rate"), b"inf", "learning_rate"),
        ((b"info", b"p2pl", b"training", b"learning_rate"), b"-1", "learning_rate: got '-1'"),
        ((b"info", b"p2pl", b"training", b"optimiser"), b"sgd", "optimiser"),
        ((b"info", b"p2pl", b"training", b"optimizer"), b"sgd", "does not read back"),
        ((b"info", b"p2pl", b"exchange", b"rounds"), 0, "exchange.rounds: got 0"),
        ((b"info", b"p2pl", b"exchange", b"rounds"), b"20", "does not read back"),
        ((b"info", b"p2pl", b"model", b"name"), b"../../etc/passwd", "model.name"),
        ((b"info", b"p2pl", b"model", b"name"), b"\xff", "UTF-8"),
        ((b"info", b"p2pl", b"task", b"classes"), 1, "task.classes: got 1"),
        ((b"info", b"p2pl", b"task", b"input"), [], "task.input"),
        ((b"info", b"p2pl", b"task", b"labels"), [b"a", b"b"], "task.labels"),
        ((b"info", b"p2pl", b"task", b"mean"), [b"0.1", b"0.2"], "task.mean"),
        ((b"info", b"p2pl", b"task"), None, "task"),
        ((b"info", b"p2pl", b"version"), 2, "needs a newer p2pl: update"),
        ((b"info", b"p2pl", b"code"), b"import os", "code"),
        ((b"info", b"p2pl"), None, "ordinary torrent"),
        ((b"info", b"p2pl"), b"x", "session"),
        ((b"info", b"pieces"), b"x" * 20, "unknown key"),
        ((b"info", b"meta version"), 1, "BEP 52"),
        ((b"info", b"name"), b"../up.safetensors", "info.name"),
        ((b"info", b"name"), b"a" * 200 + b".safetensors", "info.name"),
        ((b"info", b"piece length"), 16_384, "piece length"),
        ((b"info", b"file tree"), {}, "file tree"),
        ((b"info", b"file tree", b"two-peers.safetensors", b"", b"length"), -1, "length"),
        ((b"info", b"file tree", b"two-peers.safetensors", b"", b"length"), 10**18, "length"),
        ((b"info", b"file tree", b"two-peers.safetensors", b"", b"pieces root"), b"x", "root"),
        ((b"piece layers",), {b"x" * 32: b"y" * 32}, "piece layers"),
        ((b"piece layers",), [], "piece layers"),
        ((b"announce-list",), [[]], "announce-list"),
        ((b"announce-list",), [[b"udp://b.example"]], "http://HOST"),
        ((b"announce-list",), [[b"http://b.example"] * 65], "at most 64"),
        ((b"url-list",), [b"file:///etc/passwd"], "url-list"),
        ((b"url-list",), [b"http://me:secret@b.example"], "no secrets"),
        ((b"comment",), b"\xff", "UTF-8"),
        ((b"comment",), 5, "comment"),
        ((b"creation date",), -5, "creation date"),
        ((b"url-list",), b"file:///etc/passwd", "url-list"),
    ],
)
def test_what_is_wrong_is_named(path: tuple[bytes, ...], value: object, words: str) -> None:
    with pytest.raises(SessionFileError, match=words.replace(".", r"\.")):
        session.decode(tampered(path, value))


TASKS: dict[str, dict[str, object]] = {
    "multilabel": {"kind": "multilabel", "input": [4], "outputs": 3, "labels": ["a", "b", "c"]},
    "regression": {
        "kind": "regression",
        "input": [4],
        "outputs": 2,
        "unit": "mmHg",
        "metrics": ["MAE", "RMSE"],
        "target_mean": [120.0, 80.5],
        "target_std": [15.0, 0.25],
    },
    "segmentation": {"kind": "segmentation", "input": [1, 8, 8], "classes": 3},
    "language": {"kind": "language", "input": [16], "classes": 300_000},
    "classification": {"input": [4], "classes": 2, "metrics": ["AUROC", "accuracy"]},
    "brought": {"kind": "brought", "input": [4]},
    "brought, named": {"kind": "brought", "input": [4], "outputs": 2, "labels": ["a", "b"]},
}


def spec_for(task: object) -> session.Spec:
    """Returns a spec with this task."""
    return session.spec_of(
        {
            "name": "one",
            "task": task,
            "model": {"name": "logreg"},
            "training": {"learning_rate": 0.1},
            "exchange": {"rounds": 1, "cohort": 1},
        }
    )


@pytest.mark.parametrize("kind", TASKS)
def test_a_session_of_every_kind_of_task_reads_back_as_itself(kind: str) -> None:
    made = session_file(session=spec_for(TASKS[kind]).session())
    assert session.decode(made.encode()) == made
    assert set(bencode.decode(made.encode())[b"info"][b"p2pl"][b"task"]) == {
        field.encode() for field in TASKS[kind]
    }


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("classification", {"classes": 0}, r"task.classes: got 0, allowed 2..100000, with"),
        ("classification", {"classes": 100_001}, "task.classes: got 100001"),
        ("classification", {"outputs": 2}, "task.outputs: got 2, allowed none, with task.kind cl"),
        ("classification", {"target_mean": [1.0]}, "task.target_mean"),
        ("classification", {"metrics": ["AUROC", "AUROC"]}, "task.metrics: a name stands there tw"),
        ("segmentation", {"classes": 1}, "task.classes: got 1"),
        ("segmentation", {"unit": "mm"}, "task.unit: got 'mm', allowed none"),
        ("language", {"classes": 0}, "task.classes: got 0"),
        ("language", {"mean": [0.5], "std": [0.5]}, "task.mean: got .*, allowed none"),
        ("multilabel", {"outputs": 0, "labels": []}, r"task.outputs: got 0, allowed 1..100000"),
        ("multilabel", {"classes": 2}, "task.classes: got 2, allowed none, with task.kind multila"),
        ("multilabel", {"labels": ["a", "b"]}, "task.labels: got '2 names', allowed none, or 3"),
        ("regression", {"labels": ["a", "a"]}, "task.labels: a name stands there twice"),
        ("regression", {"target_std": [1.0]}, "task.target_mean and task.target_std: got '2 and 1"),
        ("regression", {"target_std": [1.0, 0.0]}, "task.target_std"),
        ("regression", {"target_std": [1.0] * 3, "target_mean": [1.0] * 3}, "both 2"),
        ("regression", {"unit": "mm\x1b[2J"}, "task.unit: got .*, allowed text that can be shown"),
        ("brought, named", {"labels": ["a"]}, "task.labels"),
    ],
)
def test_what_a_kind_of_task_lacks_or_does_not_have_is_named(
    kind: str, change: dict[str, object], words: str
) -> None:
    with pytest.raises(SessionFileError, match=words):
        spec_for(TASKS[kind] | change)


def test_a_layer_that_does_not_hash_to_the_root_is_refused() -> None:
    top = bencode.decode(session_file(5_000_000).encode())
    (root,) = top[b"piece layers"]
    top[b"piece layers"][root] = bytes(len(top[b"piece layers"][root]))
    with pytest.raises(SessionFileError, match="tampered"):
        session.decode(bencode.encode(top))


def reexported(**changes: object) -> bytes:
    """Returns a session file with other entries outside `info`; None takes one away."""
    top = bencode.decode(session_file().encode())
    for name, value in changes.items():
        top[name.replace("_", "-").encode()] = value
    return bencode.encode({key: value for key, value in top.items() if value is not None})


@pytest.mark.parametrize(
    ("changes", "trackers", "url_list"),
    [
        ({"announce": b"http://other.example"}, session_file().trackers, session_file().url_list),
        ({"announce_list": None}, (("http://127.0.0.1:7000",),), session_file().url_list),
        ({"announce": None, "announce_list": None}, (), session_file().url_list),
        ({"url_list": b"http://m.example/x"}, session_file().trackers, ("http://m.example/x",)),
        ({"url_list": b""}, session_file().trackers, ()),
        ({"encoding": b"UTF-8", "nodes": []}, session_file().trackers, session_file().url_list),
    ],
)
def test_what_another_client_has_written_anew_is_the_same_session(
    changes: dict[str, object], trackers: object, url_list: object
) -> None:
    read = session.decode(reexported(**changes))
    assert read.id == session_file().id
    assert (read.trackers, read.url_list) == (trackers, url_list)


def test_entries_outside_info_may_stand_in_any_order_and_once_each() -> None:
    top = bencode.decode(session_file().encode())
    entries = [bencode.encode(key) + bencode.encode(value) for key, value in top.items()]
    turned = b"d" + b"".join(reversed(entries)) + b"e"
    assert session.decode(turned) == session_file()
    with pytest.raises(SessionFileError, match="repeated"):
        session.decode(b"d" + b"".join([*entries, entries[0]]) + b"e")
    info = top[b"info"]
    tables = [bencode.encode(key) + bencode.encode(value) for key, value in info.items()]
    inside = b"d" + bencode.encode(b"info") + b"d" + b"".join(reversed(tables)) + b"ee"
    with pytest.raises(SessionFileError, match="out of order"):
        session.decode(inside)


def test_a_bittorrent_library_s_own_file_is_read() -> None:
    lt = pytest.importorskip("libtorrent")
    raw = session_file().encode()
    again = lt.bencode(lt.write_torrent_file(lt.load_torrent_buffer(raw)))
    assert session.decode(bytes(again)).id == session_file().id


@pytest.mark.parametrize("body", [b"de", b"le", b"i0e", b"0:", b"d0:lleee"])
def test_a_file_of_too_many_values_is_refused_before_they_take_memory(body: bytes) -> None:
    data = b"d4:infol" + body * 200_000 + b"e12:piece layersdee"
    with pytest.raises(SessionFileError, match="more than 150000 values"):
        session.decode(data)


def test_a_session_of_as_many_class_names_as_it_may_have_is_read() -> None:
    task = msgspec.structs.replace(
        session_file().session.task,
        classes=100_000,
        labels=tuple(f"class {number}" for number in range(100_000)),
    )
    wanted = msgspec.structs.replace(session_file().session, task=task)
    made = session_file(session=wanted)
    assert session.decode(made.encode()).id == made.id


def test_a_file_that_is_too_large_is_refused_before_it_is_read() -> None:
    with pytest.raises(SessionFileError, match="at most"):
        session.decode(b"l" * (session.MAX_SESSION_FILE_BYTES + 1))


@given(st.integers(0, 600), st.binary(min_size=1, max_size=3))
@settings(max_examples=200)
def test_a_mutated_file_is_refused_in_words_or_is_another_session(at: int, patch: bytes) -> None:
    good = session_file().encode()
    bad = good[:at] + patch + good[at + len(patch) :]
    try:
        read = session.decode(bad)
    except SessionFileError:
        return
    again = session.decode(read.encode())
    assert (again, again.id) == (read, read.id)


@given(st.binary(max_size=200))
@settings(max_examples=200)
def test_random_bytes_are_refused_in_words(data: bytes) -> None:
    with pytest.raises(SessionFileError):
        session.decode(data)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("rounds = 20", "rounds = 0", "exchange.rounds: got 0"),
        ("rounds = 20", "rounds = true", "exchange.rounds"),
        ("rounds = 20", 'rounds = "20"', "exchange.rounds"),
        ("cohort = 4", "cohort = 0", "exchange.cohort"),
        ("momentum = 0.9", "momentum = nan", "momentum: got nan"),
        ("momentum = 0.9", "nesterov = true", "nesterov"),
        ("[mixing]", "[privacy]\nrequired = true\n[mixing]", "max_epsilon"),
        ("[mixing]", "[mixing", "TOML"),
        ('rule = "uniform"', 'rule = "age"', "with mixing.rule age"),
        ("rounds = 20", "rounds = 20\npolish_rounds = 20", "exchange.polish_rounds: got 20"),
        ("momentum = 0.9", "quasi_global = true", "a momentum above 0"),
        ('rule = "uniform"', 'rule = "no rule"', "mixing.rule: got 'no rule'"),
        ('name = "two-peers"', 'name = "a/b"', "name: got 'a/b'"),
        ("https://example.org", "ftp://example.org", "url-list"),
        ("[32, 16]", "[true]", "model.arguments"),
    ],
)
def test_a_wrong_spec_is_named_too(old: str, new: str, words: str) -> None:
    assert old in SPEC
    with pytest.raises(SessionFileError, match=words):
        session.read_spec(SPEC.replace(old, new))


def test_a_spec_that_is_nested_without_end_is_refused_in_words() -> None:
    with pytest.raises(SessionFileError, match="not valid TOML"):
        session.read_spec("a = " + "[" * 5_000)


TORRENTFILES = Path(__file__).parents[2] / "torrentfiles"
IDS = {
    "braintorrent": "334da07ec089012a1dee2c303446c851fdbf2a5f4ddf45d24bab99db46dc9bd1",
    "digits": "ad5efaeb0bca3e549b78d2f73909bb19dba39ad0ea6d9ed7107b17199e044589",
    "fashion-mnist": "c4ce2c56c8eda8c2eb7a88f3c830fe70abc6cee0c2390eaaf4ff962f3bd7afcc",
    "gossip": "3763d1e81a31f97ab08857b9b97d00d6263c15f1b6bf9d0587f4e583ffc39434",
    "mnist-iid": "09071773fac4e1900c6e508231adf09ee965b6434222ef8776cec3f785d4b780",
    "raft": "44a849ce031bd041632427f225c081b1d3921e2642fc8042d8b121a5e8fe41e2",
}


@pytest.mark.parametrize("name", sorted(IDS))
def test_the_published_sessions_keep_their_ids(name: str) -> None:
    read = session.decode((TORRENTFILES / f"{name}.torrent").read_bytes())
    assert read.id == IDS[name]
    spec = session.read_spec((TORRENTFILES / f"{name}.toml").read_text())
    assert (spec.name, spec.session()) == (read.name, read.session)


def test_every_published_session_is_pinned_here() -> None:
    assert {path.stem for path in TORRENTFILES.glob("*.torrent")} == set(IDS)
    assert {path.stem for path in TORRENTFILES.glob("*.toml")} == set(IDS)


RAFT = SPEC.replace("cohort = ", 'kind = "raft"\ncohort = ')


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("heartbeat_s = 0.5", "heartbeat_s, shortest_timeout_s, longest_timeout_s: got"),
        ("longest_timeout_s = 0.5", "each above the one before"),
        (f'members = ["{"ab" * 32}", "{"ab" * 32}"]', "an id stands there twice"),
        ('members = ["ab"]', "exchange.raft.members"),
        ('suite = "none"', "exchange.raft.suite"),
    ],
)
def test_an_election_that_cannot_work_is_refused(settings: str, words: str) -> None:
    with pytest.raises(SessionFileError, match=words):
        session.read_spec(f"{RAFT}\n[exchange.raft]\n{settings}\n")


def test_more_voters_than_fit_a_short_message_are_refused() -> None:
    spec = session.read_spec(RAFT)
    many = msgspec.structs.replace(spec.exchange, min_peers=33)
    with pytest.raises(SessionFileError, match="at most 32"):
        msgspec.structs.replace(spec, exchange=many).session()
