"""What a number says that is measured of a model: its name, its unit, and which way is better."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Metric:
    """One number that says how good a model is.

    Attributes:
        name: as it stands in logs and tables, e.g. `accuracy`.
        unit: what follows the number, e.g. `%`; "" where it has none.
        higher_is_better: which way is better.
    """

    name: str
    unit: str = ""
    higher_is_better: bool = True

    def shown(self, value: float | None) -> str:
        """Returns a value for reading, with its unit: 91.8 %, 54.100 points, 0.412."""
        if value is None:
            return "-"
        if self.unit == "%":
            return f"{value:.1f} %"
        return f"{figure(value)} {self.unit}".rstrip()

    def said(self, value: float | None) -> str:
        """Returns the metric's name and a value: accuracy 91.8 %."""
        return f"{self.name} {self.shown(value)}"

    def gain(self, before: float, after: float) -> float:
        """Returns by how much `after` is better than `before`; below 0 where it is worse."""
        return after - before if self.higher_is_better else before - after

    def shown_gain(self, gain: float) -> str:
        """Returns a gain for reading, with its sign and without a unit: +1.2, -0.034."""
        sign = "" if gain < 0 else "+"
        return f"{gain:+.1f}" if self.unit == "%" else sign + figure(gain)

    def shown_spread(self, value: float) -> str:
        """Returns a standard deviation for reading, without a unit: 1.2, 0.034."""
        return f"{value:.1f}" if self.unit == "%" else figure(value)

    def shown_range(self, mean: float, spread: float) -> str:
        """Returns a mean and its standard deviation: 91.8 ± 1.2 %, 54.100 ± 0.340 mm."""
        shown = f"{mean:.1f}" if self.unit == "%" else figure(mean)
        return f"{shown} ± {self.shown_spread(spread)} {self.unit}".rstrip()

    def best(self, values: Iterable[float | None]) -> float | None:
        """Returns the best of the values that are known; None where none is."""
        known = [value for value in values if value is not None]
        return (max if self.higher_is_better else min)(known, default=None)

    def worst(self, values: Iterable[float | None]) -> float | None:
        """Returns the worst of the values that are known; None where none is."""
        known = [value for value in values if value is not None]
        return (min if self.higher_is_better else max)(known, default=None)

    @property
    def axis(self) -> str:
        """What stands beside an axis: accuracy (%)."""
        about = [self.unit] if self.unit else []
        if not self.higher_is_better:
            about.append("lower is better")
        return self.name + (f" ({', '.join(about)})" if about else "")

    @property
    def title(self) -> str:
        """The name as it begins a sentence."""
        return self.name[:1].upper() + self.name[1:]


ACCURACY = Metric("accuracy", "%")


def figure(value: float | None) -> str:
    """Returns a number with three digits that matter: 0.312, 2.303, 1.2e-05."""
    if value is None:
        return "-"
    return f"{value:.3f}" if 0.001 <= abs(value) < 1_000 or value == 0 else f"{value:.3g}"
