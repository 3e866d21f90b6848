"""What the exercises call: compare your function with a reference, and say what is wrong.

Each unit has one short file (`u02_svd.py`, ...) with one function per question. All of them end
in `check`: it returns one line when all is well, and raises `CheckFailed` with at most three.
"""

from __future__ import annotations

import hashlib
import inspect
import operator
import os
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

TOLERANCE = 1e-5  # of the largest expected number; float32 answers pass, approximations do not

Cases = Iterable[tuple[Any, ...]]
View = Callable[[Any], dict[str, Any]]


class CheckFailed(AssertionError):
    """An answer differs from what was expected. Notebooks show the message without a traceback."""

    def _render_traceback_(self) -> list[str]:  # IPython's hook
        return str(self).splitlines()


def grading_seed() -> int:
    """The seed that graded cases are drawn from: any text in LOWRANK_GRADING_SEED, as a number."""
    text = os.environ.get("LOWRANK_GRADING_SEED", "")
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])


def check(
    function: Callable[..., Any],
    reference: Callable[..., Any],
    cases: Cases,
    view: View | None = None,
    mistakes: Mapping[str, Callable[..., Any]] | None = None,
) -> str:
    """Compare `function` with `reference` on every case.

    Parameters
    ----------
    function : the learner's function; it must leave its arguments as they are
    reference : the function that is right. It returns a tensor, an int, or a named tuple of these.
        Its name, less a leading `_`, and the names of its parameters go into the messages.
    cases : tuples of arguments; keep tensors in float64
    view : what of an answer counts, as `{label: tensor or number}`. Needed where right answers may
        differ, as singular vectors do in sign. None: the answer itself, part by part.
    mistakes : `{sentence: function that makes this mistake}`; the sentence is added to the message
        when the learner's answer is the one that this mistake gives

    Returns
    -------
    One sentence that says how many cases agree.

    Raises
    ------
    CheckFailed : what differs, what was expected and what came, in at most three lines.
    """
    name, count = _name(reference), 0
    for arguments in cases:
        given = [_copy(argument) for argument in arguments]
        case = _describe_call(reference, arguments)
        answer = _call(function, given, name, case)
        for before, after in zip(arguments, given, strict=True):
            if isinstance(before, Tensor) and not torch.equal(before, after):
                raise CheckFailed(f"{case} changed its argument. Work on a copy instead.")

        expected = reference(*arguments)
        difference = _difference(expected, answer, view)
        if difference:
            what, wanted, got = difference
            hint = _known_mistake(mistakes or {}, arguments, answer, view)
            raise CheckFailed(f"{case}: {what}{hint}\n  expected {wanted}\n  got      {got}")
        count += 1
    return f"{name}: all {count} cases agree."


def _call(function: Callable[..., Any], given: list[Any], name: str, case: str) -> Any:
    try:
        with warnings.catch_warnings():  # nbgrader gives no points to a cell that warns
            warnings.simplefilter("ignore")
            return function(*given)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)[1:]  # the learner's, outermost first
        if isinstance(error, NotImplementedError) and len(frames) == 1:
            message = f"{name} is not written yet. Replace `{frames[0].line}` by your code."
            raise CheckFailed(message) from None
        where = f"\n  in line {frames[0].lineno}: {frames[0].line}" if frames else ""
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200].removesuffix(": ")
        raise CheckFailed(f"{case} stopped with {reason}{where}") from error


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _parts(answer: Any) -> dict[str, Any]:
    """`{name: part}` of an answer: a named tuple, or one value."""
    return answer._asdict() if hasattr(answer, "_asdict") else {"the answer": answer}


def _difference(expected: Any, answer: Any, view: View | None) -> tuple[str, str, str] | None:
    """What is wrong, what was expected, what came; None if `answer` agrees with `expected`."""
    parts = _parts(expected)
    several = hasattr(expected, "_asdict")
    if several and (not isinstance(answer, tuple | list) or len(answer) != len(parts)):
        names = ", ".join(parts)
        return "wrong number of parts.", f"{len(parts)} parts: {names}", _describe(answer)

    got_parts = list(answer) if several else [answer]
    for (label, wanted), got in zip(parts.items(), got_parts, strict=True):
        if isinstance(wanted, Tensor):
            if not isinstance(got, Tensor) or got.shape != wanted.shape:
                return f"{label} has the wrong shape.", _shape(wanted), _shape(got)
        elif not _is_integer(got):
            return f"{label} must be an int.", str(wanted), _describe(got)

    numbers = [torch.as_tensor(got).detach().cpu().double() for got in got_parts]
    view = view or _parts
    compared = view(expected._make(numbers) if several else numbers[0])
    for label, wanted in view(expected).items():
        want, got = torch.as_tensor(wanted, dtype=torch.float64), compared[label]
        gap = torch.nan_to_num((got - want).abs(), nan=torch.inf)
        if gap.numel() and gap.max() > TOLERANCE * max(1.0, float(want.abs().max())):
            at = tuple(int(i) for i in torch.unravel_index(gap.argmax(), gap.shape))
            where = f" at entry [{', '.join(map(str, at))}]" if at else ""
            return f"{label} is wrong{where}.", _number(want[at]), _number(got[at])
    return None


def _known_mistake(
    mistakes: Mapping[str, Callable[..., Any]],
    arguments: tuple[Any, ...],
    answer: Any,
    view: View | None,
) -> str:
    for sentence, mistaken in mistakes.items():
        if _difference(mistaken(*arguments), answer, view) is None:
            return f" {sentence}"
    return ""


def _is_integer(value: Any) -> bool:
    try:
        operator.index(value)  # int, NumPy's integers, tensors that hold one integer
    except TypeError:
        return False
    return True


def _number(value: Tensor) -> str:
    return f"{float(value):.6g}"


def _describe(value: Any) -> str:
    """A value in a few words: numbers in full, tensors by shape, small vectors by their numbers."""
    if isinstance(value, Tensor):
        if value.ndim == 1 and 0 < len(value) <= 6:
            return f"[{', '.join(_number(entry) for entry in value)}]"
        return _shape(value)
    if isinstance(value, tuple | list):
        return f"{len(value)} parts"
    if value is None:
        return "None (is there a return?)"
    if isinstance(value, bool | int | float):
        return f"{value!r}, a {type(value).__name__}"
    return f"an object of type {type(value).__name__}"


def _shape(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return _describe(value)


def _describe_call(reference: Callable[..., Any], arguments: tuple[Any, ...]) -> str:
    names = inspect.signature(reference).parameters
    words = [
        f"{name}={_describe(value) if isinstance(value, Tensor) else value}"
        for name, value in zip(names, arguments, strict=True)
    ]
    return f"{_name(reference)}({', '.join(words)})"


def _name(reference: Callable[..., Any]) -> str:
    return reference.__name__.removeprefix("_")
