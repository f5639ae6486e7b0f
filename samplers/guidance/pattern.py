"""At which steps of a run both branches are evaluated."""

from dataclasses import dataclass

from ...models.errors import SettingError


@dataclass(frozen=True)
class Pattern:
    """One flag per step.

    warmup: the first steps have both branches; so has every so many-th after them, and the rest
            only the conditional one. every = 0 leaves all after the warm-up out.
    mask:   the flags themselves instead, as "1101010": 1 for both branches. The first is 1.
    tail:   last steps that have only the conditional one.
    """

    warmup: int
    every: int
    mask: str = ""
    tail: int = 0

    def __post_init__(self) -> None:
        if self.mask and (set(self.mask) - {"0", "1"} or self.mask[0] != "1"):
            raise SettingError(
                f"a mask has a 1 for each step with both branches and a 0 for each without, and"
                f" begins with 1, as 1101010; not {self.mask!r}"
            )

    def list_flags(self, steps: int) -> tuple[bool, ...]:
        """Returns one flag per step; raises SettingError if the mask is for another number."""
        if not self.mask:
            return tuple(self._both(n) and (n < steps - self.tail or n == 0) for n in range(steps))
        if len(self.mask) != steps:
            raise SettingError(
                f"the mask {self.mask} is for {len(self.mask)} steps, and this run has {steps};"
                " give one digit for each"
            )
        return tuple(digit == "1" for digit in self.mask)

    def _both(self, n: int) -> bool:
        after = n - self.warmup + 1
        return after <= 0 or (self.every > 0 and after % self.every == 0)
