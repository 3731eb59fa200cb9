"""A bad peer in a real swarm: what it serves, and where it may not go."""

import pytest
import torch
from support.simulations import digits, small_setup
from torch import Tensor

from p2pl.attacks.kinds import DEFAMED, KINDS, parse_kind
from p2pl.attacks.peer import NEEDS_A_SIMULATION, Attacker, check, spoilt
from p2pl.errors import InputError
from p2pl.learner import Learner
from p2pl.learning.weights import flatten
from p2pl.mixing.base import PeerModel
from p2pl.mixing.trust import opinions
from p2pl.simulation.peers import peers_of, torch_trainer

HERE = (("http://127.0.0.1:6969",), ("http://localhost:1", "http://[::1]:2"))


@pytest.fixture(scope="module")
def learner() -> Learner:
    return peers_of(small_setup(), digits(), torch.device("cpu"))[0]


def models(*vectors: Tensor) -> dict[str, PeerModel]:
    return {str(at): PeerModel(1, 10, vector) for at, vector in enumerate(vectors)}


def test_it_lies_from_the_first_round_on(learner: Learner) -> None:
    attacker, own = (
        Attacker(parse_kind("sign-flip:-3"), learner),
        flatten(torch_trainer(learner).model),
    )
    assert torch.equal(attacker.lie(0, own, {}), own)
    assert torch.equal(attacker.lie(1, own, {}), -3 * own)


def test_it_goes_by_what_it_pulled(learner: Learner) -> None:
    own = flatten(torch_trainer(learner).model)
    one, two = own + 1, own + 3
    rider = Attacker(parse_kind("free-rider"), learner)
    torch.testing.assert_close(rider.lie(1, own, models(one, two)), own + 2)
    ipm = Attacker(parse_kind("ipm:10"), learner)
    torch.testing.assert_close(ipm.lie(1, own, models(one)), own + 1)  # nothing learned yet
    torch.testing.assert_close(ipm.lie(2, own, models(two)), own + 3 - 10 * 2)
    stale = Attacker(parse_kind("stale"), learner)
    assert torch.equal(stale.lie(1, one, {}), one)
    assert torch.equal(stale.lie(2, two, {}), one)


def test_an_adaptive_one_tries_its_lie_on_its_own_rule(learner: Learner) -> None:
    own = flatten(torch_trainer(learner).model)
    others = models(own * 1.01, own * 0.99, own * 1.02)
    lie = Attacker(parse_kind("adaptive"), learner).lie(1, own, others)
    before = learner.mix(own, others, 1).vector
    after = learner.mix(own, {**others, "liar": PeerModel(1, 10, lie)}, 1).vector
    assert learner.loss_by_taking(after, before) > 0


@pytest.mark.parametrize("kind", sorted(set(KINDS) - set(NEEDS_A_SIMULATION)))
def test_every_attack_has_something_to_serve_alone_and_with_others(
    kind: str, learner: Learner
) -> None:
    check(parse_kind(kind), HERE)
    attacker, own = Attacker(parse_kind(kind), learner), flatten(torch_trainer(learner).model)
    for index, pulled in enumerate(({}, models(own + 1), models(own + 1, own + 2)), 1):
        assert attacker.lie(index, own, pulled).shape == own.shape


def test_a_ledger_liar_defames_whom_it_met(learner: Learner) -> None:
    met = models(flatten(torch_trainer(learner).model))
    liar = Attacker(parse_kind("ledger-liar"), learner)
    assert opinions.decode(liar.gossip(b"", met)) == {
        opinions.name_of("0"): pytest.approx(DEFAMED, abs=opinions.STEP)
    }
    assert Attacker(parse_kind("alie"), learner).gossip(b"what it measured", met) == (
        b"what it measured"
    )


def test_its_labels_are_changed_before_it_trains(learner: Learner) -> None:
    rows, own = torch.arange(50), torch_trainer(learner).own
    flipped = spoilt(parse_kind("label-flip"), own, learner.session.task, ("s", "p")).take(rows).y
    assert torch.equal(flipped, 9 - own.take(rows).y)


@pytest.mark.parametrize(
    "url",
    [
        "http://tracker.example:6969",
        "https://192.168.1.4",
        "http://10.0.0.1",
        "http://[2001:db8::1]:80",
        "http://127.0.0.1.example",
    ],
)
def test_it_is_refused_where_others_are(url: str) -> None:
    with pytest.raises(InputError, match="tracker"):
        check(parse_kind("sign-flip"), (*HERE, (url,)))


@pytest.mark.parametrize("kind", ["sybil", "absent", "backdoor", "ledger-liar:backdoor"])
def test_what_one_peer_cannot_do_is_refused(kind: str) -> None:
    with pytest.raises(InputError, match="simulate"):
        check(parse_kind(kind), HERE)
