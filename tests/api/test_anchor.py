"""A time stamp on a log's checkpoint, by a local authority (openssl ts behind a small server)."""

import datetime
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from support.commands import p2pl

from p2pl.network.keys import Identity
from p2pl.updates.keeper import finish, sha256
from p2pl.updates.log import UpdateLog, Version

SESSION = "5e" * 32
CONFIGURATION = """
[tsa]
serial = {folder}/serial
signer_cert = {folder}/tsa.pem
signer_key = {folder}/tsa.key
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256
ess_cert_id_alg = sha256
"""


def certificate(
    name: str, key: ec.EllipticCurvePrivateKey, issuer: str, signer: ec.EllipticCurvePrivateKey
) -> bytes:
    """Returns a certificate for ever, in PEM; one that its owner signs is an authority's."""
    is_ca, now = name == issuer, datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    built = x509.CertificateBuilder(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]),
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]),
        key.public_key(),
        x509.random_serial_number(),
        now,
        now + datetime.timedelta(days=36_500),
    ).add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
    if not is_ca:
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.TIME_STAMPING])
        built = built.add_extension(usage, critical=True)
    return built.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def authority_in(folder: Path) -> Path:
    """Makes an authority's files; returns its certificate."""
    folder.mkdir()
    keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("ca", "tsa")}
    for name, key in keys.items():
        (folder / f"{name}.pem").write_bytes(certificate(name, key, "ca", keys["ca"]))
    private = keys["tsa"].private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (folder / "tsa.key").write_bytes(private)
    (folder / "serial").write_text("01\n")
    (folder / "tsa.cnf").write_text(CONFIGURATION.format(folder=folder))
    return folder / "ca.pem"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Returns the URL of an authority, and its certificate."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    folder = tmp_path_factory.mktemp("tsa") / "authority"
    root = authority_in(folder)

    class Stamping(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["content-length"])
            (folder / "query").write_bytes(self.rfile.read(length))
            made = [
                "-section",
                "tsa",
                "-queryfile",
                "query",
                "-config",
                "tsa.cnf",
                "-out",
                "answer",
            ]
            subprocess.run(["openssl", "ts", "-reply", *made], cwd=folder, check=True)
            answer = (folder / "answer").read_bytes()
            self.send_response(200)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with HTTPServer(("127.0.0.1", 0), Stamping) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/", root
        server.shutdown()


def run_in(folder: Path) -> Path:
    """Returns a run directory with a finished log of two entries."""
    folder.mkdir()
    identity = Identity.generate()
    log = UpdateLog.open(folder, SESSION, identity.private_key)
    log.append(Version("trained", 1, sha256(b"1")), 1.0)
    log.close()
    finish(folder, SESSION, identity, Version("final", 1, sha256(b"2")), 2.0)
    return folder


def test_a_time_stamp_holds_offline_and_no_other_does(
    authority: tuple[str, Path], tmp_path: Path
) -> None:
    url, root = authority
    run, out = run_in(tmp_path / "run"), tmp_path / "anchor.json"
    done = p2pl("ledger", "anchor", run, "--authority", url, "--ca", root, "--out", out)
    assert done.returncode == 0, done.stderr
    done = p2pl("ledger", "verify", run, out, "--ca", root)
    assert done.returncode == 0, done.stdout
    assert "its log of 2 entries was there on 2" in done.stdout
    assert p2pl("ledger", "verify", out).returncode == 2  # nobody says who is trusted
    other = authority_in(tmp_path / "other")
    done = p2pl("ledger", "verify", out, "--ca", other)
    assert (done.returncode, "the time stamp does not hold" in done.stdout) == (1, True)
    told = json.loads(out.read_text())
    second = run_in(tmp_path / "second")
    again = p2pl("ledger", "anchor", second, "--authority", url, "--ca", root).stdout
    for field in ("checkpoint", "stamp", "public_key"):
        out.write_text(json.dumps({**told, field: json.loads(again)[field]}))
        assert p2pl("ledger", "verify", out, "--ca", root).returncode == 1
    done = p2pl("ledger", "anchor", run, "--authority", "http://127.0.0.1:9/", "--ca", root)
    assert (done.returncode, "no time stamp" in done.stderr) == (1, True)
