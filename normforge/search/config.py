"""What a run is: one validated configuration, made from a preset and `a.b=c` overrides, saved with the run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from normforge.errors import OptionError, RunError, nearest
from normforge.ir.layers import layers


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Space(_Section):
    """The search space (EvoNorm, section 3)."""

    nodes: int = Field(default=10, ge=1, le=40, description="drawn nodes on top of x, 0, v0 and v1")


class Evolution(_Section):
    """Tournament with aging (EvoNorm, section 4.3)."""

    window: int = Field(default=2500, ge=1, description="only the most recent scored layers can be parents")
    tournament: float = Field(default=0.05, gt=0, le=1, description="share of the population in a tournament")
    tournament_least: int = Field(default=5, ge=1, description="members of a tournament in a small population")
    fresh: float = Field(default=0.5, ge=0, le=1, description="share of fresh random layers")
    attempts: int = Field(default=20, ge=1, description="mutations tried until the function changes")
    lag: int = Field(default=8, ge=1, description="evaluations under way that a proposal does not wait for")


class Network(_Section):
    """ResNet-v2 bottleneck blocks, one stage a width, the layer under search in every norm-act place."""

    widths: tuple[int, ...] = Field(default=(32, 64, 128), min_length=1, description="output channels of each block")
    stem: int = Field(default=8, ge=1, description="channels after the 3x3 stem")


class Recipe(_Section):
    """Training inside the proxy network."""

    steps: int = Field(default=200, ge=1)
    batch: int = Field(default=64, ge=1)
    rate: float = Field(default=0.1, gt=0, description="learning rate at the first step of the cosine")
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(default=1e-4, ge=0, description="of matrices and filters only")


class Quality(_Section):
    """Rejection after a short training (EvoNorm, section 4.2)."""

    steps: int = Field(default=100, ge=1, description="the first steps of the full training")
    threshold: float = Field(default=0.2, ge=0, le=1, description="least validation accuracy")


class Stability(_Section):
    """Rejection by gradient ascent on the squared gradient norm (EvoNorm, section 4.2)."""

    steps: int = Field(default=100, ge=0)
    rate: float = Field(default=1.0, gt=0, description="length of a step along the unit-normalised direction")
    batch: int = Field(default=16, ge=2)
    threshold: float = Field(default=1e8, gt=0, description="largest gradient norm")


class Final(_Section):
    """The comparison at the end, every layer trained alike."""

    best: int = Field(default=3, ge=1, description="distinct layers found")
    seeds: int = Field(default=3, ge=1, description="trainings of each layer")
    baselines: tuple[str, ...] = ("bn-relu", "gn-relu", "gn-silu", "evonorm-b0", "evonorm-s0")


class Budget(_Section):
    """When the search ends; whichever comes first."""

    minutes: float = Field(default=6.0, ge=0, description="of search, the final training not counted")
    candidates: int | None = Field(default=None, ge=1, description="layers drawn, refused ones included")


class Workers(_Section):
    """Processes of one thread each."""

    count: int = Field(default=2, ge=1, le=256)
    time_limit: float = Field(
        default=90.0, gt=0, description="seconds for one task, after which its worker is replaced"
    )


class Config(_Section):
    """Everything that a run depends on. `budget` and `workers` may change when a run is continued."""

    MAY_CHANGE: ClassVar[tuple[str, ...]] = ("budget.", "workers.")

    preset: str = "demo"
    seed: int = Field(default=0, ge=0)
    space: Space = Space()
    evolution: Evolution = Evolution()
    network: Network = Network()
    recipe: Recipe = Recipe()
    quality: Quality = Quality()
    stability: Stability = Stability()
    final: Final = Final()
    budget: Budget = Budget()
    workers: Workers = Workers()


PRESETS: dict[str, dict[str, Any]] = {"demo": {}}


def load(preset: str, overrides: Iterable[str] = ()) -> Config:
    """The configuration of a preset after overrides such as `recipe.steps=100`.

    Raises:
        OptionError: an unknown preset, key or value; the nearest known key is named.
    """
    if preset not in PRESETS:
        raise OptionError(
            f"there is no preset {preset!r}{nearest(preset, PRESETS)}: choose one of {', '.join(PRESETS)}"
        )
    values: dict[str, Any] = {**PRESETS[preset], "preset": preset}
    known = dict(flat(Config()))
    for override in overrides:
        key, equals, value = override.partition("=")
        key = key.strip()
        if not equals:
            raise OptionError(f"{override!r} sets nothing: write key=value, such as recipe.steps=100")
        if key not in known or key == "preset":
            raise OptionError(f"there is no setting {key!r}{nearest(key, known)}")
        *path, last = key.split(".")
        section = values
        for name in path:
            section = section.setdefault(name, {})
        text = value.strip()
        listed = isinstance(known[key], list)
        section[last] = [v.strip() for v in text.split(",")] if listed else None if text == "none" else text
    try:
        config = Config.model_validate(values)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if isinstance(part, str))
        raise OptionError(f"{where} = {first['input']!r} cannot be: {_lower(first['msg'])}") from None
    for name in config.final.baselines:
        if name not in layers:
            raise OptionError(f"final.baselines: there is no layer named {name!r}{nearest(name, layers)}")
    if config.recipe.nesterov and not config.recipe.momentum:
        raise OptionError("recipe.nesterov needs recipe.momentum above 0")
    if config.quality.steps > config.recipe.steps:
        raise OptionError(
            f"quality.steps = {config.quality.steps} are the first of recipe.steps = {config.recipe.steps}: lower them"
        )
    return config


def flat(config: BaseModel) -> Iterator[tuple[str, Any]]:
    """(dotted key, JSON value) of every setting."""

    def walk(prefix: str, values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        for name, value in values.items():
            if isinstance(value, dict):
                yield from walk(f"{prefix}{name}.", value)
            else:
                yield f"{prefix}{name}", value

    return walk("", config.model_dump(mode="json"))


def check_same(saved: dict[str, Any], config: Config, where: str) -> None:
    """Compare the settings that a run began with, as `dict(flat(config))`, with those it is continued with.

    Raises:
        RunError: names the first field that differs and may not.
    """
    now = dict(flat(config))
    for key in [*now, *(k for k in saved if k not in now)]:
        if key.startswith(Config.MAY_CHANGE):
            continue
        if key not in saved or key not in now:
            raise RunError(f"{where} was made by another version, which knows {key!r} differently: use another --out")
        if saved[key] != now[key]:
            raise RunError(
                f"{where} was started with {key} = {saved[key]!r}, not {now[key]!r}: "
                "give the same value to go on with it, or another --out"
            )


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
