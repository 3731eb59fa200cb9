from collections.abc import Sequence

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from p2pl.data.examples import Examples
from p2pl.mixing.trust import opinions
from p2pl.mixing.trust import row as trusting
from p2pl.mixing.trust.row import Learned, Mine, Record, Trust, learn, shunned, told
from p2pl.mixing.trust.screening import Received
from p2pl.protocol.session import Mixing
from p2pl.seeds import seeded
from p2pl.tasks.probe import Probe

# Two classes, told apart by the sign of the first input; the second input is noise.
X = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
MODEL = nn.Linear(2, 2, bias=False)
PROBE = Probe(MODEL, Examples(X, Y))
GOOD = torch.tensor([-2.0, 0.0, 2.0, 0.0])  # parameters that tell them apart
AT_ONCE = Mixing(warmup_rounds=0)
ME = "me"
PEERS = ("a", "b", "c", "d", "e", "f")
# Models far out in a direction that no class is told apart by, so that turning the classes round is
# not yet turning round.
OWN = torch.tensor([-2.0, 8.0, 2.0, 8.0])
HARMFUL = torch.tensor([2.0, 8.0, -2.0, 8.0])
SIDEWAYS = torch.tensor([0.0, 3.0, 0.0, 3.0])
HELPFUL = (OWN + SIDEWAYS, OWN - SIDEWAYS, OWN + 0.9 * SIDEWAYS, OWN - 0.9 * SIDEWAYS)
SLIGHT = 0.65 * OWN + 0.35 * HARMFUL  # harm, but not enough to be out at once


def near(vector: Tensor, seed: int, distance: float = 0.05) -> Tensor:
    """Returns an honest variation of `vector`: at `distance`, somewhere."""
    generator = torch.Generator().manual_seed(seed)
    step = functional.normalize(torch.randn(vector.shape, generator=generator), dim=0)
    return vector + distance * step


def ask(
    received: Sequence[Tensor],
    trust: Trust | None = None,
    mixing: Mixing = AT_ONCE,
    own: Tensor = GOOD,
    notes: Sequence[bytes] = (),
    probe: Probe | None = PROBE,
) -> Learned:
    trust = trust or Trust()
    theirs = [
        Received(peer, vector, trust.rounds, notes[k] if k < len(notes) else b"")
        for k, (peer, vector) in enumerate(zip(PEERS, received, strict=False))
    ]
    return learn(trust, Mine(own, probe, own, ME), theirs, mixing)


def honest(count: int, turn: int = 0) -> list[Tensor]:
    return [near(GOOD, seed) for seed in range(10 * turn, 10 * turn + count)]


def moved_on(vectors: Sequence[Tensor], turn: int) -> list[Tensor]:
    """Returns nearly the same parameters: peers go on, and a repetition says nothing new."""
    return [near(vector, turn, 1e-4) for vector in vectors]


def known(rounds: int = 5, **harms: float) -> Trust:
    records = {peer: Record(harm, 0.0, rounds) for peer, harm in harms.items()}
    return Trust(records=records, rounds=rounds)


def test_among_honest_peers_the_row_is_exactly_equal() -> None:
    trust = Trust()
    for turn in range(5):
        learned = ask(honest(4, turn), trust)
        assert learned.row[1:] == (0.2,) * 4
        assert sum(learned.row) == pytest.approx(1)
        assert learned.rejected == {}
        trust = learned.trust


def test_with_nobody_there_i_keep_my_own() -> None:
    before = known(a=0.1)
    assert ask([], before) == Learned((1.0,), before, {})


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (-3 * GOOD, "direction"),
        (-GOOD, "direction"),
        (0 * GOOD, "direction"),
        (1e6 * GOOD, "norm"),
        (-1e6 * GOOD, "norm"),
        (9 * GOOD, "distance"),
    ],
)
@pytest.mark.parametrize("warmup", [0, 5])
def test_a_model_of_nobody_s_session_is_rejected_from_round_one(
    bad: Tensor, reason: str, warmup: int
) -> None:
    learned = ask([*honest(3), bad], mixing=Mixing(warmup_rounds=warmup))
    assert list(learned.rejected) == ["d"]
    assert learned.rejected["d"].startswith(reason)
    assert learned.row[4] == 0
    assert learned.row[1:4] == (0.25,) * 3


def test_a_liar_alone_with_me_is_rejected_all_the_same() -> None:
    for bad in (-GOOD, 1e6 * GOOD):
        assert ask([bad]).row == (1.0, 0.0)


def test_a_majority_of_liars_is_rejected_all_the_same() -> None:
    learned = ask([honest(1)[0], -3 * GOOD, -GOOD, 1e6 * GOOD])
    assert sorted(learned.rejected) == ["b", "c", "d"]
    assert learned.row == pytest.approx((0.5, 0.5, 0, 0, 0))


def test_where_i_stand_at_zero_nobody_can_be_compared() -> None:
    assert ask(honest(2), own=torch.zeros(4)).row == (1.0, 0.0, 0.0)


def test_the_same_model_as_mine_is_welcome() -> None:
    assert ask([GOOD]).row == pytest.approx((0.5, 0.5))


def test_a_repetition_has_no_weight_and_does_no_harm() -> None:
    first = ask([*honest(2), honest(1)[0]])
    assert first.rejected == {"c": "repeated: the parameters of a"}
    assert first.row == pytest.approx((1 / 3, 1 / 3, 1 / 3, 0))
    again = ask([honest(1)[0], *honest(2, 1)], first.trust)
    assert again.rejected == {"a": "repeated: the parameters of its round 0"}
    assert ask(honest(3, 2), again.trust).row[1:] == (0.25,) * 3


def test_a_model_that_does_clear_harm_is_out_at_once() -> None:
    learned = ask([*HELPFUL[:3], HARMFUL], own=OWN, mixing=Mixing(warmup_rounds=9))
    assert list(learned.rejected) == ["d"]
    assert learned.rejected["d"].startswith("harm: got 0.")
    assert learned.row == pytest.approx((0.25, 0.25, 0.25, 0.25, 0))


def test_two_that_do_clear_harm_are_both_found() -> None:
    assert sorted(ask([*HELPFUL, HARMFUL, 1.01 * HARMFUL], own=OWN).rejected) == ["e", "f"]


def test_examples_that_disagree_are_too_few_to_reject_anybody() -> None:
    probe = Probe(MODEL, Examples(torch.tensor([[-0.001, 0.0], [1.0, 0.0]]), torch.tensor([0, 1])))
    harm, noise = probe.harm(OWN, HARMFUL)
    assert 0.2 < harm < 3 * noise  # no finer than one example
    assert ask([*HELPFUL[:3], HARMFUL], own=OWN, probe=probe).rejected == {}


def test_one_example_is_no_evidence() -> None:
    one = Probe(MODEL, Examples(X[:1], Y[:1]))
    learned = ask([*HELPFUL[:3], HARMFUL], own=OWN, probe=one)
    assert learned.row == pytest.approx((0.2,) * 5)
    assert told(learned.trust, AT_ONCE) == b""


class Doubtful:
    """A judge that finds a harm beyond all bounds in one peer's model, and is as unsure of it."""

    def harm(self, before: Tensor, after: Tensor) -> tuple[float, float]:
        """Returns a harm of 1 where the change goes towards the harmful model."""
        towards = float((after - before) @ (HARMFUL - OWN)) > 0
        return (1.0, 0.4) if towards else (0.0, 0.001)


def test_a_harm_that_is_cut_off_is_as_sure_as_it_was() -> None:
    """0.25 of 0.4 would be noise for ever, and 1 of 0.4 is none."""
    received = [Received(p, v, 0) for p, v in zip("abc", (*HELPFUL[:2], SLIGHT), strict=True)]
    learned = learn(Trust(), Mine(OWN, Doubtful(), OWN, ME), received, AT_ONCE)
    assert learned.trust.records["c"].harm == 0.25
    assert learned.row[3] == 0


def test_little_harm_costs_the_place_as_soon_as_experience_counts() -> None:
    trust, weights = Trust(), []
    for turn in range(4):
        received = moved_on([*HELPFUL, SLIGHT], turn)
        learned = ask(received, trust, own=OWN, mixing=Mixing(warmup_rounds=2))
        weights.append(learned.row[5])
        trust = learned.trust
    assert weights[:2] == pytest.approx([1 / 6] * 2)
    assert weights[2:] == [0, 0]
    assert learned.rejected["e"].startswith("harm: got 0.03")
    assert learned.row == pytest.approx((0.2, 0.2, 0.2, 0.2, 0.2, 0))


def test_the_more_harm_the_less_weight() -> None:
    # Of five, none is judged: without examples only what was measured before counts.
    rows = [
        ask(HELPFUL, known(a=0, b=0, c=0, d=harm), own=OWN, probe=None).row[4]
        for harm in (-0.1, 0.0, 0.012, 0.015, 0.02, 0.1)
    ]
    assert rows[:3] == [0.2] * 3
    assert 0.2 > rows[3] > rows[4] > rows[5] == 0


def test_what_all_do_to_me_is_no_harm_of_one() -> None:
    # My own class boundary is turned by 90 degrees: everybody else spoils it, none is the odd one.
    turned = torch.tensor([1.0, -2.0, -1.0, 2.0])
    probe = Probe(MODEL, Examples(X, (X[:, 1] > 0.5 * X[:, 0]).long().neg().add(1)))
    learned = ask([OWN + near(SIDEWAYS, k, 0.01) for k in range(5)], own=turned, probe=probe)
    assert learned.rejected == {} or all(
        r.startswith("direction") for r in learned.rejected.values()
    )


def test_a_peer_that_was_rejected_earns_its_place_back() -> None:
    trust = known(a=0, b=0, c=0, d=0.25)
    first = ask(HELPFUL, trust, own=OWN)
    assert list(first.rejected) == ["d"]
    rounds = 1
    while (learned := ask(moved_on(HELPFUL, rounds), trust, own=OWN)).rejected:
        trust = learned.trust
        rounds += 1
    assert 5 <= rounds <= 15


def test_a_peer_screened_out_pays_for_it_later() -> None:
    trust = ask([*honest(3), -GOOD]).trust
    assert trust.records["d"].harm == trusting.HARM_RANGE
    assert list(ask(honest(4, 1), trust).rejected) == ["d"]


def test_whom_i_found_to_do_much_harm_i_do_not_ask_again() -> None:
    trust = known(a=0.2, b=trusting.SHUN_HARM - 0.01, c=0.0)
    assert shunned(trust, ME, AT_ONCE) == {"a"}


def test_one_bad_round_is_no_reason_to_ask_no_more() -> None:
    once = Trust(records={"a": Record(0.25, 0.0, 1)}, rounds=5)
    assert shunned(once, ME, AT_ONCE) == frozenset()


def test_now_and_then_all_are_asked_again() -> None:
    rounds = [n for n in range(1, 31) if not shunned(known(n, a=0.2), ME, AT_ONCE)]
    assert rounds == [1, 10, 20, 30]  # in the first, a was met but once


def test_whom_most_others_speak_for_i_ask_all_the_same() -> None:
    trust = known(a=0.2, b=0.0, c=0.0)
    spoken_for = msgspec.structs.replace(trust, heard={"b": say(a=0.0), "c": say(a=0.0)})
    assert shunned(spoken_for, ME, AT_ONCE) == frozenset()


def test_harm_of_a_peer_not_seen_fades() -> None:
    after = ask(honest(2), known(z=0.1)).trust
    assert after.records["z"].harm == pytest.approx(0.098)
    assert after.records["z"].rounds == 5


# --- opinions -------------------------------------------------------------------------------------


def say(**harms: float) -> bytes:
    return opinions.encode(harms)


def test_who_does_harm_elsewhere_is_rejected_by_the_word_of_the_others() -> None:
    trust = known(a=0, b=0, c=0, d=0)
    notes = [say(d=0.2), say(d=0.2), say(d=0.2)]
    assert ask(honest(4), trust, notes=notes[:1]).rejected == {}
    learned = ask(honest(4), trust, notes=notes)
    assert list(learned.rejected) == ["d"]
    assert "by all opinions" in learned.rejected["d"]


def test_nobody_is_heard_about_itself() -> None:
    trust = known(a=0, b=0, c=0, d=0.2)
    notes = [say(d=0.2), say(d=0.2), b"", say(d=-0.25)]
    assert list(ask(honest(4), trust, notes=notes).rejected) == ["d"]


def test_who_is_not_trusted_is_not_heard() -> None:
    trust = known(a=0, b=0, c=0.2, d=0.2, e=0.2)
    lies = say(a=0.25, b=0.25)
    learned = ask(honest(5), trust, notes=[b"", b"", lies, lies, lies])
    assert sorted(learned.rejected) == ["c", "d", "e"]


def test_a_stranger_is_not_heard() -> None:
    lies = say(a=0.25)
    learned = ask(honest(5), known(a=0, b=0), notes=[b"", b"", lies, lies, lies])
    assert learned.rejected == {}


def test_who_says_that_i_do_harm_is_known_to_lie() -> None:
    trust = known(a=0, b=0, c=0, d=0)
    lies = [say(a=0.25, me=0.25)] * 4
    assert ask(honest(4), trust, notes=lies).rejected == {}
    mistaken = [say(a=0.25, me=0.04)] * 4
    assert list(ask(honest(4), trust, notes=mistaken).rejected) == ["a"]


def test_fewer_than_half_cannot_defame() -> None:
    trust = known(a=0, b=0, c=0, d=0, e=0)
    fair, lies = say(a=0, b=0, c=0, d=0, e=0), say(a=0.25, b=0.25, c=0.25)
    assert ask(honest(5), trust, notes=[fair, fair, fair, lies, lies]).rejected == {}


def test_fewer_than_half_cannot_vouch_for_each_other() -> None:
    trust = known(a=0, b=0, c=0, d=0.004, e=0.004)
    fair, lies = say(d=0.2, e=0.2), say(d=-0.25, e=-0.25)
    learned = ask(honest(5), trust, notes=[fair, fair, fair, lies, lies])
    assert sorted(learned.rejected) == ["d", "e"]


def test_notes_that_cannot_be_read_cost_the_opinion_alone() -> None:
    trust = known(a=0, b=0, c=0, d=0)
    learned = ask(honest(4), trust, notes=[b"\x93\x01", b"?" * 1_024, say(d=0.1)])
    assert learned.row == pytest.approx((0.2,) * 5)
    assert list(learned.trust.heard) == ["c"]


def test_what_was_said_is_remembered_until_the_same_peer_says_more() -> None:
    trust = known(a=0, b=0, c=0, d=0)
    trust = ask(honest(4), trust, notes=[say(d=0.2), say(d=0.2), say(d=0.2)]).trust
    assert ask(honest(4, 1), trust, notes=[b"", b"", b""]).rejected == {}
    later = learn(trust, Mine(GOOD, PROBE, GOOD), [Received("d", near(GOOD, 33), 9)], AT_ONCE)
    assert list(later.rejected) == ["d"]


def test_i_tell_what_i_measured_and_not_what_i_heard() -> None:
    trust = known(a=0.1, b=0)
    learned = ask(honest(2), trust, notes=[say(z=0.2), say(z=0.2)])
    heard = opinions.decode(told(learned.trust, AT_ONCE))
    assert set(heard) == {opinions.name_of("a"), opinions.name_of("b")}


def test_i_tell_of_those_i_met_most_often() -> None:
    records = {f"peer {i}": Record(0.25, 0.0, 1) for i in range(500)}
    trust = Trust(records={**records, "a": Record(0.1, 0.0, 9)}, rounds=9)
    assert opinions.name_of("a") in opinions.decode(told(trust, AT_ONCE))


def test_what_only_noise_speaks_for_is_not_told() -> None:
    records = {"a": Record(0.1, 0.09, 3), "b": Record(0.1, 0.01, 3), "c": Record(0.0, None, 3)}
    heard = opinions.decode(told(Trust(records=records), AT_ONCE))
    assert heard == {opinions.name_of("b"): pytest.approx(0.1)}


# --- strangers ------------------------------------------------------------------------------------


def test_a_stranger_weighs_little_until_it_is_known() -> None:
    trust = known(a=0, b=0, c=0)
    first = ask(honest(4), trust)
    assert first.row[4] == pytest.approx(first.row[1] / 4)
    second = ask(honest(4, 1), first.trust)
    assert second.row[1:] == (0.2,) * 4


def test_strangers_weigh_no_more_than_the_known() -> None:
    crowd = [Received(f"s{i}", near(GOOD, i)) for i in range(40)]
    theirs = [Received("a", GOOD), Received("b", GOOD), *crowd]
    row = learn(known(a=0, b=0), Mine(GOOD, PROBE, GOOD), theirs, AT_ONCE).row
    assert sum(row[3:]) <= row[1] + row[2] + 1e-9
    alone = learn(known(a=0), Mine(GOOD, PROBE, GOOD), crowd, AT_ONCE).row
    assert sum(alone[1:]) <= 0.5 + 1e-9


def test_in_the_beginning_all_are_strangers_and_equal() -> None:
    assert ask(honest(4)).row[1:] == (0.2,) * 4


def test_whom_a_friend_has_met_is_no_stranger() -> None:
    learned = ask(honest(4), known(a=0, b=0, c=0), notes=[say(d=0.0)])
    assert learned.row[1:] == (0.2,) * 4


# --- memory ---------------------------------------------------------------------------------------


def test_memory_of_strangers_is_bounded_and_keeps_those_met_most_often() -> None:
    crowd = {f"peer {i}": Record(0.1, 0.0, 1 + (i == 1999)) for i in range(2_000)}
    kept = ask(honest(2), Trust(records=crowd, rounds=1)).trust.records
    assert len(kept) == trusting.MAX_REMEMBERED
    assert {"peer 1999", "a", "b"} <= set(kept)


def test_memory_of_opinions_is_bounded() -> None:
    trust = Trust()
    for i in range(100):
        theirs = [Received(f"peer {i}", near(GOOD, i), notes=say(a=0.1))]
        trust = learn(trust, Mine(GOOD, PROBE, GOOD), theirs, AT_ONCE).trust
    assert len(trust.heard) == trusting.MAX_HEARD
    assert "peer 99" in trust.heard


def test_what_is_remembered_survives_json() -> None:
    trust = ask(honest(4), known(a=0.1), notes=[say(d=0.2)]).trust
    assert msgspec.json.decode(msgspec.json.encode(trust), type=Trust) == trust
    assert msgspec.convert(msgspec.to_builtins(trust), Trust) == trust
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"records": {"a": {"harm": 99.0, "noise": 0, "rounds": 1}}}, Trust)


def test_what_an_older_version_remembered_can_be_read() -> None:
    old = {"logits": {"a": 1.0}, "radius": 0.5, "rounds": 3}
    assert msgspec.convert(old, Trust) == Trust(radius=0.5, rounds=3)


# --- always ---------------------------------------------------------------------------------------


def test_learning_changes_nobody_s_parameters() -> None:
    received = [OWN.clone(), HARMFUL.clone(), SLIGHT.clone()]
    before = [vector.clone() for vector in received]
    ask(received, own=OWN)
    assert all(torch.equal(a, b) for a, b in zip(received, before, strict=True))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 6), st.integers(0, 10_000), st.floats(0.01, 100), st.integers(0, 2))
def test_a_row_is_always_a_row(count: int, seed: int, size: float, warmup: int) -> None:
    generator = seeded("s", "p", seed, "vectors")
    received = [size * torch.randn(4, generator=generator) + GOOD for _ in range(count)]
    learned = ask(received, known(a=0.0, b=0.014, c=0.2), Mixing(warmup_rounds=warmup))
    assert len(learned.row) == count + 1
    assert min(learned.row) >= 0
    assert sum(learned.row) == pytest.approx(1)
    for peer, weight in zip(PEERS, learned.row[1:], strict=False):
        assert (weight == 0) == (peer in learned.rejected)


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(4)))
def test_the_order_in_which_models_arrive_does_not_matter(order: list[int]) -> None:
    theirs = [Received(p, v) for p, v in zip(PEERS, [*HELPFUL[:2], SLIGHT, -OWN], strict=False)]
    mine = Mine(OWN, PROBE, OWN)
    straight = learn(known(a=0.015, b=0.0), mine, theirs, AT_ONCE)
    turned = learn(known(a=0.015, b=0.0), mine, [theirs[i] for i in order], AT_ONCE)
    assert turned.rejected == straight.rejected
    for place, i in enumerate(order):
        assert turned.row[place + 1] == pytest.approx(straight.row[i + 1], abs=1e-5)
