"""`p2pl ledger`: logs of a swarm that hold, and each way in which one does not."""

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import p2pl

from p2pl.api.ledger import Finding, exported, inclusion, read_log, shown, verified
from p2pl.api.provenance import picture, provenance
from p2pl.errors import RunDirError
from p2pl.network.keys import Identity
from p2pl.protocol.updates.fault import contradiction, to_text
from p2pl.run.log import MODEL_FILE
from p2pl.updates.file import LOG_FILE, read
from p2pl.updates.keeper import Keeper, finish, sha256
from p2pl.updates.log import UpdateLog, Version
from p2pl.updates.watch import WATCH_FILE

SESSION = "5e" * 32
ROUNDS = 6


def keeper_in(folder: Path, me: Identity, known: set[str]) -> Keeper:
    """Returns the keeper of a peer's log."""
    folder.mkdir(exist_ok=True)
    log = UpdateLog.open(folder, SESSION, me.private_key)
    return Keeper(log, folder, me, lambda: 1_700_000_000.0, known.__contains__)


async def exchange(folder: Path, peers: dict[str, Identity], rounds: int) -> None:
    """Writes the run directories of peers that pull from each other in each round."""
    ids = {one.peer_id for one in peers.values()}
    keepers = {name: keeper_in(folder / name, one, ids) for name, one in peers.items()}
    for index in range(1, rounds + 1):
        serving = {}
        for name, keeper in keepers.items():
            digest = sha256(f"{name} {index}".encode())
            serving[name] = digest, await keeper.commit(Version("trained", index, digest))
        for name, keeper in keepers.items():
            for other in keepers.keys() - {name}:
                digest, answer = serving[other]
                asked = keeper.question(peers[other].peer_id)
                came = answer(peers[name].peer_id, asked.data)
                keeper.take(peers[other].peer_id, asked, came, digest)
            row = {one: 1 / len(ids) for one in ids}
            await keeper.mixed(index, row, {}, {})
    for name, keeper in keepers.items():
        keeper.save()
        keeper.close()
        final = Version("final", rounds, sha256(name.encode()))
        finish(folder / name, SESSION, peers[name], final, 1_700_000_000.0)
        (folder / name / MODEL_FILE).write_bytes(name.encode())


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Identity]]:
    """Returns the run directories of three peers, and their keys."""
    folder = tmp_path_factory.mktemp("swarm")
    peers = {f"peer-{number}": Identity.generate() for number in range(3)}
    asyncio.run(exchange(folder, peers, ROUNDS))
    return folder, peers


@pytest.fixture
def runs(honest: tuple[Path, dict[str, Identity]], tmp_path: Path) -> Path:
    """Returns a copy of the run directories, to be spoilt."""
    return shutil.copytree(honest[0], tmp_path / "swarm")


def wrongs(*paths: Path) -> list[str]:
    """Returns what does not hold."""
    return [one.text for one in verified(paths) if not one.holds]


def test_the_logs_of_an_honest_swarm_hold(runs: Path) -> None:
    findings = verified([runs], every=True)
    assert len(findings) == 3
    assert all(one.holds for one in findings)
    assert f"{ROUNDS + 1} entries, seen by 2 witnesses" in findings[0].text
    log = read_log(runs / "peer-0")
    assert log.checkpoint.splitlines()[1] == str(ROUNDS + 1)
    assert len(log.witnessed.splitlines()) == 7  # the author's signature, and two more
    _, rows = shown(log)
    assert [row[2:4] for row in rows[-2:]] == [("6", "trained"), ("6", "final")]
    assert rows[-1][-1].count("0.33") == 3
    per_round = (runs / "peer-0" / LOG_FILE).stat().st_size / (ROUNDS + 1)
    assert per_round < 1_024


def test_a_proof_of_inclusion_holds_by_itself_and_no_other_does(runs: Path) -> None:
    log, path = read_log(runs / "peer-0"), runs / "proof.json"
    path.write_text(inclusion(log, 3))
    (found,) = verified([path])
    expected = f"peer {log.peer_id[:8]}: round 4 (trained) is entry 3 of its log of {ROUNDS + 1}"
    assert found == Finding(str(path), expected)
    told = json.loads(path.read_text())
    other = json.loads(inclusion(log, 2))
    spoilt = [
        ({"round": 9}, "the entry is not in the log of that head"),
        ({"inclusion": told["inclusion"][:-1]}, "the entry is not in the log of that head"),
        ({"signed": other["signed"]}, "the entry is not in the log of that head"),
        ({"inclusion": [7]}, "damaged: Expected `str`, got `int` - at `$.inclusion[0]`"),
        ({"signed": "=AA="}, "damaged: signedentry: no base64"),
        ({"checkpoint": ""}, "checkpoint: got '', allowed a signed note"),
        ({"public_key": "ab"}, "damaged: Expected `str` matching regex"),
    ]
    for changes, said in spoilt:
        path.write_text(json.dumps({**told, **changes}))
        (text,) = wrongs(path)
        assert text.startswith(said)
    del told["checkpoint"]
    path.write_text(json.dumps(told))
    assert wrongs(path) == ["damaged: Object missing required field `checkpoint`"]
    path.write_text(inclusion(log, 3)[:-9])
    assert wrongs(path)[0].startswith("damaged: it is no JSON")
    with pytest.raises(RunDirError, match=r"entry: got 7, allowed 0\.\.6"):
        inclusion(log, ROUNDS + 1)


def test_an_export_is_a_log_like_any_other(runs: Path) -> None:
    log, path = read_log(runs / "peer-0"), runs / "peer-0.jsonl"
    path.write_text("".join(f"{line}\n" for line in exported(log)))
    again = read_log(path)
    assert (again.records, again.head) == (log.records, log.head)
    assert not wrongs(path, runs)
    lines = path.read_text().splitlines()
    for at, was, becomes in (
        (1, '"round": 1', '"round": 2'),
        (2, '"mix_bytes": "l', '"mix_bytes": "m'),
    ):
        assert was in lines[at]
        spoilt = [*lines[:at], lines[at].replace(was, becomes), *lines[at + 1 :]]
        path.write_text("\n".join(spoilt))
        assert wrongs(path)
    for spoilt in (lines[:3] + lines[4:], lines[:-3] + lines[-1:], lines[:1], [], ["null"]):
        path.write_text("\n".join(spoilt))
        assert wrongs(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "[" * 100_000, "\x89PNG"])
def test_a_file_of_another_kind_is_told_what_may_be_given(text: str, tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.write_text(text)
    allowed = "allowed a run directory, an export, a proof of inclusion or of two histories"
    assert wrongs(path) == [f"got 'another kind of file', {allowed}"]


def test_a_graph_says_where_logs_are_not_given(runs: Path) -> None:
    some = p2pl("ledger", "graph", runs / "peer-0")
    every = p2pl("ledger", "graph", *(runs / f"peer-{at}" for at in range(3)))
    assert "of 12 more the log is not given" in " ".join(some.stdout.split())
    assert "at most 100.0 %" in some.stdout  # the others have a part in it that nobody can say
    assert "at most" not in every.stdout
    assert "the log is not given" not in " ".join(every.stdout.split())
    for done in (some, every):  # weights are in the peer's own log, whoever else gives theirs
        assert done.stdout.count("33.3 %") >= 3, done.stdout
    assert some.stdout.count("not known") == 2


def test_a_graph_is_drawn_as_png_and_as_nothing_else(runs: Path, tmp_path: Path) -> None:
    drawn = tmp_path / "graph.svg"
    done = p2pl("ledger", "graph", runs / "peer-0", "--out", drawn)
    assert (done.returncode, drawn.exists()) == (2, False)
    assert "--out: got 'graph.svg', allowed a name that ends in .png" in done.stderr


def test_a_hash_is_shown_in_one_piece_however_narrow_the_terminal_is(runs: Path) -> None:
    done = p2pl("ledger", "show", runs / "peer-0", columns=40)
    digest = read_log(runs / "peer-0").records[0].signed.entry.digest.hex()[:16]
    (row,) = [line for line in done.stdout.splitlines() if digest in line]
    assert row.split()[0] == "0"


def cut(folder: Path) -> None:
    """Cuts the last entries off."""
    data = (folder / LOG_FILE).read_bytes()
    (folder / LOG_FILE).write_bytes(data[: len(data) * 2 // 3])


def forget(folder: Path) -> None:
    """Cuts the last entries off, and what others have signed of them too."""
    cut(folder)
    (folder / WATCH_FILE).unlink()


@pytest.mark.parametrize(("spoil", "said"), [(cut, "entries are missing"), (forget, "says")])
def test_a_log_that_was_cut_is_found_out(
    spoil: Callable[[Path], None], said: str, runs: Path
) -> None:
    spoil(runs / "peer-1")
    assert any(said in text for text in wrongs(runs))


def test_a_log_that_was_written_anew_is_found_out_by_what_others_hold(
    runs: Path, honest: tuple[Path, dict[str, Identity]]
) -> None:
    me = honest[1]["peer-2"]
    first = read(runs / "peer-2" / LOG_FILE)
    assert first is not None
    shutil.rmtree(runs / "peer-2")
    log = keeper_in(runs / "peer-2", me, set()).log
    for index in range(1, ROUNDS + 2):
        log.append(Version("trained", index, sha256(b"something else")), 5.0)
    log.close()
    said = wrongs(runs)
    assert any("are not those that it has signed, says" in text for text in said)
    assert any("that is not in that peer's log" in text for text in said)
    both = shutil.copytree(runs / "peer-2", runs / "other")
    shutil.copytree(honest[0] / "peer-2", runs / "peer-2", dirs_exist_ok=True)
    (text,) = [text for text in wrongs(runs / "peer-2", both) if "proof: " in text]
    assert "it has signed two versions of round 1" in text
    proof = contradiction(SESSION, me.public_key, first.records[0].signed, log.entries[0])
    assert proof is not None
    assert to_text(proof).strip() in text


def test_another_model_in_the_place_of_the_final_one_does_not_hold(runs: Path) -> None:
    (runs / "peer-0" / MODEL_FILE).unlink()
    (runs / "peer-1" / MODEL_FILE).write_bytes(b"a model from elsewhere")
    (text,) = wrongs(runs)
    assert text.startswith("is not the model that the log ends with")
    assert sha256(b"a model from elsewhere").hex() in text


def test_the_command_says_what_does_not_hold_and_fails(runs: Path) -> None:
    done = p2pl("ledger", "verify", runs)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("holds  ") == 3
    (runs / "empty").mkdir()
    for nothing in ("nowhere", "empty"):  # that is nobody's forgery
        done = p2pl("ledger", "verify", runs, runs / nothing)
        assert done.returncode == 2
        assert "allowed a run directory with an update log, an export, or a proof" in done.stderr
    cut(runs / "peer-1")
    done = p2pl("ledger", "verify", runs)
    assert done.returncode == 1
    assert "WRONG  " in done.stdout
    assert "entries are missing" in done.stdout


def test_a_model_leads_back_to_who_made_it(honest: tuple[Path, dict[str, Identity]]) -> None:
    folder, peers = honest
    logs = [read_log(folder / name) for name in sorted(peers)]
    made = provenance(logs[0], logs)
    assert len(made.versions) == 3 * ROUNDS + 1  # each version of each round, and the final model
    assert made.unknown == 0
    expected = {one.peer_id: 1 / 3 for one in peers.values()}
    assert made.influence == pytest.approx(expected, abs=1e-4)
    assert made.last_mix == pytest.approx(expected, abs=1e-4)
    by_round = dict.fromkeys(range(1, ROUNDS + 1), 0.0)
    for one in made.versions.values():
        if one.stage == "trained":
            by_round[one.round] += one.share
    assert by_round == pytest.approx(dict.fromkeys(by_round, 1.0), abs=1e-4)
    alone = provenance(logs[0])
    assert alone.unknown == 2 * ROUNDS  # what the two others gave
    assert set(alone.influence) == {logs[0].peer_id}
    assert picture(made, {})[:4] == b"\x89PNG"
    with pytest.raises(RunDirError, match="entry: got 99"):
        provenance(logs[0], index=99)
