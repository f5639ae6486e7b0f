"""Networks that a user's code makes: `file.py:attribute` and `package.module:attribute`.

Such a name runs code. It is imported where a user gives it, which is said on the error stream; what
a file names is refused by `refuse_code`.
"""

import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from .errors import FewstepError, ModelError, SettingError, UnknownNameError, reason_of, shorten
from .hashing import hash_file, hash_modules
from .modules import find_modules
from .network import Network

NAME = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"
CODE = re.compile(rf"(.+\.py|{NAME}):({NAME})")
WRAP = "wrap it: from_module(module, schedule=..., prediction=..., shape=...)"
WEIGHTS: dict[str, str] = {}  # name -> hash of the weights, of what was imported or is lent
LENT: dict[str, Network] = {}  # live networks, by the names under which requests ask for them


def names_code(source: object) -> bool:
    """Tells whether a name stands for a network that code makes."""
    return isinstance(source, str) and CODE.fullmatch(source) is not None


def refuse_code(names: Iterable[str], where: str, remedy: str) -> None:
    """Raises SettingError for a name of code that stands in a file.

    where: says what names it, such as "this picture"; remedy: what to type instead.
    """
    for name in filter(names_code, names):
        raise SettingError(
            f"{where} names {shorten(name)}, which is code; code is imported only where you name it"
            f" yourself: {remedy}"
        )


def import_network(
    source: str, dtype: torch.dtype | None = None, device: torch.device | None = None
) -> Network:
    """Imports the code of a name and returns its network, where and in the dtype that is asked for.

    Raises:
        ModelError: if it cannot be imported, makes no `Network`, raises, or cannot be moved.
        UnknownNameError: for an attribute that is not there.
    """
    match = CODE.fullmatch(source)
    assert match is not None
    place, path = match.groups()
    folder = Path(place).parent if place.endswith(".py") else Path()
    with _search_first(folder.resolve()), _explain_errors(source):
        module = _import_file(Path(place)) if place.endswith(".py") else _import_module(place)
        network = _make_network(source, _find_attribute(module, place, path), dtype, device)
    file = str(module.__file__)
    sys.stderr.write(f"{source}: imported from {file}\n")
    WEIGHTS[source] = hash_network(network) or hash_file(Path(file))
    return replace(_move(network, dtype, device), name=source)


@contextmanager
def lend(network: str | Network) -> Iterator[str]:
    """Yields the name under which `load` finds a live network meanwhile; a name stays as it is."""
    if isinstance(network, str):
        yield network
        return
    if not isinstance(network, Network):
        raise SettingError(
            f"a network is a Network or a name that `load` takes, not a {type(network).__name__};"
            f" {WRAP}"
        )
    name = network.name or "network"
    LENT[name] = network
    if (weights := hash_network(network)) is not None:
        WEIGHTS[name] = weights
    try:
        yield name
    finally:
        del LENT[name]


def hash_network(network: Network) -> str | None:
    """Returns the hash of the modules behind a network; None for a function without any."""
    modules = [network.module] if network.module is not None else find_modules(network.forward)
    return hash_modules(modules) if modules else None


@contextmanager
def _search_first(folder: Path) -> Iterator[None]:
    """Lets imports find what lies in a folder first, as Python does for a script."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


@contextmanager
def _explain_errors(source: str) -> Iterator[None]:
    """Turns whatever the code raises into one ModelError that names the line."""
    try:
        yield
    except (UnknownNameError, ModelError):
        raise
    except (Exception, SystemExit) as error:
        kind = "" if isinstance(error, FewstepError) else f" raises {type(error).__name__}"
        named = getattr(error, "filename", None) if isinstance(error, OSError) else None
        reason = reason_of(error) + (f" {shorten(named)}" if named else "")
        raise ModelError(f"{source}{kind}: {reason}{_locate(error)}") from error


def _locate(error: BaseException) -> str:
    """Returns the last line of a traceback that is neither ours nor of an installed package."""
    ours, frames = str(Path(__file__).parent), traceback.extract_tb(error.__traceback__)
    theirs = [
        frame
        for frame in frames
        if not frame.filename.startswith((ours, "<")) and "site-packages" not in frame.filename
    ]
    if isinstance(error, SyntaxError) or not theirs:
        return ""
    return f" ({theirs[-1].filename}, line {theirs[-1].lineno})"


def _import_file(path: Path) -> ModuleType:
    """Runs a file as a module of its own, anew each time."""
    if not path.is_file():
        raise ModelError(
            f"there is no file {shorten(path)}; give file.py:attribute as it lies here"
        )
    path = path.resolve()
    name = f"fewstep_user_{path.stem}_{sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses and pickles look for their module
    spec.loader.exec_module(module)
    return module


def _import_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise ModelError(
            f"no module {shorten(name)} can be imported here; give file.py:attribute, or install it"
        ) from error


def _find_attribute(module: ModuleType, place: str, path: str) -> Any:
    value: Any = module
    for name in path.split("."):
        if not hasattr(value, name):
            raise UnknownNameError(f"attribute of {place}", name, _list_makers(value, module))
        value = getattr(value, name)
    return value


def _list_makers(value: Any, module: ModuleType) -> list[str]:
    """Returns the names of networks and of functions that were written there."""
    own = {name: each for name, each in vars(value).items() if not name.startswith("_")}
    return [
        name
        for name, each in own.items()
        if isinstance(each, Network)
        or (callable(each) and getattr(each, "__module__", "") == module.__name__)
    ]


def _make_network(
    source: str, value: Any, dtype: torch.dtype | None, device: torch.device | None
) -> Network:
    """Returns a network, or what a function returns, which is told dtype and device if it asks."""
    if isinstance(value, nn.Module) or not (callable(value) or isinstance(value, Network)):
        raise ModelError(f"{source} is a {type(value).__name__}, not a Network; {WRAP}")
    network = value if isinstance(value, Network) else _call(value, dtype=dtype, device=device)
    if not isinstance(network, Network):
        raise ModelError(f"{source} returns a {type(network).__name__}, not a Network; {WRAP}")
    return network


def _call(make: Callable[..., Any], **facts: Any) -> Any:
    known = signature(make).parameters
    return make(**{name: value for name, value in facts.items() if name in known})


def _move(network: Network, dtype: torch.dtype | None, device: torch.device | None) -> Network:
    """Returns the network on a device and in a dtype; raises ModelError if it cannot be moved."""
    where = network.device if device is None else device
    if network.module is not None:
        kinds = {each.dtype for each in network.module.parameters() if each.is_floating_point()}
        network.module.to(device=where, dtype=None if kinds == {dtype} else dtype)
        return replace(network, device=where)
    if where.type != network.device.type or dtype not in (None, torch.float32):
        raise ModelError(
            f"{network.name or 'this network'} is a function, which cannot be moved to"
            f" {where.type} or to another dtype; give from_module an nn.Module, or let your"
            " function take device= and dtype= and say device= to from_module"
        )
    return network
