"""What decodes update logs, for `scripts/fuzz`: a mutated input that is taken is a fault."""

import json
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pl.api import anchor
from p2pl.api.ledger import exported, inclusion, read_log, verified
from p2pl.errors import LogError
from p2pl.network.keys import Identity
from p2pl.protocol.identity import peer_id_of
from p2pl.protocol.updates import entry, fault, message, witness
from p2pl.protocol.updates.head import cosign, note, read_note, sign_head
from p2pl.updates.file import LOG_FILE, read
from p2pl.updates.keeper import Keeper
from p2pl.updates.log import UpdateLog, Version
from p2pl.updates.watch import Watch, put_own_head
from p2pl_tracker.witness import MemoryCheckpoints, Witness, has_grown

SESSION = "5e" * 32
NOW_S = 1_700_000_000
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
# A checkpoint of that key's log with a stamp, and the authority's certificate; made by openssl ts.
ANCHOR = Path(__file__).with_name("fuzz_anchor.json")
WITNESS = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))


def _watch() -> Watch:
    return Watch(SESSION, WITNESS, lambda _: None, lambda: float(NOW_S), lambda _: True)


class Logs:
    """A log of five entries, what its author says of it, and what is taken for that.

    Args:
        folder: for the file of a log.
    """

    def __init__(self, folder: Path) -> None:
        log = UpdateLog(SESSION, KEY)
        for index in range(5):
            log.append(Version("trained", index, bytes([index] * 32), epsilon=0.5), NOW_S)
        self._log, self._author, self._last = log, log.public_key, log.entries[-1]
        session, head = bytes.fromhex(SESSION), log.head
        grown = (log.tree.consistency(3, 5), log.tree.consistency(4, 5))
        heard = (message.Heard(self._author, head),)
        anew = msgspec.structs.replace(self._last.entry, digest=bytes(32))
        self._faults = (
            fault.TwoHeads(session, self._author, head, sign_head(KEY, SESSION, 5, bytes(32))),
            fault.TwoEntries(session, self._author, self._last, entry.signed(anew, SESSION, KEY)),
        )
        self._question = message.Question((3, 4), None, heard, (entry.encode(self._faults[0]),))
        included = log.tree.inclusion(4, 5)
        came = message.Commitment(self._author, self._last, head, included, grown, heard, ())
        self._file = self._written(folder / "a-log")
        text = note(head, SESSION, self._author)
        seen = cosign(WITNESS, read_note(text).text, NOW_S)
        whole = self._file.read_bytes()
        kept = read_log(self._file.parent)
        self._shown = folder / "shown.json"
        self._proof = json.loads(inclusion(kept, 1))
        stamped = json.loads(ANCHOR.read_text())
        self._roots = x509.load_pem_x509_certificates(stamped.pop("authority").encode())
        self._stamped = json.dumps(stamped).encode()
        self._shown.write_bytes(self._stamped)
        self._said = anchor.checked(self._shown, self._roots)
        assert all(one.holds for one in self._said), self._said
        told = witness.Shown(session, self._author, head, 4, log.tree.consistency(4, 5))
        cosigned = witness.Kept(self._author, head, seen)
        self._told, self._cosigned = told, cosigned
        self._me = Identity(KEY, self._author, log.peer_id)
        checkpoints = MemoryCheckpoints(lambda: 0.0)
        self._tracker = Witness(WITNESS, checkpoints, now=lambda: 0.0, wall=lambda: NOW_S)
        self.examples = {
            "entry": (entry.encode(self._last),),
            "commitment": (entry.encode(came),),
            "question": (entry.encode(self._question),),
            "fault": tuple(map(entry.encode, self._faults)),
            "checkpoint": (text.encode(), note(head, SESSION, self._author, [seen]).encode()),
            "file": (whole, whole[:-9]),
            "inclusion": (inclusion(kept, 1).encode(),),
            "shown": (entry.encode(told),),
            "kept": (entry.encode(cosigned),),
            "anchor": (self._stamped,),
            "export": ("".join(f"{line}\n" for line in exported(kept)).encode(),),
        }

    def _written(self, folder: Path) -> Path:
        folder.mkdir()
        log = UpdateLog.open(folder, SESSION, KEY)
        for index in range(2):
            log.mixed(index, {log.peer_id: 1.0}, {}, {"ab" * 32: "late"})
            log.append(Version("trained", index, bytes(32)), NOW_S)
        log.close()
        put_own_head(folder, log.head)
        self._on_disk = {one.entry for one in log.entries}
        return folder / LOG_FILE

    def entry(self, data: bytes) -> None:
        """Takes an entry in."""
        read_entry = entry.decode(entry.SignedEntry, data, entry.MAX_ENTRY_BYTES)
        read_entry.check(SESSION, self._author)
        assert read_entry == self._last, "a false entry was taken"

    def commitment(self, data: bytes) -> None:
        """Takes in what comes with a version."""
        came, digest = message.read_commitment(data), bytes([4] * 32)
        _watch().answered(peer_id_of(self._author), self._question, came, digest)
        assert came.signed == self._last, "a false commitment was taken"

    def question(self, data: bytes) -> None:
        """Takes in what comes with a question."""
        watch = _watch()
        watch.asked("ab" * 32, message.read_question(data))
        assert all(one in self._faults for one in watch.faults.values()), "a false proof was taken"

    def fault(self, data: bytes) -> None:
        """Takes a proof of two histories in, in whichever order the two stand."""
        found = fault.decode_fault(data)
        found.check()
        signed = {one for each in self._faults for one in (each.first, each.second)}
        assert {found.first, found.second} <= signed, "a false proof was taken"

    def checkpoint(self, data: bytes) -> None:
        """Takes a checkpoint in."""
        head = read_note(data.decode("utf-8", "replace")).check(self._author)
        assert (head.size, head.root) == (5, self._log.head.root), "a false checkpoint was taken"

    def inclusion(self, data: bytes) -> None:
        """Checks the file of a proof of inclusion; its checkpoint may have more signatures."""
        self._shown.write_bytes(data)
        (found,) = verified([self._shown])
        if not found.holds:
            raise LogError(found.text)
        told = json.loads(data.decode(errors="replace"))
        body = self._proof["checkpoint"].partition("\n\n")[0]
        assert told.pop("checkpoint").partition("\n\n")[0] == body, "a false proof was taken"
        assert {**told, "checkpoint": self._proof["checkpoint"]} == self._proof, (
            "a false proof was taken"
        )

    def shown(self, data: bytes) -> None:
        """Takes in what a peer shows a tracker."""
        shown, _ = self._tracker.read(data)
        was = sign_head(KEY, SESSION, 4, self._log.tree.root(4))
        kept = witness.Kept(self._author, was, self._cosigned.cosignature)
        assert not has_grown(kept, shown) or shown == self._told, "a false checkpoint was taken"

    def kept(self, data: bytes) -> None:
        """Takes in what a tracker keeps of a peer's own log."""
        mine = Keeper(self._log, None, self._me, lambda: float(NOW_S), lambda _: True)
        mine.take_cosigned(self._log.head, data)
        assert witness.read_kept(data) == self._cosigned, "a false cosignature was taken"

    def anchor(self, data: bytes) -> None:
        """Checks the file of a time stamp."""
        self._shown.write_bytes(data)
        found = anchor.checked(self._shown, self._roots)
        if not all(one.holds for one in found):
            raise LogError(found[0].text)
        assert found == self._said, "a false time stamp was taken"

    def export(self, data: bytes) -> None:
        """Reads the file of an export."""
        self._shown.write_bytes(data)
        entries = {one.signed.entry for one in read_log(self._shown).records}
        assert entries <= self._on_disk, "a false export was taken"

    def file(self, data: bytes) -> None:
        """Reads the file of a log."""
        self._file.write_bytes(data)
        kept = read(self._file, every=True)
        entries = {one.signed.entry for one in kept.records} if kept else set()
        assert entries <= self._on_disk, "a false log was taken"
