"""The fuzzer finds what it looks for, and every decoder stands a few hundred of its inputs."""

import argparse
import itertools
import os
import random
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import fuzz as fuzzing
import fuzz_inputs
import msgspec
import pytest
from fuzz import Fault, Fuzzer
from fuzz_decoders import Decoder, decoders
from hypothesis import HealthCheck, given, settings
from support.processes import ROOT

from p2pl.errors import FrameError
from p2pl.protocol import frame

INPUTS = 150  # of each decoder; `scripts/fuzz` has as many as one likes


@pytest.fixture(scope="module")
def known() -> Iterator[dict[str, Decoder]]:
    """Returns every decoder by name, with a folder for its files."""
    with decoders() as found:
        yield {one.name: one for one in found}


def fuzzer(decoder: Decoder, out: Path) -> Fuzzer:
    """Returns a fuzzer for which no machine is too slow."""
    return Fuzzer(decoder, out, cpu=lambda: 0.0)


def test_every_decoder_stands_what_nobody_meant(known: dict[str, Decoder], tmp_path: Path) -> None:
    broken: list[Fault] = []
    for decoder in known.values():
        one = fuzzer(decoder, tmp_path)
        fuzzing.fuzz(one, INPUTS, 0.0, number=1)
        assert one.tally.inputs >= INPUTS
        assert one.tally.taken, decoder.name
        broken += one.tally.faults
    assert broken == []


def test_security_names_decoders_that_there_are(known: dict[str, Decoder]) -> None:
    named = re.findall(r"--only ([a-z0-9-]+)", (ROOT / "SECURITY.md").read_text())
    assert named
    assert set(named) <= set(known)


def read_all(data: bytes) -> object:
    if data[:1] == b"k":
        raise KeyError("k")
    if data[:1] == b"m":
        return bytearray(100 << 20)
    if data[:1] == b"r":
        raise FrameError("refused")
    return None


@pytest.mark.parametrize(("data", "told"), [(b"k", "KeyError"), (b"m", "MiB of memory")])
def test_an_input_that_breaks_a_decoder_is_kept(tmp_path: Path, data: bytes, told: str) -> None:
    one = fuzzer(Decoder("made-up", read_all, (b"ok",)), tmp_path)
    one.batch([b"ok", b"r", data, data])
    (fault,) = one.tally.faults
    assert told in fault.what
    assert Path(fault.file).read_bytes() == data
    assert (one.tally.inputs, one.tally.taken >= 1) == (4, True)


def test_an_input_that_takes_long_is_kept(tmp_path: Path) -> None:
    clock = itertools.count(0.0, 2.0)
    one = Fuzzer(Decoder("made-up", read_all, (b"ok",)), tmp_path, cpu=lambda: next(clock))
    one.batch([b"ok"])
    assert [fault.what for fault in one.tally.faults] == ["2.0 s of processor time"]


def test_an_input_that_never_ends_is_given_up(tmp_path: Path) -> None:
    def spin(_: bytes) -> None:
        while True:
            pass

    one = Fuzzer(Decoder("made-up", spin, (b"ok",)), tmp_path, hangs_after_s=0.05)
    one.batch([b"ok"])
    assert "not done" in one.tally.faults[0].what


def test_a_decoder_that_ends_its_process_is_found(tmp_path: Path) -> None:
    asked = argparse.Namespace(out=tmp_path, inputs=1, seed=0)
    tally = fuzzing.run_apart(
        Decoder("made-up", lambda _: os.kill(os.getpid(), signal.SIGKILL), (b"ok",)), asked, 0.0
    )
    assert tally.faults[0].what == "the process ended with -9"


def test_the_command_knows_its_decoders(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert fuzzing.main(["--only", "nothing"]) == 2
    assert "allowed" in capsys.readouterr().err
    assert fuzzing.main(["--only", "notes", "--inputs", "50", "--out", str(tmp_path)]) == 0
    assert "nothing broke" in capsys.readouterr().out


def test_mutants_are_many_and_some_are_still_right() -> None:
    rng = random.Random(1)
    whole = [frame.encode(frame.Busy(5)), frame.encode(frame.Refused("no"))]
    made = [fuzz_inputs.mutant(rng, whole, fuzz_inputs.MSGPACK) for _ in range(500)]
    assert len(set(made)) > 300
    right = 0
    for data in made:
        try:
            frame.decode_answer(data)
            right += 1
        except FrameError:
            pass
    assert 20 < right < 480


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(fuzz_inputs.values_of(frame.Busy).map(msgspec.msgpack.encode))
def test_values_of_a_type_have_its_form(data: bytes) -> None:
    value = msgspec.msgpack.decode(data)
    assert not isinstance(value, list) or len(value) in (0, 2)


def test_ci_fuzzes_for_a_minute() -> None:
    assert fuzzing.DEFAULT_S == 60
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert [line for line in lines if line.split("||")[0].strip() == "scripts/fuzz"]
