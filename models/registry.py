"""Values by name, and settings classes that are made from names: one behaviour for all of them.

A settings class is a frozen dataclass. Once it is registered, every way to make it raises the same
errors: the registry's `make`, a spec string, and its own constructor.
"""

import json
import re
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import wraps
from importlib.metadata import entry_points
from keyword import iskeyword
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from .errors import FewstepError, SettingError, UnknownNameError, rate_likeness, reason_of

CLEARLY = 0.1  # more likeness, with which an alias is suggested rather than one of our names
T = TypeVar("T")
C = TypeVar("C")


class Registry(Generic[T]):
    """Values by name; a name can be taken once.

    noun: the word for one value in errors, such as "solver".
    preferred: the name that errors suggest where it is as near as any other.
    aliases: further names of settings.
    """

    def __init__(self, noun: str, preferred: str = "") -> None:
        self.noun, self.preferred = noun, preferred
        self._values: dict[str, T] = {}
        self.aliases: dict[str, str] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def names(self) -> list[str]:
        """Returns every name, sorted."""
        return sorted(self._values)

    def add(self, name: str, value: T) -> None:
        """Adds a value; raises ValueError if another one has its name."""
        if name in self._values:
            raise ValueError(
                f"two {self.noun}s are named {name!r}: {self._values[name]!r} and {value!r}; give"
                " one of them another name"
            )
        self._values[name] = value

    def get(self, name: str) -> T:
        """Returns the value of a name; raises UnknownNameError if there is none."""
        if not isinstance(name, str) or name not in self._values:
            raise UnknownNameError(self.noun, name, self._list_likely(str(name)), self.preferred)
        return self._values[name]

    def _list_likely(self, name: str) -> list[str]:
        """Returns all names; those of other libraries too where one of them is clearly nearer."""
        ours, theirs = (
            max((rate_likeness(name, each) for each in names), default=0.0)
            for names in (self._values, self.aliases)
        )
        return [*self._values, *(self.aliases if theirs > ours + CLEARLY else ())]


class SettingsRegistry(Registry[type[T]]):
    """Settings classes by name, which is their `info.name`, or `name` where they have no `info`.

    facts: the class of their `info`, or their base, by which `take` knows settings.
    group: entry points of other packages, modules that register more; they are imported where names
           are listed, or one is not known.
    """

    def __init__(self, noun: str, facts: type, preferred: str = "", group: str = "") -> None:
        super().__init__(noun, preferred)
        self.facts, self.group = facts, group

    def names(self) -> list[str]:
        self._import_group()
        return super().names()

    def get(self, name: str) -> type[T]:
        if isinstance(name, str) and name not in self._values:
            self._import_group()
        return super().get(name)

    def _import_group(self) -> None:
        """Imports the modules of the group, once; raises SettingError for one that fails."""
        group, self.group = self.group, ""
        for entry in entry_points(group=group) if group else ():
            try:
                entry.load()
            except Exception as error:
                raise SettingError(
                    f"the {self.noun}s of the entry point {entry.name} = {entry.value} cannot be"
                    f" imported: {reason_of(error)}; mend or uninstall that package"
                ) from error

    def add_alias(self, name: str, spec: str) -> None:
        """Adds another name of settings, `name:key=value,...`; raises ValueError if it is taken."""
        if name in self._values or name in self.aliases:
            raise ValueError(f"{name!r} is a {self.noun} already; give the alias another name")
        self.aliases[name] = spec

    def register(self, cls: type[C]) -> type[C]:
        """Adds a dataclass; from then on its constructor raises the errors of `make`."""
        facts: Any = cls
        name = getattr(facts, "info", facts).name
        self.add(name, facts)
        setattr(cls, "__init__", _wrap_constructor(name, facts))  # noqa: B010  # mypy refuses the plain form
        return cls

    def make(self, spec: str, /, **settings: Any) -> T:
        """Returns the settings of `name` or `name:key=value,...`; keywords are fields too.

        A field whose name Python reserves, such as `in_`, is known without the underscore too.

        Raises:
            UnknownNameError: for an unknown name or setting.
            SettingError: for a setting that is missing or out of range; it names the setting.
        """
        name, given = parse_spec(spec, settings)
        if name in self.aliases:
            name, meant = parse_spec(self.aliases[name])
            given = {**meant, **given}
        return self.get(name)(**given)

    def spell(self, spec: str) -> str:
        """Returns a text that `make` takes with our name in it, where it has another one."""
        name, _, settings = spell_name(spec).partition(":")
        name, _, preset = self.aliases.get(name, name).partition(":")
        given = {_read_key(part) for part in _split_settings(settings)}
        rest = [part for part in _split_settings(preset) if _read_key(part) not in given]
        return f"{name}:{','.join(filter(None, [*rest, settings]))}".rstrip(":")

    def take(self, given: T | str) -> T:
        """Returns settings given as such, or as the text that `make` takes.

        Raises:
            UnknownNameError, SettingError: as `make`, and for anything else.
        """
        if isinstance(given, str):
            return self.make(given)
        if isinstance(given, type) or not isinstance(getattr(given, "info", given), self.facts):
            raise SettingError(
                f"{self.noun}={given!r} is no {self.noun}; give a name, as in"
                f" {self.noun}={self.names()[0]!r}, or settings such as"
                f" {self.get(self.names()[0]).__name__}(...)"
            )
        return given


def spell_name(spec: str) -> str:
    """Returns the text `name:key=value,...` with - for _ in the name."""
    name, colon, settings = spec.partition(":")
    return name.replace("_", "-") + colon + settings


def parse_spec(spec: str, further: Mapping[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
    """Parses `karras:rho=5` into ("karras", {"rho": 5}); values are JSON if they can be, or words.

    A comma inside brackets belongs to a value: `fixed-mask:compute=[0,1,4],order=1`, and so do
    settings inside others: `deepcache:predictor=[hermite:order=2,sigma=0.7],interval=3`. In names,
    _ is read as -, as other libraries write it.

    further: settings that are added; raises SettingError for one that the text gives too.
    """
    if not isinstance(spec, str):
        return spec, dict(further or {})
    name, _, rest = spell_name(spec).partition(":")
    settings: dict[str, Any] = {}
    for part in filter(None, _split_settings(rest)):
        key, (_, equals, value) = _read_key(part), part.partition("=")
        if not equals:
            raise SettingError(f"{part!r} in {spec!r} is not a setting; write {name}:key=value,...")
        if key in settings:
            raise SettingError(f"{key} is given twice in {spec!r}; drop one of them")
        settings[key] = _parse_value(value.strip())
    for key in settings.keys() & (further or {}).keys():
        raise SettingError(f"{key} is given twice, also in {spec!r}; drop one of them")
    return name, {**settings, **(further or {})}


def strip_brackets(value: Any) -> Any:
    """Returns a text without the brackets that hold its settings together; others as they are."""
    return value[1:-1] if isinstance(value, str) and value[:1] + value[-1:] == "[]" else value


def _read_key(setting: str) -> str:
    """Returns the name in `key=value`."""
    return setting.partition("=")[0].strip()


def _split_settings(text: str) -> list[str]:
    """Splits at commas outside of brackets; an open bracket is closed by the end of the text."""
    parts, depth = [""], 0
    for letter in text:
        depth = max(0, depth + (letter == "[") - (letter == "]"))
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def extend_spec(spec: str, setting: str) -> str:
    """Returns `karras:rho=5,end=0.1` for `karras:rho=5` and `end=0.1`; the first may be a name."""
    return f"{spec}{',' if ':' in spec else ':'}{setting}"


def format_spec(settings: Any, omit: Container[str] = ()) -> str:
    """Returns `name:key=value,...` of settings without their defaults: `make` reads it.

    Settings of several keys inside others stand in brackets.

    omit: fields to leave out.
    """
    changed = [
        f"{each.name.rstrip('_')}={_format_value(getattr(settings, each.name))}"
        for each in settings_of(type(settings))
        if each.name not in omit and getattr(settings, each.name) != _read_default(each)
    ]
    return f"{getattr(settings, 'info', settings).name}:{','.join(changed)}".rstrip(":")


def _read_default(field: "Field[Any]") -> Any:
    return object() if field.default is MISSING else field.default


def _format_value(value: Any) -> str:
    if isinstance(value, str):
        return value
    if is_dataclass(value):
        spec = format_spec(value)
        return f"[{spec}]" if len(_split_settings(spec)) > 1 else spec
    return json.dumps(value, separators=(",", ":"))


def _parse_value(text: str) -> Any:
    if re.fullmatch(r"[+-]?(\d+\.|\.\d+)(e[+-]?\d+)?", text, re.IGNORECASE):
        return float(text)  # .9 and 1., which are no JSON
    if re.fullmatch(r"\[[\s\d.,eE+-]*\]", text):
        text = re.sub(r"(?<!\d)\.(?=\d)", "0.", text)  # nor are they in a list
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def settings_of(cls: Any) -> "list[Field[Any]]":
    """Returns the fields that a settings class is made from."""
    return [field for field in fields(cls) if field.init]


def is_needed(field: "Field[Any]") -> bool:
    """Tells whether settings cannot be made without this field."""
    return field.default is MISSING and field.default_factory is MISSING


def _wrap_constructor(name: str, cls: Any) -> Callable[..., None]:
    """Returns the class's constructor with errors that name the setting."""
    make = cls.__init__

    @wraps(make)
    def init(self: Any, *args: Any, **settings: Any) -> None:
        given = {f"{key}_" if iskeyword(key) else key: value for key, value in settings.items()}
        if type(self) is cls:
            _check_names(name, settings_of(cls), len(args), given)
        try:
            make(self, *args, **given)
        except ValidationError as error:
            raise _make_error(name, error) from error

    return init


def _check_names(
    name: str, known: "list[Field[Any]]", positional: int, given: dict[str, Any]
) -> None:
    """Raises for a setting that does not exist, one too many, or one that is missing."""
    called = {field.name.rstrip("_"): field for field in known}
    for key in sorted(given.keys() - {field.name for field in known}):
        if not called:
            raise SettingError(f"{name} has no settings, so {key!r} cannot be set")
        raise UnknownNameError(f"setting of {name}", key, called)
    if positional > len(known):
        raise SettingError(f"{name} has {len(known)} settings, but {positional} were given")
    open_ = [field for field in known[positional:] if field.name not in given and is_needed(field)]
    if open_:
        missing = sorted(field.name.rstrip("_") for field in open_)
        example = ",".join(f"{key}=..." for key in missing)
        raise SettingError(f"{name} needs {', '.join(missing)}; write {name}:{example}")


def _make_error(name: str, error: ValidationError) -> FewstepError:
    """Returns the first problem in one line; errors of ours stay as they are."""
    first = error.errors(include_url=False)[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, FewstepError):
        return cause
    where = ".".join(map(str, first["loc"])).rstrip("_")
    message = str(first["msg"]).removeprefix("Value error, ")
    return SettingError(f"{name}: {where}={first['input']!r}: {message}")
