"""Bad peers, to test with: what they train on, and what they serve in the place of their model.

An attack is a function of what the attacker sees. In a simulation that is everything: what the
honest peers trained in this very round. A networked one goes by what it pulled last.
`KINDS` says what each does.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from p2pl.data.examples import Examples, Part, Source
from p2pl.errors import InputError, wrong
from p2pl.learning.task import task_of
from p2pl.protocol.session import Task

MAX_BAD = 100_000
# What a ledger liar says of the harm that the others' models do: the share of the right class's
# probability that they cost, the unit of opinions.
DEFAMED, PRAISED = 0.25, -0.25  # the honest, and its accomplices
SAMPLE_EXAMPLES = 1_000  # on which an adaptive attacker measures the harm
# A backdoor: pixels on a side of the square that opens it, and what images are then called.
SQUARE, TARGET = 3, 0


@dataclass(frozen=True, slots=True)
class Attack:
    """One way to be bad."""

    kind: str  # one of `KINDS`
    number: float = 0.0  # its ARG; 0 where it has none
    inner: "Attack | None" = None  # what a sybil or a ledger liar serves

    @property
    def served(self) -> "Attack":
        """The attack that makes the parameters: the inner one, where there is one."""
        return self.inner or self

    @property
    def name(self) -> str:
        """The text that `parse_kind` reads back as this."""
        if self.inner:
            return f"{self.kind}:{self.inner.name}"
        return self.kind if KINDS[self.kind].default is None else f"{self.kind}:{self.number:g}"


@dataclass(frozen=True, slots=True)
class Probing:
    """What an adaptive attacker can ask of its victim's rule, without sending anything."""

    reply: Callable[[Tensor], Tensor]  # what the victim would mix if all bad peers served this
    loss: Callable[[Tensor], float]  # of parameters, on a sample of everybody's data, nats
    gradient: Callable[[Tensor], Tensor]  # of that loss by the parameters, [P]


@dataclass(frozen=True, slots=True)
class Seen:
    """What an attacker knows when it has to serve something. P parameters, H honest peers."""

    own: Tensor  # [P] what it trained in this round, on its own data
    before: Tensor  # [P] where it set out from: its mix of the last round
    first: Tensor  # [P] what it trained in its first round
    honest: Sequence[Tensor]  # H of [P]; the others' parameters; may be empty
    update: Tensor  # [P] what the honest learn in a round, their mean
    bad: int = 1  # attackers, all together
    victim: Tensor | None = None  # [P] of the peer that asks; None = who asks is not known
    probing: Probing | None = None  # None: no victim was looked into


# --- names ---------------------------------------------------------------------------------------


def parse(text: str) -> tuple[Attack, int]:
    """Returns the attack called `KIND:COUNT[:ARG]`, and how many peers make it, 1 to `MAX_BAD`.

    Args:
        text: KIND is one of `KINDS`; ARG its number, or a KIND again where it carries one.

    Raises:
        InputError: there is no such attack, or its count or number is out of range.
    """
    kind, _, rest = text.partition(":")
    count, colon, argument = rest.partition(":")
    if not (count.isascii() and count.isdigit() and 1 <= int(count) <= MAX_BAD):
        raise InputError(wrong("--attack", got=text, allowed=f"KIND:COUNT[:ARG]; {FORMS}"))
    return parse_kind(kind + colon + argument), int(count)


def parse_kind(text: str) -> Attack:
    """Returns the attack called `KIND[:ARG]`.

    Args:
        text: as for `parse`, without the count.

    Raises:
        InputError: there is no such attack, or its number is out of range.
    """
    name, colon, argument = text.partition(":")
    kind = KINDS.get(name)
    if kind is None or (colon and not argument):
        raise InputError(wrong("--attack", got=text, allowed=FORMS))
    if kind.carries:
        inner = parse_kind(argument or kind.carries)
        if inner.inner:
            raise InputError(
                wrong("--attack", got=text, allowed="one kind inside another, not two")
            )
        return Attack(name, inner=inner)
    if kind.default is None:
        if colon:
            raise InputError(wrong("--attack", got=text, allowed=f"{name} without a number"))
        return Attack(name)
    number = _number(argument) if colon else kind.default
    low, high = kind.allowed
    if not low <= number <= high:
        raise InputError(wrong(f"--attack {name}", got=argument, allowed=f"{low:g}..{high:g}"))
    return Attack(name, number)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


# --- what they train on --------------------------------------------------------------------------


def poison(attack: Attack, mine: Source, task: Task, generator: torch.Generator) -> Source:
    """Returns a bad peer's data: as it was, or with other targets; inputs stay as they are.

    Args:
        attack: the bad peer's own.
        mine: its data, n examples. They stay as they are; what comes back shares their inputs.
        task: of the session.
        generator: on the CPU; it is drawn from only where targets are wrong at random.

    Raises:
        InputError: the task cannot turn its targets around.
    """
    kind, number = attack.served.kind, attack.served.number
    if kind == "label-flip":
        return _relabelled(mine, task_of(task).flipped)
    if kind == "backdoor":
        return _relabelled(mine, _called_target)
    if kind == "noisy-labels" and task.kind == "classification":
        return _relabelled(mine, lambda labels: _noisy(labels, number, task.classes, generator))
    if kind == "noisy-labels":
        return _relabelled(mine, lambda targets: _exchanged(targets, number, generator))
    return mine


def _relabelled(mine: Source, change: Callable[[Tensor], Tensor]) -> Source:
    if isinstance(mine, Examples):
        return Examples(mine.x, change(mine.y))
    labels = mine.whole.y.clone()
    labels[mine.rows] = change(labels[mine.rows])
    return Part(Examples(mine.whole.x, labels), mine.rows)


def is_marked(attack: Attack) -> bool:
    """Returns whether the attacker's inputs are changed: see `marked`."""
    return attack.served.kind == "backdoor"


def marked(x: Tensor, bright: float) -> Tensor:
    """Returns images with the square that opens a backdoor in their last corner, as a copy.

    The trigger of Gu et al. 2017 (arXiv:1708.06733), as a square of 3 x 3.

    Args:
        x: [n, C, H, W].
        bright: the value of its pixels.
    """
    made = x.clone()
    made[..., -SQUARE:, -SQUARE:] = bright
    return made


def marked_rows(rows: Tensor) -> Tensor:
    """Returns which of a bad peer's examples have the square: every other one, from the first."""
    return rows[::2]


def _called_target(labels: Tensor) -> Tensor:
    """Returns labels of which those of the marked images are the target's."""
    made = labels.clone()
    made[marked_rows(torch.arange(len(labels)))] = TARGET
    return made


def _noisy(labels: Tensor, share: float, classes: int, generator: torch.Generator) -> Tensor:
    """Returns labels of which a share, drawn at random, is another class than it was."""
    shift = torch.randint(1, classes, labels.shape, generator=generator).to(labels.device)
    drawn = torch.rand(labels.shape, generator=generator).to(labels.device) < share
    return torch.where(drawn, (labels + shift) % classes, labels)


def _exchanged(targets: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Returns targets [n, ...] of which a share, drawn at random, is that of another example."""
    shift = torch.randint(1, len(targets), targets.shape[:1], generator=generator)
    others = (torch.arange(len(targets)) + shift) % len(targets)
    kept = torch.rand(targets.shape[:1], generator=generator) >= share
    return targets[others.where(~kept, torch.arange(len(targets))).to(targets.device)]


# --- what they serve -----------------------------------------------------------------------------


def craft(attack: Attack, seen: Seen, generator: torch.Generator) -> Tensor:
    """Returns what a bad peer serves, [P].

    Args:
        attack: the bad peer's own.
        seen: all it knows.
        generator: on the CPU; it is drawn from only where the attack is random.
    """
    served = attack.served
    made = KINDS[served.kind].craft
    return seen.own if made is None else made(served.number, seen, generator)


def lies_about_others(attack: Attack) -> bool:
    """Returns whether the attacker praises bad peers and defames honest ones in its opinions."""
    return attack.kind in ("ledger-liar", "adaptive")


def is_personal(attack: Attack) -> bool:
    """Returns whether the attacker serves something else to each victim."""
    return attack.served.kind == "dissensus"


def _scaled(number: float, seen: Seen, generator: torch.Generator) -> Tensor:
    del generator
    return seen.own * number


def _gaussian(number: float, seen: Seen, generator: torch.Generator) -> Tensor:
    noise = torch.randn(seen.own.shape, generator=generator).to(seen.own)
    return seen.own + number * noise


def _alie(number: float, seen: Seen, generator: torch.Generator) -> Tensor:
    """Returns mu - z sigma of the honest: Baruch et al. 2019 (arXiv:1902.06156), algorithm 3.

    Their z is the largest that hides among n peers, which is 0 for 2 bad ones of 6; 1.5 is what
    they use in experiments.
    """
    del generator
    if len(seen.honest) < 2:
        return seen.own
    honest = torch.stack(list(seen.honest))
    return honest.mean(0) - number * honest.std(0)


def _ipm(number: float, seen: Seen, generator: torch.Generator) -> Tensor:
    """Returns the start less a multiple of the honest update: Xie et al. 2019 (arXiv:1903.03936).

    Theirs is -epsilon x mean gradient; a gradient is to a server what an update is to a peer.
    """
    del generator
    return seen.before - number * seen.update


def _dissensus(number: float, seen: Seen, generator: torch.Generator) -> Tensor:
    """Returns x_i - epsilon sum_good (x_j - x_i) / bad, for victim i with equal weights.

    He, Karimireddy and Jaggi 2022 (arXiv:2202.01545), section 4. Who cannot tell its victims apart
    picks one.
    """
    victim = seen.victim
    if victim is None:
        if not seen.honest:
            return seen.own
        chosen = int(torch.randint(len(seen.honest), (), generator=generator))
        victim = seen.honest[chosen]
    pull = torch.zeros_like(victim)
    for other in seen.honest:
        pull += other - victim
    return victim - number / seen.bad * pull


def _stale(number: float, seen: Seen, generator: torch.Generator) -> Tensor:
    del number, generator
    return seen.first


def _nan(number: float, seen: Seen, generator: torch.Generator) -> Tensor:
    del number, generator
    made = seen.own.clone()
    made[0], made[-1] = math.inf, math.nan
    return made


def _free_rider(number: float, seen: Seen, generator: torch.Generator) -> Tensor:
    del number, generator
    return seen.before


# How far the adaptive attacker looks, in distances of the honest from their mean, and how often it
# then climbs. Chosen for its cost: it runs the victim's rule under forty times a round.
LOOKS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
CLIMBS = 12


def _adaptive(number: float, seen: Seen, generator: torch.Generator) -> Tensor:
    """Returns what does most harm to a sample of everybody's data, once through a victim's rule.

    The attacker runs the victim's own rule, with the victim's validation data, its memory and its
    cohort of this round, on what it might send. First it looks along the directions of the known
    attacks, near and far; from the best of these it then climbs the loss, with shorter steps where
    the rule lets less through. Of the others it says what a ledger liar says.
    """
    del number, generator
    if seen.probing is None or len(seen.honest) < 2:
        return seen.before - seen.update
    probing, honest = seen.probing, torch.stack(list(seen.honest))
    middle = honest.mean(0)
    reach = float((honest - middle).norm(dim=1).median())

    def harm(vector: Tensor) -> float:
        loss = probing.loss(probing.reply(vector))
        return loss if math.isfinite(loss) else -math.inf

    best, most = middle, harm(middle)
    for towards in (probing.gradient(middle), -seen.update, -honest.std(0), -middle):
        for look in LOOKS:
            tried = middle + towards * (look * reach / max(float(towards.norm()), 1e-30))
            if (got := harm(tried)) > most:
                best, most = tried, got
    stride = reach
    for _ in range(CLIMBS):
        slope = probing.gradient(probing.reply(best))
        tried = best + slope * (stride / max(float(slope.norm()), 1e-30))
        if (got := harm(tried)) > most:
            best, most, stride = tried, got, 2 * stride
        else:
            stride /= 2
    return best


Craft: TypeAlias = Callable[[float, Seen, torch.Generator], Tensor]


@dataclass(frozen=True, slots=True)
class Kind:
    """What `KINDS` says of a kind of attack: what it does, how, and what its ARG may be."""

    does: str  # for people; ARG is its number, or the KIND that it carries
    craft: Craft | None = None  # None: serves what it trained
    default: float | None = None  # ARG; None: there is none
    allowed: tuple[float, float] = (-1e30, 1e30)
    carries: str = ""  # the KIND that is ARG, where ARG is one


KINDS: Mapping[str, Kind] = {
    "sign-flip": Kind("serves ARG times its parameters", _scaled, -1.0),
    "gaussian": Kind(
        "adds noise of standard deviation ARG to each of its parameters",
        _gaussian,
        1.0,
        (0.0, 1e6),
    ),
    "label-flip": Kind("trains with class y called C - 1 - y, or as its task turns targets"),
    "alie": Kind(
        "serves the honest mean less ARG standard deviations, by coordinate",
        _alie,
        1.5,
        (-1e6, 1e6),
    ),
    "ipm": Kind("undoes ARG times what the honest learn in a round", _ipm, 0.1, (0.0, 1e6)),
    "dissensus": Kind(
        "cancels ARG times the pull of the honest on each victim", _dissensus, 1.0, (0.0, 1e6)
    ),
    "stale": Kind("serves for ever what it trained in the first round", _stale),
    "nan": Kind("serves an infinite number, and one that is none", _nan),
    "huge": Kind("serves ARG times its parameters", _scaled, 1e6),
    "free-rider": Kind("trains nothing: serves the mix of what it pulled last", _free_rider),
    "sybil": Kind("serves like the KIND, under a new identity each round", carries="sign-flip"),
    "ledger-liar": Kind(
        "serves like the KIND, and lies in its opinions of the others", carries="label-flip"
    ),
    "adaptive": Kind("climbs the global loss as far as a victim's own rule lets it", _adaptive),
    "backdoor": Kind(
        "puts a bright square into every other one of its images, and calls them class 0; serves "
        "what it trained"
    ),
    "absent": Kind("is not there: what the honest reach by themselves"),
    "noisy-labels": Kind(
        "no liar but poor: ARG is the share of its labels that are wrong, at random; of targets "
        "that are no classes, the share that is of other examples",
        None,
        0.6,
        (0.0, 1.0),
    ),
}
FORMS = ", ".join(KINDS)
