"""The parts of a schedule's JSON: its process, what a step asks, and the weights of its terms."""

from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from ..models.denoiser import Branch
from ..models.errors import FewstepError, UnknownNameError
from ..models.reading import StrictModel
from ..models.schedule import NoiseSchedule, noise_schedule, process_of
from .prediction_functions import FUNCTIONS, read_function, spell_function
from .table import BOTH, TERMS

Finite = Annotated[float, Field(allow_inf_nan=False)]


class Process(StrictModel):
    """The noise schedule that the times belong to, as `models.schedule.process_of` gives it."""

    family: str
    params: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, data: Any) -> Any:
        """Writes out the parameters that were left at their defaults, so that they are hashed."""
        if isinstance(data, dict) and isinstance(data.get("params", {}), dict):
            try:
                schedule = noise_schedule(data.get("family", ""), **data.get("params", {}))
            except FewstepError as error:
                raise ValueError(str(error)) from error
            return {**data, **process_of(schedule)}
        return data

    def schedule(self) -> NoiseSchedule:
        """Returns the noise schedule."""
        return noise_schedule(self.family, **self.params)


class EvaluationData(StrictModel):
    """The network evaluation of a step.

    t:        the time, of the process; sigma > 0 there.
    branches: those that are answered apart; none leaves it to the guidance.
    """

    t: Finite
    branches: tuple[Branch, ...] = ()

    @model_validator(mode="after")
    def _check_branches(self) -> Self:
        if self.branches not in ((), BOTH[1:], BOTH):
            raise ValueError('branches must be [], ["cond"] or ["uncond", "cond"]')
        return self


def _spell_term(kind: str) -> str:
    """Returns a term in its one spelling; raises ValueError if there is none of its name."""
    if kind in TERMS:
        return kind
    if kind.partition(":")[0] not in FUNCTIONS.names():
        raise ValueError(str(UnknownNameError("term", kind, (*TERMS, *FUNCTIONS))))
    try:
        return spell_function(read_function(kind))
    except FewstepError as error:
        raise ValueError(str(error)) from error


Weight = tuple[Annotated[str, AfterValidator(_spell_term)], Annotated[int, Field(ge=0)], Finite]


def sort_weights(weights: tuple[Weight, ...]) -> tuple[Weight, ...]:
    """Returns the weights in one order, without zeros; raises ValueError for a term twice."""
    terms = [weight[:2] for weight in weights]
    if len(set(terms)) < len(terms):
        kind, n = next(term for term in terms if terms.count(term) > 1)
        raise ValueError(f"{kind} {n} is weighed twice; add the two weights")
    return tuple(sorted(weight for weight in weights if weight[2] != 0.0))
