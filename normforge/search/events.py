"""Events: what happens in a run, one class an event type, and the one reader of what a store holds of them.

A candidate's life in types: evolution gives a `Proposal`; drawn, it is `Asked`; under way it is a `Task`, which ends in
an `Outcome`; with that it is a `Candidate`, which is what every report reads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Self, TypeVar

from normforge.errors import RunError
from normforge.search import space
from normforge.search.config import RUNGS
from normforge.search.funnel import Outcome
from normforge.search.space import Genotype
from normforge.search.store import Record, Store

_OUTCOME = {f.name for f in fields(Outcome)} - {"pieces"}


class Event(ABC):
    """An event: one thing that happened in a run.

    Attributes:
        TYPE: names the class in a store.
        elapsed: seconds of search when it was stored, all sessions together.
    """

    TYPE: ClassVar[str]
    elapsed: float

    @abstractmethod
    def record(self) -> Record:
        """The event as it is stored."""

    @classmethod
    @abstractmethod
    def read(cls, record: Record) -> Self:
        """The event of a record; the inverse of `record`."""


@dataclass(frozen=True)
class Began(Event):
    """The event that a run begins, or goes on.

    Attributes:
        number: sessions before it.
        elapsed: seconds of search before it, all sessions together.
        settings: of the run, as `config.flat` gives them.
        digest, classes, device, machine, code: as in `Provenance`.
        replay: the run whose turns are followed; empty where none is.
    """

    TYPE: ClassVar[str] = "session"
    number: int
    elapsed: float
    settings: dict[str, Any]
    digest: str
    classes: int
    device: str
    machine: str
    code: str
    replay: str = ""

    def record(self) -> Record:
        """The event as it is stored."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("number", "elapsed")}
        return Record(self.TYPE, str(self.number), self.elapsed, values)

    @classmethod
    def read(cls, record: Record) -> Self:
        """The event of a record; the inverse of `record`."""
        _check_fields(record.data, (f.name for f in fields(cls)))
        return cls(int(record.key), record.elapsed, **record.data)


@dataclass(frozen=True)
class Asked(Event):
    """A candidate that was drawn; stored where proposals go by arrival, since it cannot be drawn again.

    Attributes:
        index: its number.
        elapsed: seconds of search when this was stored.
        genotype: as drawn.
        parents: the candidates that it was made from; none for a fresh one.
        known: outcomes that evolution had been told when it was drawn; None where turns are fixed.
        limits: by network, the halfway loss above which its training is stopped; empty where turns are fixed.
    """

    TYPE: ClassVar[str] = "asked"
    FIELDS: ClassVar[frozenset[str]] = frozenset({"genes", "parents", "known", "limits"})
    index: int
    elapsed: float
    genotype: Genotype
    parents: tuple[int, ...]
    known: int | None = None
    limits: dict[str, float] = field(default_factory=dict)

    def values(self) -> dict[str, Any]:
        """The fields as JSON values."""
        made: dict[str, Any] = {"genes": space.to_json(self.genotype), "parents": list(self.parents)}
        if self.known is not None:
            made["known"] = self.known
        return made | ({"limits": self.limits} if self.limits else {})

    def record(self) -> Record:
        """The event as it is stored."""
        return Record(self.TYPE, str(self.index), self.elapsed, self.values())

    @classmethod
    def read(cls, record: Record) -> Self:
        """The event of a record; the inverse of `record`."""
        _check_fields(record.data, cls.FIELDS)
        return cls(**_made(record))


def _made(record: Record) -> dict[str, Any]:
    data = record.data
    return {
        "index": int(record.key),
        "elapsed": record.elapsed,
        "genotype": space.from_json(data["genes"]),
        "parents": tuple(data["parents"]),
        "known": data.get("known"),
        "limits": data.get("limits", {}),
    }


@dataclass(frozen=True, kw_only=True)
class Candidate(Asked):
    """A candidate whose fate is known.

    Attributes:
        outcome: fate, reason, scores, seconds.
        formula: as drawn; empty where it was refused without numbers.
        hash: identity of its function; empty where it was refused without numbers.
        fingerprint: of its numbers, where it has one.
        family: of its function, up to what parameters absorb, where `filters.family` asks for it.
    """

    TYPE: ClassVar[str] = "candidate"
    FIELDS: ClassVar[frozenset[str]] = Asked.FIELDS | _OUTCOME | {"formula", "hash", "fingerprint", "family"}
    outcome: Outcome
    formula: str = ""
    hash: str = ""
    fingerprint: str = ""
    family: str = ""

    @property
    def name(self) -> str:
        """The name of the candidate in the comparison: #17."""
        return f"#{self.index}"

    @property
    def evaluated(self) -> bool:
        """True for a candidate that came to the stages with numbers."""
        return bool(self.hash)

    @property
    def keys(self) -> dict[str, str]:
        """The keys by which later candidates are duplicates of this one."""
        return {k: v for k in ("hash", "fingerprint", "family") if (v := getattr(self, k))}

    def after(self, promoted: Promoted) -> Candidate:
        """The candidate after a promotion, with what all its rungs have found."""
        return replace(self, elapsed=promoted.elapsed, outcome=promoted.outcome.after(self.outcome))

    @property
    def seconds(self) -> float:
        """Seconds spent on the candidate, all stages together."""
        return sum(self.outcome.seconds.values())

    def values(self) -> dict[str, Any]:
        """The fields as JSON values."""
        formula = {"formula": self.formula} if self.formula else {}
        return {**super().values(), **self.outcome.to_json(), **self.keys, **formula}

    @classmethod
    def read(cls, record: Record) -> Self:
        """The event of a record; the inverse of `record`."""
        data = record.data
        _check_fields(data, cls.FIELDS)
        texts = {k: data.get(k, "") for k in ("formula", "hash", "fingerprint", "family")}
        return cls(**_made(record), outcome=Outcome.from_json(data), **texts)


@dataclass(frozen=True)
class Promoted(Event):
    """The event that a candidate was evaluated on a higher rung of the ladder.

    Attributes:
        index: of the candidate.
        rung: its name.
        elapsed: seconds of search.
        outcome: of that rung alone.
    """

    TYPE: ClassVar[str] = "promoted"
    index: int
    rung: str
    elapsed: float
    outcome: Outcome

    @property
    def key(self) -> str:
        """The key of the event, and of its task: 17/full."""
        return f"{self.index}/{self.rung}"

    def record(self) -> Record:
        """The event as it is stored."""
        return Record(self.TYPE, self.key, self.elapsed, self.outcome.to_json())

    @classmethod
    def read(cls, record: Record) -> Self:
        """The event of a record; the inverse of `record`."""
        _check_fields(record.data, _OUTCOME)
        index, _, rung = record.key.partition("/")
        return cls(int(index), rung, record.elapsed, Outcome.from_json(record.data))


@dataclass(frozen=True)
class Trained(Event):
    """The event that a layer was trained again after the search.

    Attributes:
        key: its name, or name/repeat.
        elapsed: seconds of search.
        outcome: with held-out loss and test accuracy.
    """

    key: str
    elapsed: float
    outcome: Outcome

    def record(self) -> Record:
        """The event as it is stored."""
        return Record(self.TYPE, self.key, self.elapsed, self.outcome.to_json())

    @classmethod
    def read(cls, record: Record) -> Self:
        """The event of a record; the inverse of `record`."""
        _check_fields(record.data, _OUTCOME)
        return cls(record.key, record.elapsed, Outcome.from_json(record.data))


class Reranked(Trained):
    """A training for the second ranking; the key is #index."""

    TYPE = "rerank"


class Compared(Trained):
    """A training for the final comparison; the key is name/repeat."""

    TYPE = "final"


_E = TypeVar("_E", bound=Event)
_CLASSES: tuple[type[Event], ...] = (Began, Asked, Candidate, Promoted, Reranked, Compared)
_BY_TYPE = {c.TYPE: c for c in _CLASSES}


def every(store: Store) -> Iterator[Event]:
    """All events in the order in which they were stored.

    Raises:
        RunError: the file is damaged, or an event is of another version.
    """
    for record in store.records():
        cls = _BY_TYPE.get(record.type)
        if cls is None:
            raise RunError(f"{store.path} holds an event of type {record.type!r}: read it with a newer normforge")
        yield _read(cls, record, store)


def each(store: Store, cls: type[_E]) -> Iterator[_E]:
    """The events of one class in the order in which they were stored.

    Raises:
        RunError: the file is damaged, or an event is of another version.
    """
    return (_read(cls, record, store) for record in store.records(cls.TYPE))


def candidates(store: Store) -> list[Candidate]:
    """All candidates, each with what all its rungs have found, in the order in which they were stored.

    Raises:
        RunError: the file is damaged, or an event is of another version.
    """
    found = {c.index: c for c in each(store, Candidate)}
    for promoted in each(store, Promoted):
        found[promoted.index] = found[promoted.index].after(promoted)
    return list(found.values())


def candidate(store: Store, index: int) -> Candidate | None:
    """The candidate with that index, with what all its rungs have found, if there is one.

    Raises:
        RunError: the file is damaged, or the event is of another version.
    """
    found = find(store, Candidate, str(index))
    for rung in RUNGS if found else ():
        if found and (promoted := find(store, Promoted, f"{index}/{rung}")):
            found = found.after(promoted)
    return found


def find(store: Store, cls: type[_E], key: str) -> _E | None:
    """The one event of that class and key, if there is one.

    Raises:
        RunError: the file is damaged, or the event is of another version.
    """
    record = store.record(cls.TYPE, key)
    return _read(cls, record, store) if record else None


def _read(cls: type[_E], record: Record, store: Store) -> _E:
    try:
        return cls.read(record)
    except (KeyError, TypeError, ValueError) as e:
        what = f"lacks {e}" if isinstance(e, KeyError) else f"cannot be read ({e})"
        raise RunError(
            f"{store.path}: the event {record.type} {record.key} {what}: it was made by another version, "
            "or is damaged; read it with the normforge that made it, or use another --out"
        ) from None


def _check_fields(data: Mapping[str, Any], known: Iterable[str]) -> None:
    if unknown := data.keys() - set(known):
        raise ValueError(f"unknown fields {', '.join(sorted(unknown))}")
