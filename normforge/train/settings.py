"""Settings: read from TOML and from `a.b=c`, put over defaults, validated, flattened and compared."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from normforge.errors import OptionError, RunError, nearest

Model = TypeVar("Model", bound=BaseModel)
_OF_UNIONS = re.compile(r"float|int|str|literal\[.*\]")  # pydantic names the member after the field


def read_toml(file: Path) -> dict[str, Any]:
    """The sections and keys of a file.

    Raises:
        OptionError: it cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(file.read_text())
    except OSError as e:
        raise OptionError(f"the configuration {file} cannot be read: {e.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise OptionError(f"the configuration {file} is not TOML: {_lower(str(e))}") from None


def overrides(given: Iterable[str], known: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys and values of texts such as recipe.steps=100.

    Args:
        given: `section.key=value`; lists are separated by commas (by semicolons where a value has commas), `none` is no
            value.
        known: default values by key, which say what is a list.

    Raises:
        OptionError: a text without a value.
    """
    for text in given:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not equals:
            raise OptionError(f"{text!r} sets nothing: write key=value, such as recipe.steps=100")
        yield key, _value(value, known.get(key))


def merge(into: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Put nested values over others, in place."""
    for key, value in values.items():
        into[key] = merge(into.get(key, {}), value) if isinstance(value, dict) else value
    return into


def leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested values as (dotted key, value)."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def place(values: dict[str, Any], key: str, value: Any, known: Iterable[str], free: tuple[str, ...] = ()) -> None:
    """Put a value where its dotted key says, among nested ones.

    Args:
        values: changed in place.
        key: dotted.
        value: what is put there.
        known: keys that there are.
        free: beginnings of keys that may be new.

    Raises:
        OptionError: there is no such setting; the nearest is named.
    """
    known = dict.fromkeys(known)
    if key not in known and not key.startswith(free or "\0"):
        raise OptionError(f"there is no setting {key!r}{nearest(key, known)}")
    *path, last = key.split(".")
    section = values
    for name in path:
        section = section.setdefault(name, {})
    section[last] = value


def validated(model: type[Model], values: dict[str, Any]) -> Model:
    """The configuration of nested values.

    Raises:
        OptionError: a value that its setting cannot have; says which and why.
    """
    try:
        return model.model_validate(values)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(part for part in first["loc"] if isinstance(part, str) and not _OF_UNIONS.fullmatch(part))
        raise OptionError(f"{where} = {first['input']!r} cannot be: {_lower(first['msg'])}") from None


def configured(
    model: type[Model],
    recipes: Mapping[str, dict[str, Any]],
    recipe: str,
    given: Iterable[str],
    *,
    counted: Mapping[str, str],
    elsewhere: Mapping[str, str],
) -> Model:
    """The configuration of a recipe, changed by a file and then by single settings.

    Args:
        model: of the configuration, which has a `name`.
        recipes: nested values by name.
        recipe: a key of them, or a TOML file with the model's sections and keys, whose `name` may be one.
        given: `section.key=value`.
        counted: of two settings that count the same in two ways the plain one and the other, which is taken away where
            the plain one is asked for.
        elsewhere: keys that are not set here, and what to say.

    Raises:
        OptionError: an unknown recipe, key or value; the nearest known one is named.
    """
    from_file: dict[str, Any] = {}
    name = recipe
    if recipe not in recipes:
        path = Path(recipe)
        if path.suffix != ".toml" and not path.is_file():
            raise OptionError(
                f"there is no recipe {recipe!r}{nearest(recipe, recipes)}: choose one of {', '.join(recipes)}, "
                "or a TOML file"
            )
        from_file = read_toml(path)
        name = from_file.pop("name", next(iter(recipes)))
        if not isinstance(name, str) or name not in recipes:
            raise OptionError(f"{path}: there is no recipe {name!r}{nearest(str(name), recipes)}")
    values = merge({}, recipes[name]) | {"name": name}
    known = dict(flat(model()))
    for wanted in ([*leaves(from_file)], [*overrides(given, known)]):
        asked = {key for key, _ in wanted}
        for plain, by in counted.items():
            if {plain, by} <= asked:
                raise OptionError(f"{plain} and {by} say the same in two ways: leave one out")
            if plain in asked:
                place(values, by, None, known)
        for key, value in wanted:
            if key in elsewhere:
                raise OptionError(elsewhere[key])
            place(values, key, value, known)
    return validated(model, values)


def flat(config: BaseModel) -> Iterator[tuple[str, Any]]:
    """Every setting as (dotted key, JSON value)."""
    return leaves(config.model_dump(mode="json"))


def check_same(
    saved: dict[str, Any], now: dict[str, Any], default: dict[str, Any], may_change: tuple[str, ...], where: str
) -> None:
    """Compare the settings that a run began with and those it is continued with, each flat.

    Args:
        saved: those that it began with; one that there was not yet has its default.
        now: those of its continuation.
        default: of all settings.
        may_change: beginnings of keys that may differ.
        where: the run, for the message.

    Raises:
        RunError: names the first setting that differs and may not.
    """
    before = default | saved
    for key in [*now, *(k for k in before if k not in now)]:
        if key.startswith(may_change):
            continue
        if key not in before or key not in now:
            raise RunError(f"{where} was made by another version, which knows {key!r} differently: use another --out")
        if before[key] != now[key]:
            raise RunError(
                f"{where} was started with {key} = {before[key]!r}, not {now[key]!r}: "
                "give the same value to go on with it, or another --out"
            )


def _value(text: str, default: Any) -> Any:
    if isinstance(default, list):
        return [part.strip() for part in text.split(";" if ";" in text else ",") if part.strip()]
    return None if text == "none" else text


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
