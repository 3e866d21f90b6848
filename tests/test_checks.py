"""The checks must accept every right answer, refuse the usual wrong ones, and say why."""

import re

import pytest
import torch

from lowrank_course.checks import CheckFailed, check, grading_seed, u02_svd

CHECKS = {
    "truncate": u02_svd.truncate,
    "relative_errors": u02_svd.relative_errors,
    "rank_for_error": u02_svd.rank_for_error,
    "largest_rank": u02_svd.largest_rank,
    "compress_photo": u02_svd.compress_photo,
}


def double(number: int) -> int:
    return 2 * number


def ramp(length: int) -> torch.Tensor:
    return torch.arange(length, dtype=torch.float64)


def message(function, reference, cases, **options) -> str:
    with pytest.raises(CheckFailed) as caught:
        check(function, reference, cases, **options)
    return str(caught.value)


def test_a_right_answer_passes_and_the_cases_are_counted():
    assert check(lambda n: n + n, double, [(1,), (2,)]) == "double: all 2 cases agree."
    assert "2 cases" in check(lambda n: ramp(n).float(), ramp, [(3,), (0,)])  # float32 is enough


def test_the_message_shows_the_case_the_expected_and_the_got():
    text = message(lambda n: n**2, double, [(2,), (3,)])
    assert text.splitlines() == [
        "double(number=3): the answer is wrong.",
        "  expected 6",
        "  got      9",
    ]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda n: None, "None (is there a return?)"),
        (lambda n: torch.zeros(n + 1), "a tensor of shape (4,)"),
        (lambda n: ramp(n).tolist(), "3 parts"),
        (lambda n: ramp(n) + torch.tensor([0, 0.1, 0]), "at entry [1]"),
        (lambda n: ramp(n) * torch.nan, "nan"),
        (lambda n: ramp(n) * 1.0001, "2.0002"),
    ],
)
def test_wrong_tensors_are_described(answer, words):
    text = message(answer, ramp, [(3,)])
    assert words in text and len(text.splitlines()) == 3


def test_an_int_must_be_an_int():
    assert "must be an int" in message(lambda n: 2.0 * n, double, [(1,)])
    assert "1 cases" in check(lambda n: torch.tensor(2 * n), double, [(1,)])


def test_a_known_mistake_is_named():
    mistakes = {"That is the square.": lambda n: n**2}
    assert "That is the square." in message(lambda n: n * n, double, [(3,)], mistakes=mistakes)
    assert "square" not in message(lambda n: 7, double, [(3,)], mistakes=mistakes)


def test_an_unwritten_answer_is_said_to_be_unwritten():
    def stub(number):
        raise NotImplementedError

    assert message(stub, double, [(1,)]).startswith("double is not written yet.")


def test_the_learners_own_error_is_shown_with_its_line():
    def division(number):
        return number / 0

    text = message(division, double, [(4,)])
    assert (
        text.splitlines()[0] == "double(number=4) stopped with ZeroDivisionError: division by zero"
    )
    assert re.fullmatch(r"  in line \d+: return number / 0", text.splitlines()[1])
    assert "takes 0 positional arguments" in message(lambda: 1, double, [(4,)])


def test_an_answer_that_needs_an_unwritten_one_names_the_line_that_calls_it():
    def stub(number):
        raise NotImplementedError

    text = message(lambda n: 2 * stub(n), double, [(4,)])
    assert "not written" not in text and "2 * stub(n)" in text


def test_changing_the_argument_is_noticed():
    def length(values: torch.Tensor) -> torch.Tensor:
        return values + 1

    assert "changed its argument" in message(lambda v: v.add_(1), length, [(torch.ones(2),)])


def test_a_warning_costs_no_points(recwarn):
    """nbgrader gives 0 to a cell that writes to stderr; torch.svd is deprecated but right."""

    def with_torch_svd(matrix, rank):
        U, S, V = torch.svd(matrix)
        return U[:, :rank], S[:rank], V[:, :rank].T

    u02_svd.truncate(with_torch_svd)
    assert not recwarn.list


def test_notebooks_show_the_message_without_a_traceback():
    lines = CheckFailed("one\ntwo")._render_traceback_()
    assert lines == ["one", "two"]


def test_the_grading_seed_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("LOWRANK_GRADING_SEED", "first")
    first = grading_seed()
    monkeypatch.setenv("LOWRANK_GRADING_SEED", "second")
    assert first != grading_seed()
    monkeypatch.setenv("LOWRANK_GRADING_SEED", "first")
    assert first == grading_seed()


# Unit 02. Right answers that are not written as the references are.


def truncate(matrix, rank):
    values, vectors = torch.linalg.eigh(matrix.T @ matrix)
    V = -vectors.flip(1)[:, :rank]  # the other sign
    S = values.flip(0)[:rank].clamp(min=0).sqrt()
    return matrix @ V / S, S, V.T


def relative_errors(singular_values):
    total = singular_values.square().sum()
    kept = torch.cat([torch.zeros(1), singular_values.square().cumsum(0)])
    return (1 - kept / total).clamp(min=0).sqrt()


def rank_for_error(errors, target):
    rank = 0
    while errors[rank] > target:
        rank += 1
    return rank


def largest_rank(m, n, share):
    return max(rank for rank in range(m + n) if rank * (m + n) <= share * m * n)


def compress_photo(photo, share):
    matrix = photo.flatten(1)
    U, S, Vh = truncate(matrix, largest_rank(*matrix.shape, share))
    return [U @ torch.diag(S).sqrt(), torch.diag(S).sqrt() @ Vh]  # a list is fine


RIGHT = {
    "truncate": truncate,
    "relative_errors": relative_errors,
    "rank_for_error": rank_for_error,
    "largest_rank": largest_rank,
    "compress_photo": compress_photo,
}


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("seed", [0, 1, 2**55])
def test_unit_02_accepts_another_right_answer(name, seed):
    assert "cases agree" in CHECKS[name](RIGHT[name], seed=seed)


def _factors(photo, share, root):
    matrix = photo.flatten(1)
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    rank = largest_rank(*matrix.shape, share)
    return U[:, :rank] * S[:rank] ** root, (S[:rank] ** (1 - root))[:, None] * Vh[:rank]


WRONG = {
    "V instead of Vh": ("truncate", lambda a, r: tuple(x[..., :r] for x in torch.svd(a)), "Vh"),
    "the full SVD": ("truncate", lambda a, r: torch.linalg.svd(a), "U has the wrong shape"),
    "a random basis": (
        "truncate",
        lambda a, r: (torch.eye(len(a))[:, :r], *truncate(a, r)[1:]),
        "U @ diag(S) @ Vh",
    ),
    "no square root": ("relative_errors", lambda s: relative_errors(s) ** 2, "the square of"),
    "energy": ("relative_errors", lambda s: 1 - relative_errors(s) ** 2, "energy that is kept"),
    "rank 0 forgotten": ("relative_errors", lambda s: relative_errors(s)[1:], "shape"),
    "not relative": ("relative_errors", lambda s: relative_errors(s) * s.norm(), "relative to"),
    "below, not at most": (
        "rank_for_error",
        lambda e, t: int((e < t).nonzero()[0]) if (e < t).any() else 0,
        "one rank too many",
    ),
    "rank 0 not allowed": ("rank_for_error", lambda e, t: rank_for_error(e, t) or 1, "expected 0"),
    "share of the rank": ("largest_rank", lambda m, n, s: int(s * min(m, n)), "full rank"),
    "rounded": ("largest_rank", lambda m, n, s: round(s * m * n / (m + n)), "more numbers"),
    "at least rank 1": ("largest_rank", lambda m, n, s: largest_rank(m, n, s) or 1, "expected 0"),
    "not balanced": ("compress_photo", lambda p, s: _factors(p, s, 1.0), "each column of left"),
    "a channel as matrix": (
        "compress_photo",
        lambda p, s: truncate(p[..., 0], 1)[::2],
        "left has the wrong shape",
    ),
    "colours laid out differently": (
        "compress_photo",
        lambda p, s: _factors(p.permute(0, 2, 1), s, 0.5),
        "left @ right",
    ),
}


@pytest.mark.parametrize("mistake", WRONG)
@pytest.mark.parametrize("seed", [0, 7])
def test_unit_02_refuses_a_usual_mistake_and_says_what_is_wrong(mistake, seed):
    name, function, words = WRONG[mistake]
    with pytest.raises(CheckFailed) as caught:
        CHECKS[name](function, seed=seed)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


@pytest.mark.parametrize("name", CHECKS)
def test_a_table_of_the_public_cases_fails_on_private_ones(name):
    """Public solutions mean public cases, so grading must draw others."""
    table = {}

    def key(arguments):
        return tuple(a.numpy().tobytes() if torch.is_tensor(a) else a for a in arguments)

    def learn(*arguments):
        table[key(arguments)] = RIGHT[name](*arguments)
        return table[key(arguments)]

    CHECKS[name](learn)
    CHECKS[name](lambda *arguments: table[key(arguments)])
    with pytest.raises(CheckFailed, match="stopped with KeyError"):
        CHECKS[name](lambda *arguments: table[key(arguments)], seed=1)
