"""A protocol is data: everything that decides one figure, as one JSON value with a hash.

The number depends on which images are looked at (`Drawn` by a network, or `Real`) and on how they
are looked at (`Measure`). Two figures may stand in one table only if their measures are equal.

The hash is taken of the canonical JSON without what does not decide the number: batch and device
change the last bits of the pixels, columns and version say nothing of the images, and a schedule's
provenance is a remark. Versions of the software are kept beside each figure in the store.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_serializer, model_validator

from ...models.arguments import format_ranges, parse_ranges
from ...models.errors import SettingError
from ...models.hashing import hash_json
from ...models.reading import StrictModel
from ...samplers.run_record import Run
from ...samplers.schedule_choice import read_scale
from ...solvers.artefact import SCALE

QUANTISATION = "round(127.5 (x + 1)), clipped to 0..255"  # samplers.images.to_uint8
UNDECIDED = ("batch", "device", "columns", "version", "weights")


class Measure(StrictModel):
    """How images become a figure: equal for all rows of a table.

    metric:       its name.
    extractor:    the network whose features are compared; `extractor_sha256` of its weights.
    resize:       how images are brought to the extractor's size.
    reference:    the set compared with; `reference_sha256` of its statistics or images.
    n:            images looked at.
    quantisation: how samples in [-1, 1] become bytes.
    """

    metric: str
    extractor: str
    extractor_sha256: str
    resize: str
    reference: str
    reference_sha256: str
    n: Annotated[int, Field(ge=2)]
    quantisation: str = QUANTISATION


class Drawn(StrictModel):
    """Images drawn by a network.

    run:     network, solver, grid, NFE, end, schedule, guidance, dtype and the seeds, which JSON
             holds as ranges. It has no class labels: `labels` is the rule that gives them.
    rival:   a diffusers scheduler instead of the run's solver, as `experiments.rivals` names it.
    weights: sha256 of the network's weights, where they are files on this machine.
    files:   sha256 of each file that the solver's settings name.
    labels:  "seed modulo K" for a network with K classes, so that an image's label depends on its
             seed alone; "none" for one without.
    """

    kind: Literal["drawn"] = "drawn"
    run: Run
    rival: str | None = None
    weights: str | None = None
    files: dict[str, str] = Field(default_factory=dict)
    labels: Annotated[str, Field(pattern=r"^(none|seed modulo [1-9][0-9]*)$")] = "none"

    @field_serializer("run")
    def _compact(self, run: Run) -> dict[str, Any]:
        body = run.model_dump(mode="json", exclude_none=True)
        return {**body, "seeds": format_ranges(run.seeds)}

    @model_validator(mode="after")
    def _check_rival(self) -> Self:
        if self.run.classes is not None:
            raise ValueError("labels is the rule that gives the classes; drop run.classes")
        if self.rival is not None and (self.run.solver, self.run.grid, self.run.schedule) != (
            None,
            None,
            None,
        ):
            raise ValueError("a rival brings its solver and grid; drop those of the run")
        return self

    @property
    def count(self) -> int:
        return len(self.run.seeds)

    @property
    def scale(self) -> float:
        """The guidance scale, which a policy or a schedule may bring; 1 is no guidance."""
        schedule = self.run.schedule
        if schedule is not None and schedule.guided:
            return float(schedule.provenance.get(SCALE, 1.0))
        return read_scale(self.run.guidance())

    def labels_of(self, seeds: Sequence[int]) -> tuple[int, ...] | None:
        """Returns the class label of each seed's image, by the rule."""
        if self.labels == "none":
            return None
        classes = int(self.labels.rpartition(" ")[2])
        return tuple(seed % classes for seed in seeds)

    def deciding(self) -> dict[str, Any]:
        """Returns the JSON without what does not decide the images."""
        body = self.model_dump(mode="json", exclude_none=True)
        body["run"] = {name: v for name, v in body["run"].items() if name not in UNDECIDED}
        body["run"].get("schedule", {}).pop("provenance", None)
        return body


class Real(StrictModel):
    """Images that nobody drew: the floor that the same figure has for them.

    source: as `eval.data.images_of` takes it; `sha256` of its pixels.
    rows:   which of its images, as ranges.
    """

    kind: Literal["real"] = "real"
    source: str
    sha256: str
    rows: str

    @property
    def count(self) -> int:
        return len(parse_ranges(self.rows))

    def deciding(self) -> dict[str, Any]:
        """Returns the JSON."""
        return self.model_dump(mode="json")


class Protocol(StrictModel):
    """Images and measure of one figure, version 1."""

    format: Literal["fewstep-protocol"] = "fewstep-protocol"
    version: Literal[1] = 1
    images: Annotated[Drawn | Real, Field(discriminator="kind")]
    measure: Measure

    @model_validator(mode="after")
    def _check_counts(self) -> Self:
        if self.images.count != self.measure.n:
            raise ValueError(f"n is {self.measure.n}, but there are {self.images.count} images")
        return self

    @property
    def hash(self) -> str:
        """sha256 of the canonical JSON of what decides the number."""
        return self._hash_of(self.images.deciding())

    def hash_under(self, schedule: dict[str, Any]) -> str:
        """Returns the hash that it had with the schedule of its run in another form, as JSON."""
        images = self.images.deciding()
        return self._hash_of({**images, "run": {**images["run"], "schedule": schedule}})

    def _hash_of(self, images: dict[str, Any]) -> str:
        body = {"images": images, "measure": self.measure.model_dump(mode="json")}
        return hash_json({"format": self.format, "version": self.version, **body})

    @property
    def setting(self) -> str:
        """The hash without seeds or rows: equal for the blocks of one setting."""
        images = self.images.deciding()
        images.pop("rows", None)
        images.get("run", {}).pop("seeds", None)
        return hash_json({"images": images, "measure": self.measure.model_dump(mode="json")})


def check_alike(measures: list[Measure]) -> Measure:
    """Returns the one measure that all share.

    Raises:
        SettingError: if there is none, or two differ; it names the field and both values.
    """
    if not measures:
        raise SettingError("there are no rows to put into a table; run `fewstep bench fid-nfe`")
    first = measures[0]
    for other in measures[1:]:
        for field in Measure.model_fields:
            mine, theirs = getattr(first, field), getattr(other, field)
            if mine != theirs:
                raise SettingError(
                    f"rows of unlike {field} cannot stand in one table: {mine!r} and {theirs!r};"
                    " make one table of each"
                )
    return first
