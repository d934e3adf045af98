"""What a promise is, how it is checked, and how a broken one is told."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import SkipTest

import torch
from torch import Tensor

from metalearn_core.errors import UsageError
from metalearn_core.testing.subject import Subject

Applies = Callable[[Subject], bool]
TOLERANCE = 1e-7  # of float64, absolute and relative


class BrokenPromiseError(AssertionError):
    """What was found in place of what was promised."""


@dataclass(frozen=True)
class Promise:
    """One promise of a learner.

    Attributes:
        examine: raises a `BrokenPromiseError` with what it found instead; its docstring says what is promised.
        applies: whether a learner makes it.
    """

    examine: Callable[[Subject], None]
    applies: Applies

    @property
    def name(self) -> str:
        """The promise as an identifier."""
        return self.examine.__name__

    @property
    def text(self) -> str:
        """The promise in words."""
        return " ".join((self.examine.__doc__ or "").split())


def promise(promises: list[Promise], applies: Applies = lambda _: True) -> Callable[[Callable[[Subject], None]], None]:
    """Add a function that examines a promise to the `promises` of its module."""

    def add(examine: Callable[[Subject], None]) -> None:
        promises.append(Promise(examine, applies))

    return add


@dataclass(frozen=True)
class Check:
    """One promise of one learner: call it."""

    promise: Promise
    subject: Subject

    def __str__(self) -> str:
        return f"{self.subject}-{self.promise.name}"

    def __call__(self) -> None:
        """Examine the promise.

        Raises:
            AssertionError: it is broken: what was promised, and what was found.
            unittest.SkipTest: this machine lacks what it takes to find out.
        """
        try:
            with self.subject.registered(), _one_thread():
                self.promise.examine(self.subject)
        except SkipTest:
            raise
        except BrokenPromiseError as error:
            raise AssertionError(self._told(str(error))) from None
        except Exception as error:
            raise AssertionError(self._told(f"{type(error).__name__}: {error}")) from error

    def _told(self, found: str) -> str:
        return f"{self.subject} breaks a promise\n  promised: {self.promise.text}\n  found: {found}"


@contextmanager
def _one_thread() -> Iterator[None]:
    """Have torch work on one thread inside a block, as is quickest for what is so small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def require(kept: bool, found: str) -> None:
    """Raise a `BrokenPromiseError` with what was found unless the promise is kept."""
    if not kept:
        raise BrokenPromiseError(found)


def require_refused(make: Callable[[], object], otherwise: str) -> None:
    """Raise a `BrokenPromiseError` unless `make` raises a UsageError."""
    try:
        make()
    except UsageError:
        return
    raise BrokenPromiseError(otherwise)


def require_close(found: Tensor, wanted: Tensor, what: str, tolerance: float = TOLERANCE) -> None:
    """Raise a `BrokenPromiseError` where two tensors differ by more than rounding, or in shape."""
    require(found.shape == wanted.shape, f"{what}: shape {tuple(found.shape)}, not {tuple(wanted.shape)}")
    found, wanted = found.detach().double(), wanted.detach().double()
    if torch.allclose(found, wanted, rtol=tolerance, atol=tolerance):
        return
    finite = found.isfinite() & wanted.isfinite()
    if not torch.equal(found[~finite], wanted[~finite]):
        raise BrokenPromiseError(f"{what}: numbers that are not finite in one of them alone")
    raise BrokenPromiseError(f"{what}: they differ by up to {(found - wanted)[finite].abs().max().item():.3g}")


def require_same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str) -> None:
    """Raise a `BrokenPromiseError` unless two sets of tensors are the same, bit by bit."""
    require(found.keys() == wanted.keys(), f"{what}: {sorted(found.keys() ^ wanted.keys())} are in one of them alone")
    other = [name for name, value in found.items() if not torch.equal(value, wanted[name])]
    require(not other, f"{what}: {', '.join(other)} differ")
