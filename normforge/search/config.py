"""The configuration of a run: validated, made from a preset, a TOML file and `a.b=c` overrides, saved with it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationError, model_validator

from normforge.errors import OptionError, RunError, nearest
from normforge.ir.layers import layers
from normforge.train import settings
from normforge.train.config import DataConfig, Networks, Recipe, Section, check_recipe
from normforge.train.settings import flat, leaves, merge, place, read_toml, validated

OPERATIONS = (
    "add", "mul", "div", "max", "neg", "sigmoid", "tanh", "exp", "log", "abs", "square", "sqrt", "mean", "rms", "std",
)  # fmt: skip
INDEX_SETS = ("b,w,h", "w,h,c", "w,h", "w,h,c/g")


class Space(Section):
    """The search space (EvoNorm, section 3)."""

    nodes: int = Field(default=10, ge=1, le=40, description="drawn nodes on top of x, 0, v0 and v1")
    operations: tuple[str, ...] = Field(default=OPERATIONS, min_length=1, description="surface operations of the IR")
    index_sets: tuple[str, ...] = Field(default=INDEX_SETS, description="of moments; c and b,w,h,c may be added")
    batch: bool = Field(default=True, description="moments over the batch (B layers); false leaves S layers")
    custom: dict[str, str] = Field(default={}, description="further primitives: name = formula of a, or of a and b")


# What a protocol of evolution sets; the defaults of the settings are the paper's.
PROTOCOLS: dict[str, dict[str, Any]] = {
    "paper": {},
    "structural": {
        "draws": "grown",
        "mutation": "moves",
        "further": 0.3,
        "grafts": 0.3,
        "first": 20,
        "fresh": 0.1,
        "selection": "average",
        "window": 100,
        "tournament": 0.05,
        "tournament_least": 3,
        "ties": 0.02,
        "niche": 0.95,
    },
}


class Evolution(Section):
    """Tournament with aging (EvoNorm, section 4.3)."""

    OPEN: ClassVar[tuple[str, ...]] = ("protocol", "attempts", "start", "order", "lag")  # no protocol sets these

    protocol: Literal["paper", "structural"] | None = Field(
        default=None,
        description="a set of values for the settings below, in place of a preset's: the paper's, whole, so that no "
        "other value may be given; or moves on the active graph, for some hundreds of trained layers",
    )
    draws: Literal["random", "grown"] = Field(
        default="random",
        description="a fresh layer: random genes, as in the paper; or insertions into x, which it reads",
    )
    mutation: Literal["redraw", "moves", "both"] = Field(
        default="redraw",
        description="of a child: one gene drawn anew, as in the paper; a move on the active graph (insert, delete, "
        "change, swap, grow, wrap); or each for half of them",
    )
    grafts: float = Field(
        default=0.0, ge=0, le=1, description="share of children with a subtree of a second parent, and no mutation"
    )
    further: float = Field(default=0.0, ge=0, lt=1, description="chance of one more move, after each move of a child")
    crossover: float = Field(
        default=0.0, ge=0, le=1, description="share of the others mutated from the mix of two parents' genes"
    )
    attempts: int = Field(default=20, ge=1, description="mutations tried until the canonical hash changes")
    first: int = Field(default=0, ge=0, description="layers to be scored before the first child is made")
    fresh: float = Field(default=0.5, ge=0, le=1, description="share of fresh layers after those; 1 is random search")
    selection: Literal["pareto", "average", "first", "nsga2"] = Field(
        default="pareto",
        description="winner of a tournament: a random member of its Pareto front; least mean rank; best on the first "
        "network; or NSGA-II's rank and crowding distance, by which the population is then kept too",
    )
    window: int = Field(default=2500, ge=1, description="only the most recent scored layers can be parents")
    tournament: float = Field(default=0.05, gt=0, le=1, description="share of the population in a tournament")
    tournament_least: int = Field(default=5, ge=1, description="members of a tournament in a small population")
    ties: float = Field(
        default=0.0,
        ge=0,
        description="how much worse in each score a layer may be and still win, by less memory traffic, or as much and "
        "fewer nodes; 0: it may not",
    )
    niche: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="cosine of behaviour from which two layers are of one niche, whose best alone can be a parent, "
        "such as 0.98; 0 is off",
    )
    start: tuple[str, ...] = Field(default=(), description="named layers or formulas that are proposed first")
    order: Literal["fixed", "arrival"] = Field(
        default="fixed",
        description="what a proposal knows: all evaluations but the last `lag`, the same for any number of workers; "
        "or whatever has arrived, which keeps every worker busy and is recorded",
    )
    lag: int = Field(default=8, ge=1, description="evaluations under way that a proposal does not wait for")

    @model_validator(mode="before")
    @classmethod
    def _by_protocol(cls, values: Any) -> Any:
        """What the protocol sets, under what is given."""
        protocol = values.get("protocol") if isinstance(values, dict) else None
        return {**PROTOCOLS[protocol], **values} if protocol in PROTOCOLS else values


class Filters(Section):
    """What a layer must pass before it takes a slot, beside the static stages, hash and fingerprint."""

    family: bool = Field(default=False, description="one layer of each family: the same up to what parameters absorb")
    behaviour: float = Field(
        default=0.0, ge=0, le=1, description="cosine of outputs above which two layers are one, such as 0.995; 0 is off"
    )
    start: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="the same of layers with v0 and v1 at their starts, which differ by a parameter that training "
        "hardly moves, such as 0.9999; 0 is off",
    )
    signal: float = Field(
        default=0.0, ge=0, description="largest z of a layer, of how a signal changes in it, such as 1.5; 0 is off"
    )
    linearity: float = Field(
        default=2.0, ge=0, description="added to z where y is a straight line of x; in proportion from R² 0.95 on"
    )
    probing: bool = Field(default=False, description="probe a layer before it takes a slot, not after")


class Objectives(Section):
    """The objectives of a layer: its loss on each network, and more if asked for. Smaller is better for all."""

    score: Literal["loss", "error"] = Field(default="loss", description="validation cross-entropy, or error rate")
    also: tuple[Literal["traffic", "small_batch", "shift", "margin"], ...] = Field(
        default=(),
        description="traffic: bytes that forward and backward move, in sizes of the input; small_batch: score of a "
        "training with batches of `small_batch`; shift: loss on validation images with noise, with half the contrast "
        "and at another scale, averaged; margin: log10 of the largest gradient norm under attack",
    )
    small_batch: int = Field(default=4, ge=1)


class Quality(Section):
    """Rejection after a short training on every network (EvoNorm, section 4.2)."""

    steps: int = Field(default=100, ge=1, description="the first steps of the full training")
    threshold: float = Field(
        default=2.0,
        ge=0,
        description="least validation accuracy in multiples of chance, but at most halfway from chance to 1",
    )


class Stability(Section):
    """Rejection by gradient ascent on the squared gradient norm, on every network (EvoNorm, section 4.2)."""

    steps: int = Field(default=100, ge=0, description="0 leaves the stage out")
    direction: Literal["unit", "raw"] = Field(
        default="unit", description="the normalised gradient; or the gradient as it is, as in the paper"
    )
    rate: float = Field(default=1.0, gt=0, description="length of a unit step, or factor of the raw gradient")
    batch: int = Field(default=16, ge=2)
    threshold: float = Field(default=1e8, gt=0, description="largest gradient norm")


class Early(Section):
    """Full trainings stopped on the way: where a layer is among the worst of those before it on every network."""

    at: float = Field(default=0.5, gt=0, lt=1, description="share of the steps after which layers are compared")
    keep: float = Field(default=1.0, gt=0, le=1, description="share of earlier layers to be among; 1 stops none")
    least: int = Field(default=20, ge=1, description="scored layers before any is stopped")


RUNGS = ("micro", "quality", "full", "stability")


class Micro(Section):
    """The cheapest rung: a short training of the network `plain` on small images."""

    size: int = Field(default=8, ge=4, description="side to which the images of the data are averaged down")
    steps: int = Field(default=120, ge=1)
    batch: int = Field(default=32, ge=1)
    rate: float = Field(default=0.1, gt=0, description="learning rate at the first step; its schedule is a cosine")
    look: int = Field(default=30, ge=1, description="step after which a layer that has not begun to learn is stopped")
    begun: float = Field(
        default=1.25,
        ge=0,
        description="least validation accuracy at `look` in multiples of chance, but at most a tenth of the way to 1",
    )


class Ladder(Section):
    """A ladder of fidelities: the best share of each rung goes on to the next and dearer one."""

    use: tuple[Literal["micro", "quality", "full", "stability"], ...] = Field(
        default=(), description="rungs, in this order; none sends every layer through all stages at once"
    )
    promote: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        default=(0.25,), min_length=1, description="share of what comes through each rung but the last; one for all"
    )
    micro: Micro = Micro()


class Final(Section):
    """The end: the best are ranked again on a longer recipe and held-out images, then compared with known layers."""

    candidates: int = Field(default=10, ge=1, description="distinct layers that are ranked again")
    best: int = Field(default=3, ge=1, description="of these, kept for the comparison")
    seeds: int = Field(default=3, ge=1, description="trainings of each layer in the comparison; one in the ranking")
    apart: int = Field(
        default=0,
        ge=0,
        description="most trainings of a found layer and of the known one nearest to it by behaviour, until their "
        "losses can be told apart; 0 leaves that layer out of the comparison",
    )
    longer: float = Field(default=1.0, ge=1, le=100, description="factor of the recipe's steps in both")
    baselines: tuple[str, ...] = ("bn-relu", "gn-relu", "gn-silu", "evonorm-b0", "evonorm-s0")


class Budget(Section):
    """The limits of a search, which ends at whichever comes first."""

    minutes: float = Field(default=6.0, ge=0, description="of search, the final training not counted")
    candidates: int | None = Field(default=None, ge=1, description="layers drawn, refused ones included")
    evaluations: int | None = Field(default=None, ge=1, description="layers that came to the stages with numbers")
    trained: float | None = Field(
        default=None,
        gt=0,
        description="trained steps by their cost, in full trainings of the first rung, after which none is drawn",
    )


class Workers(Section):
    """Processes that evaluate candidates."""

    on: str = Field(default="local", description="local, ray (a cluster started before or here) or ray://HOST:PORT")
    count: int = Field(default=2, ge=1, le=4096, description="at most; on GPUs, as many as their memory holds")
    threads: int = Field(default=1, ge=1, le=256, description="of each process")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    time_limit: float = Field(default=180.0, gt=0, description="seconds for one task, then its process is replaced")
    memory_limit: float = Field(default=4.0, gt=0, description="GiB of one process and what it started")


class Cache(Section):
    """The cache that keeps evaluations across runs."""

    file: str = Field(default="", description="SQLite file shared by any number of runs; empty keeps none")
    lease: float = Field(
        default=300.0, gt=0, description="seconds to wait for another run's evaluation, at least workers.time_limit"
    )


class Config(Section):
    """Everything that a run depends on; `MAY_CHANGE` may differ when a run is continued."""

    MAY_CHANGE: ClassVar[tuple[str, ...]] = ("budget.", "workers.", "cache.")

    preset: str = "digits"
    seed: int = Field(default=0, ge=0)
    space: Space = Space()
    filters: Filters = Filters()
    evolution: Evolution = Evolution()
    objectives: Objectives = Objectives()
    networks: Networks = Networks()
    data: DataConfig = DataConfig()
    recipe: Recipe = Recipe()
    quality: Quality = Quality()
    stability: Stability = Stability()
    early: Early = Early()
    ladder: Ladder = Ladder()
    final: Final = Final()
    budget: Budget = Budget()
    workers: Workers = Workers()
    cache: Cache = Cache()


_THREE = {"use": ["resnet", "mobilenet", "efficientnet"]}
_PAPER: dict[str, Any] = {
    "networks": _THREE
    | {
        "resnet": {"width": 0.25, "depths": [3, 4, 6, 3]},
        "mobilenet": {"width": 0.5, "depth": 1.0, "stages": 7},
        "efficientnet": {"width": 0.5, "depth": 1.0, "stages": 7},
    },
    "data": {"source": "cifar10:data", "crop": 24, "flip": True},
    "final": {"longer": 4.0},
    "budget": {"minutes": 60 * 24 * 2},
    "workers": {"time_limit": 7200.0, "memory_limit": 16.0},
}
# What finds layers with some hundreds of trainings: see docs/search.md.
_FINDS: dict[str, Any] = {
    "filters": {"family": True, "behaviour": 0.995, "start": 0.9999, "signal": 1.5, "probing": True},
    "evolution": {"protocol": "structural", "lag": 4},
    "data": {"source": "fractals"},
}
_LADDER = {"use": ["micro", "quality", "full", "stability"]}
_NETWORKS = _THREE | {"groups": 4}
_SGD = {"batch": 128, "rate": 0.1, "nesterov": True}
PRESETS: dict[str, dict[str, Any]] = {
    "demo": {
        **_FINDS,
        "networks": {"use": ["resnet"], "groups": 4},
        "ladder": _LADDER | {"promote": [0.25, 0.34, 1.0]},
        "final": {"candidates": 5, "best": 2, "apart": 5, "baselines": ["bn-relu", "gn-relu", "evonorm-b0"]},
        "budget": {"minutes": 7.0},
    },
    "hour": {
        **_FINDS,
        "networks": _NETWORKS,
        "ladder": _LADDER | {"promote": [0.2, 0.34, 1.0]},
        "final": {"candidates": 4, "best": 2, "apart": 6},
        "budget": {"minutes": 40.0},
    },
    "night": {
        **_FINDS,
        "networks": _NETWORKS,
        "ladder": _LADDER | {"promote": [0.2, 0.34, 1.0]},
        "final": {"candidates": 10, "apart": 8},
        "budget": {"minutes": 420.0},
    },
    "digits": {},
    "paper-b": {**_PAPER, "recipe": _SGD | {"steps": 2000, "schedule": "constant"}},
    "paper-s": {**_PAPER, "space": {"batch": False}, "recipe": _SGD | {"steps": 5000}},
}


def load(preset: str = "demo", overrides: Iterable[str] = (), file: Path | None = None) -> Config:
    """The configuration of a preset, changed by a file and then by overrides such as `recipe.steps=100`.

    Args:
        preset: a key of `PRESETS`; one that the file names comes before it.
        overrides: `section.key=value`; lists are separated by commas (by semicolons where a value has commas),
            `none` is no value.
        file: TOML with the sections and keys of `Config`.

    Raises:
        OptionError: an unknown preset, key or value, or a file that cannot be read; the nearest known key is named.
    """
    from_file = read_toml(file) if file else {}
    preset = from_file.pop("preset", preset)
    if preset not in PRESETS:
        raise OptionError(
            f"there is no preset {preset!r}{nearest(str(preset), PRESETS)}: choose one of {', '.join(PRESETS)}"
        )
    values = merge({}, PRESETS[preset]) | {"preset": preset}
    known = dict(flat(Config()))
    given = [*leaves(from_file), *settings.overrides(overrides, known)]
    if "evolution.protocol" in dict(given):
        values["evolution"] = {k: v for k, v in values.get("evolution", {}).items() if k in Evolution.OPEN}
    for key, value in given:
        if key == "preset":
            raise OptionError("the preset is not set like that: give --preset, or preset in a file")
        place(values, key, value, known, free=("space.custom.",))
    config = validated(Config, values)
    _check(config)
    return config


def _check(config: Config) -> None:
    for name in config.final.baselines:
        if name not in layers:
            raise OptionError(f"final.baselines: there is no layer named {name!r}{nearest(name, layers)}")
        if not layers[name].is_plain:
            raise OptionError(f"final.baselines: {name} is given more than x, and has no place in these networks")
    check_recipe(config.recipe)
    if config.quality.steps > config.recipe.steps:
        raise OptionError(
            f"quality.steps = {config.quality.steps} are the first of recipe.steps = {config.recipe.steps}: lower them"
        )
    if not re.fullmatch(r"local|ray|ray://[^\s/]+:\d+", config.workers.on):
        raise OptionError(
            f"workers.on = {config.workers.on!r} is no place to work: write local, ray or ray://HOST:PORT, "
            "or a number of processes as workers.count"
        )
    if len(set(config.networks.use)) < len(config.networks.use):
        raise OptionError("networks.use names a network twice")
    if len(set(config.objectives.also)) < len(config.objectives.also):
        raise OptionError("objectives.also names an objective twice")
    for name, setting in Evolution.model_fields.items() if config.evolution.protocol == "paper" else ():
        if name not in Evolution.OPEN and (value := getattr(config.evolution, name)) != setting.default:
            raise OptionError(
                f"evolution.protocol = paper is the paper's whole, with evolution.{name} = {setting.default}: "
                f"leave the protocol out for {name} = {value}"
            )
    if "margin" in config.objectives.also and not config.stability.steps:
        raise OptionError("objectives.also = margin is measured by the stability stage: give stability.steps above 0")
    if config.ladder.use:
        _check_ladder(config)


def _check_ladder(config: Config) -> None:
    ladder = config.ladder
    if list(ladder.use) != [rung for rung in RUNGS if rung in ladder.use]:
        raise OptionError(f"ladder.use names rungs in this order, each once: {', '.join(RUNGS)}")
    if ladder.use[0] == "stability":
        raise OptionError("ladder.use = stability ranks nothing: put a rung before it that trains")
    if len(ladder.promote) not in (1, len(ladder.use) - 1):
        raise OptionError(f"ladder.promote has one value, or one for each of {len(ladder.use)} rungs but the last")
    if "stability" in ladder.use and not config.stability.steps:
        raise OptionError("ladder.use has the rung stability: give stability.steps above 0")
    if ladder.micro.look > ladder.micro.steps:
        raise OptionError(f"ladder.micro.look is one of the {ladder.micro.steps} steps of ladder.micro.steps: lower it")
    if config.early.keep < 1:
        raise OptionError("early.keep stops full trainings where there is no ladder: leave it at 1 with ladder.use")
    if "margin" in config.objectives.also:
        raise OptionError(
            "objectives.also = margin is measured on the last rung, when layers were ranked: leave it out"
        )
    if set(config.objectives.also) and "full" not in ladder.use:
        raise OptionError("objectives.also is measured on the rung full: put it into ladder.use")
    if config.evolution.order == "arrival":
        raise OptionError("evolution.order = arrival records no promotions: leave it at fixed with ladder.use")


def unflat(values: dict[str, Any]) -> Config:
    """The inverse of `flat`, for what a run has stored.

    Raises:
        RunError: another version's settings.
    """
    nested: dict[str, Any] = {}
    custom = "space.custom."
    for key, value in values.items():
        path = ["space", "custom", key.removeprefix(custom)] if key.startswith(custom) else key.split(".")
        section = nested
        for name in path[:-1]:
            section = section.setdefault(name, {})
        section[path[-1]] = value
    try:
        return Config.model_validate(nested)
    except ValidationError as e:
        where = ".".join(str(part) for part in e.errors()[0]["loc"])
        raise RunError(f"the run was made by another version, which knows {where!r} differently") from None


def check_same(saved: dict[str, Any], config: Config, where: str) -> None:
    """Compare the settings that a run began with, as `dict(flat(config))`, with those it is continued with.

    Raises:
        RunError: names the first field that differs and may not.
    """
    settings.check_same(saved, dict(flat(config)), dict(flat(Config())), Config.MAY_CHANGE, where)
