"""The author's side of a private session: keys, invitations, and what is taken back."""

import datetime
from pathlib import Path

import pytest
from support.commands import p2pl

import p2pl as library
from p2pl.api.private import end_of, read_invitation
from p2pl.errors import IdentityError, InvitationError, SessionFileError
from p2pl.network.keys import Identity

NOW_S = 1_700_000_000
SPEC = {
    "name": "club",
    "task": {"input": [1, 8, 8], "classes": 10},
    "model": {"name": "logreg"},
    "training": {"learning_rate": 0.1},
    "exchange": {"rounds": 3, "cohort": 1},
}
PEER = "ab" * 32


@pytest.fixture
def torrent(tmp_path: Path) -> Path:
    """Returns a private session, with its author's key beside it."""
    library.create({**SPEC, "private": True}, tmp_path / "club.torrent")
    return tmp_path / "club.torrent"


@pytest.mark.parametrize(
    ("expires", "end_s"),
    [
        (None, 0),
        ("12h", NOW_S + 43_200),
        ("7d", NOW_S + 604_800),
        ("2w", NOW_S + 1_209_600),
        ("2023-11-15", 1_700_092_799),  # through that day, in UTC
        (datetime.datetime.fromtimestamp(NOW_S + 5, datetime.UTC), NOW_S + 5),
    ],
)
def test_an_end_is_a_date_or_a_span(expires: str | None, end_s: int) -> None:
    assert end_of(expires, NOW_S) == end_s


@pytest.mark.parametrize(
    "expires",
    ["yesterday", "7", "0d", "2023-11-13", datetime.datetime(2030, 1, 1)],  # noqa: DTZ001
)
def test_what_is_no_end_or_past_is_refused(expires: str) -> None:
    with pytest.raises(InvitationError, match="got"):
        end_of(expires, NOW_S)


def test_the_authors_key_is_the_authors_alone_and_stays(torrent: Path) -> None:
    key = torrent.with_suffix(".author.pem")
    assert key.stat().st_mode & 0o777 == 0o600
    author = library.read_session(torrent).session.author
    assert Identity.load_or_create(key).public_key.hex() == author
    again = library.create(SPEC, torrent, private=True)  # the same author's next session
    assert again.session.author == author
    key.unlink()
    with pytest.raises(IdentityError, match="which does not exist"):
        library.invite(torrent, PEER)
    assert not key.exists()
    Identity.load_or_create(key)
    with pytest.raises(IdentityError, match="that of the session's author"):
        library.invite(torrent, PEER)


def test_nobody_is_invited_to_an_open_session(tmp_path: Path) -> None:
    library.create(SPEC, tmp_path / "open.torrent")
    with pytest.raises(SessionFileError, match="p2pl create --private"):
        library.invite(tmp_path / "open.torrent", PEER)
    library.create({**SPEC, "name": "other"}, tmp_path / "p.torrent", private=True)
    paper = library.invite(tmp_path / "p.torrent", PEER)
    with pytest.raises(InvitationError, match="only where the session is private"):
        library.join(
            tmp_path / "open.torrent",
            data="digits",
            invitation=paper,
            run_dir=tmp_path / "run",
            trackers=["http://127.0.0.1:9"],
        )


def test_a_list_grows_by_a_number_and_is_kept(torrent: Path) -> None:
    nowhere = ["http://127.0.0.1:9"]
    first = library.revoke(torrent, [PEER], trackers=nowhere)
    assert (first.number, first.peers, first.told) == (1, (PEER,), ())
    assert list(first.silent) == nowhere
    assert library.revoke(torrent, [PEER], trackers=nowhere).number == 1  # nothing new
    second = library.revoke(torrent, ["cd" * 32], trackers=nowhere)
    assert (second.number, second.peers) == (2, (PEER, "cd" * 32))
    with pytest.raises(InvitationError, match="it needs a new key"):
        library.invite(torrent, PEER)
    for wrong in (["AB" * 32], ["ab"], ["x"]):
        with pytest.raises(InvitationError, match="64 hex digits"):
            library.revoke(torrent, wrong, trackers=nowhere)


def test_an_id_is_printed_and_its_key_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    first, again = p2pl("id"), p2pl("id")
    key = tmp_path / "p2pl" / "identity.pem"
    assert first.stdout == again.stdout == f"{library.peer_id(key)}\n"  # for a script
    assert "(new:" in first.stderr
    assert "(new:" not in again.stderr
    other = p2pl("id", "--key", tmp_path / "other.pem")
    assert library.peer_id(tmp_path / "other.pem") in other.stdout


def test_revoking_where_no_tracker_answers_ends_with_3(torrent: Path) -> None:
    done = p2pl("revoke", torrent, "--peer", PEER, "--tracker", "http://127.0.0.1:9")
    assert done.returncode == 3
    assert "not told http://127.0.0.1:9" in done.stderr
    assert "the same command tries again" in done.stderr
    nobody = p2pl("revoke", torrent.with_name("none.torrent"), "--peer", PEER)
    assert nobody.returncode == 2


def test_an_invitation_replaces_nothing_but_an_invitation(torrent: Path) -> None:
    key, paper = torrent.with_suffix(".author.pem"), torrent.with_name("anna.invitation")
    link = torrent.with_name("link.invitation")
    link.symlink_to(torrent.with_name("nowhere"))
    for taken in (key, torrent, torrent.parent, link):
        before = taken.read_bytes() if taken.is_file() else b""
        with pytest.raises(InvitationError, match="is there and is no invitation"):
            library.invite(torrent, PEER, out=taken)
        assert (taken.read_bytes() if taken.is_file() else b"") == before
    library.invite(torrent, PEER, out=paper)
    library.invite(torrent, PEER, expires="7d", out=paper)
    assert read_invitation(paper).end != "no end"


def test_an_invitation_is_read_whatever_its_file_is_called_and_a_fault_names_it(
    torrent: Path,
) -> None:
    text = library.invite(torrent, PEER)
    paper = torrent.with_name("p2pl-anna.invitation")
    paper.write_bytes(b"\xef\xbb\xbf" + text.encode())  # with a byte order mark
    assert read_invitation(paper) == read_invitation(str(paper)) == read_invitation(text)
    with pytest.raises(InvitationError, match=r"--invitation .*\.author\.pem"):
        read_invitation(torrent.with_suffix(".author.pem"))


def test_who_knows_that_it_was_taken_back_does_not_join(torrent: Path) -> None:
    key, run_dir, nowhere = (
        torrent.with_name("me.pem"),
        torrent.with_name("run"),
        "http://127.0.0.1:9",
    )
    paper = library.invite(torrent, library.peer_id(key))
    listed = library.revoke(torrent, [library.peer_id(key)], trackers=[nowhere])
    run_dir.mkdir()
    (run_dir / "revoked.txt").write_bytes(listed.file.read_bytes())  # from an earlier run
    with pytest.raises(InvitationError, match=r"taken back by the author .*ask the author"):
        library.join(
            torrent,
            data="digits",
            identity=key,
            invitation=paper,
            run_dir=run_dir,
            trackers=[nowhere],
        )
