"""The weights that a name stands for: their hash, and the check of what was made with them."""

from pathlib import Path

from .errors import SettingError, reason_of, shorten
from .hashing import hash_file, hash_json, hash_sampled
from .load import embedded_names, is_folder, read_card
from .user_code import WEIGHTS

REPLACED = ("fashion-dit", "fashion-unet")  # by others, before anything named the weights it used


def hash_weights(source: str, *, whole: bool = False) -> str | None:
    """Returns a sha256 that tells the weights of a network, None for an id of the hub.

    That is the hash on the card of an embedded network, of a folder one of all its safetensors
    files, of large ones in samples, and of a network that code makes one of its modules, once
    `load` has imported it.

    Args:
        source: as `load` takes it.
        whole: hash every byte of a folder, however large.

    Raises:
        SettingError: if a file cannot be read.
    """
    if source in embedded_names():
        return str(read_card(source)["sha256"])
    if not is_folder(source):
        return WEIGHTS.get(source)
    paths = sorted(path for path in Path(source).rglob("*.safetensors") if path.is_file())
    digest = hash_file if whole else hash_sampled
    try:
        return hash_json([[path.relative_to(source).as_posix(), digest(path)] for path in paths])
    except OSError as error:
        reason = reason_of(error)
        raise SettingError(f"cannot read the weights of {shorten(source)}: {reason}") from error


def check_weights(source: str, recorded: str | None, made: str, remedy: str) -> None:
    """Raises SettingError if a network has other weights than something was made with.

    Without a recorded hash only the names that have got other weights since are refused.

    Args:
        source: of the network that is here, as `load` takes it.
        recorded: what `hash_weights` gave when it was made.
        made: what was made, such as "this picture was drawn".
        remedy: how it is used all the same.
    """
    if recorded is None:
        if source in REPLACED:
            raise SettingError(
                f"{made} by older weights of {source}: it holds no hash of them, and {source} has"
                f" other weights now; {remedy}"
            )
        return
    if (here := hash_weights(source)) != recorded:
        raise SettingError(
            f"{made} by other weights of {shorten(source)}: their hash was {recorded[:12]}, here it"
            f" is {here[:12] if here else 'unknown, for no such folder is here'}; put the former"
            f" weights in place, or {remedy}"
        )
