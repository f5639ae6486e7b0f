"""Commands whose options are the fields of a dataclass, and are read where they are described."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Any

from ..eval.options import read_options


def gather_options(command: Callable[..., None]) -> Callable[..., None]:
    """Returns a command that is typed with the fields of its dataclass arguments as options.

    A field is an `option`, or annotated as one of typer; without a default it must be given.
    """
    arguments = signature(command, eval_str=True).parameters
    kinds = {name: each.annotation for name, each in arguments.items()}
    groups: dict[str, Any] = {name: kind for name, kind in kinds.items() if is_dataclass(kind)}

    @wraps(command)
    def run(**given: Any) -> None:
        for name, kind in groups.items():
            given[name] = kind(**{each: given.pop(each) for each in read_options(kind)})
        command(**given)

    parameters = [
        option
        for name, each in arguments.items()
        for option in (_read_fields(groups[name]) if name in groups else [each])
    ]
    named = [each.replace(kind=Parameter.KEYWORD_ONLY) for each in parameters]
    run.__signature__ = Signature(named)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in named}
    return run


def _read_fields(kind: Any) -> Iterator[Parameter]:
    for name, (hint, field) in read_options(kind).items():
        default = Parameter.empty if field.default is MISSING else field.default
        yield Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=hint)


def take_given(options: Any, ranges: Sequence[str] = (), **renamed: str) -> dict[str, Any]:
    """Returns the options of a dataclass as settings; those that are None are left out.

    ranges:  fields that hold numbers as 6-14,16.
    renamed: option -> setting, where the names differ.

    Raises:
        SettingError: for a range that is none.
    """
    from ..models.arguments import parse_ranges

    settings = {}
    for field in fields(options):
        value = getattr(options, field.name)
        if value is not None:
            name = renamed.get(field.name, field.name)
            settings[name] = parse_ranges(value) if field.name in ranges else value
    return settings
