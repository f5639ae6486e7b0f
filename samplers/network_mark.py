"""The network that a file was made for: its name, its weights, and its answers in a few numbers."""

from typing import Annotated

from pydantic import Field

from ..models.denoiser import Network
from ..models.errors import SettingError
from ..models.probe import are_alike, hash_loaded, share_weights, sketch
from ..models.reading import StrictModel
from ..models.weights import check_weights

Finite = Annotated[float, Field(allow_inf_nan=False)]


class NetworkMark(StrictModel):
    """The marks that tell a network from others.

    network: its name.
    sketch:  its answers in a few numbers (`models.probe.sketch`), None for a network that needs
             conditions nobody knows.
    weights: see `hash_weights`.
    loaded:  see `hash_loaded`; None in older files, whose sketch alone is compared.
    """

    network: str
    sketch: tuple[Finite, ...] | None = None
    weights: str | None = None
    loaded: tuple[str, ...] | None = None

    def check_network(self, network: Network, made: str, again: str) -> None:
        """Raises SettingError for another network than this.

        Args:
            network: the one that is here.
            made: what was made of the other, such as "this cache was calibrated".
            again: the command that makes it for this one.
        """
        answers = sketch(network)
        if self.sketch is None:
            self._check_name(network.name, made)
        elif answers is not None and not are_alike(answers, self.sketch):
            raise SettingError(
                f"{made} on another network ({self.network}), to which {network.name} answers"
                f" differently; run {again} {network.name}, or --force to try"
            )
        if self.loaded is not None and not share_weights(hash_loaded(network), self.loaded):
            raise SettingError(
                f"{made} on other weights of {self.network}: a LoRA was fused, or layers have"
                f" changed; undo that, run {again} for the network as it is, or --force to try"
            )

    def _check_name(self, name: str, made: str) -> None:
        """Raises SettingError if a network that cannot be asked has another name or weights."""
        if self.network != name:
            raise SettingError(f"{made} on {self.network}, not {name}; --force to try")
        check_weights(name, self.weights, made, "add --force to try")
