"""How bad input is refused: with an error that names the argument and what it got."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from conftest import gaussian

from consistency_models.checks import (
    as_tensor,
    check_ascending,
    check_descending,
    check_floating,
    check_integer,
    check_number,
    check_samples,
)

nan, inf = float("nan"), float("inf")


# Keeps its promises

def test_a_number_of_any_kind_becomes_a_float():
    for value in (2, 2.0, Fraction(4, 2), np.float32(2), torch.tensor(2), torch.tensor([2.])):
        number = check_number(value, "c")
        assert type(number) is float and number == 2


def test_the_bounds_of_a_number_are_allowed_unless_it_must_lie_above():
    assert check_number(0, "c", 0, 1) == 0 and check_number(1, "c", 0, 1) == 1
    assert check_number(1, "c", 0, 1, above=True) == 1
    with pytest.raises(ValueError, match="^c must be finite, above 0 and at most 1, got 0.0"):
        check_number(0, "c", 0, 1, above=True)


def test_a_whole_number_of_any_kind_becomes_an_int():
    for value in (3, 3.0, np.int64(3), torch.tensor(3)):
        number = check_integer(value, "n", 3)
        assert type(number) is int and number == 3


def test_ascending_levels_of_any_kind_become_float64_unchanged():
    for levels in ([1, 2, 4], (1., 2., 4.), torch.tensor([1., 2., 4.], dtype=torch.bfloat16)):
        found = check_ascending(levels)
        assert found.dtype == torch.float64 and found.tolist() == [1, 2, 4]


def test_descending_levels_of_any_kind_become_floats():
    for levels in ([80, 1], torch.tensor([80., 1.]), (s for s in (80., 1.)), np.array([80, 1])):
        found = check_descending(levels)
        assert found == [80., 1.] and all(type(s) is float for s in found)


def test_a_level_that_half_precision_rounded_below_sigma_min_counts_as_sigma_min():
    rounded = torch.tensor([1., 0.7], dtype=torch.bfloat16)
    assert rounded[1].item() < 0.7 and check_descending(rounded, 0.7) == [1., 0.7]
    with pytest.raises(ValueError, match="below sigma_min = 0.7, got 0.69"):
        check_descending([1., 0.69], 0.7)


def test_what_fits_comes_through_as_it_is():
    x = gaussian(3, 2)
    assert as_tensor(x, "x") is x and as_tensor([1, 2.5], "x").tolist() == [1, 2.5]
    check_floating(torch.tensor(1.), "x")
    check_samples(x[:, 0].bfloat16())


# Refuses

def test_what_is_no_number_within_its_bounds_is_refused():
    for value, error, match in (
            ("1", TypeError, "a number, got str"), (None, TypeError, "NoneType"),
            (True, TypeError, "bool"),
            (1j, TypeError, "complex"), ([1.], TypeError, "list"),
            (torch.ones(2), TypeError, r"one real number.*\(2,\)"),
            (torch.tensor(1j), TypeError, "complex"), (nan, ValueError, "finite.*got nan"),
            (inf, ValueError, "got inf"),
            (-0.1, ValueError, "at least 0 and at most 1, got -0.1"), (1.1, ValueError, "got 1.1")):
        with pytest.raises(error, match="^c must be .*" + match): check_number(value, "c", 0, 1)
    for value in (inf, -inf, torch.tensor(nan)):
        with pytest.raises(ValueError, match="finite"): check_number(value, "c")


def test_what_is_no_whole_number_from_its_bound_upwards_is_refused():
    for value in (2.5, True, "3", None, nan, inf, torch.tensor(2.5), [3]):
        with pytest.raises(TypeError, match="^n must be a whole number, got"):
            check_integer(value, "n", 2)
    with pytest.raises(ValueError, match="^n must be at least 2, got 1"): check_integer(1, "n", 2)


def test_levels_that_do_not_ascend_are_refused():
    for levels in ([80., 1.], [0., 1.], [-1., 1.], [1., 1.], [1., nan], [1., inf]):
        with pytest.raises(ValueError, match="^sigmas must be positive and ascending"):
            check_ascending(levels)
    for levels in ([1.], [[1., 2.]], 1.):
        with pytest.raises(ValueError, match="^sigmas must be one-dimensional with at least two"):
            check_ascending(levels)


def test_levels_that_do_not_descend_are_refused():
    for levels, error, match in (
            ([1., 80.], ValueError, r"descend.*\.flip\(0\)"), ([1., 1.], ValueError, "descend"),
            ([], ValueError, "at least one"),
            ([1., 0.0019], ValueError, "sigma_min = 0.002, got 0.0019"),
            ([80., nan], ValueError, "each of sigmas"), ([inf, 1.], ValueError, "each of sigmas"),
            (None, TypeError, "list of numbers"), (80., TypeError, "list of numbers"),
            ("ab", TypeError, "list of numbers")):
        with pytest.raises(error, match=match): check_descending(levels)


def test_what_is_no_batch_of_samples_is_refused():
    for x, error, match in (
            ([[1., 2.]], TypeError, "a torch tensor, got list"), (None, TypeError, "got NoneType"),
            (torch.ones(2, 3, dtype=torch.long), TypeError, r"got torch.int64.*\.float\(\)"),
            (torch.ones(2, dtype=torch.complex64), TypeError, "complex"),
            (torch.tensor(1.), ValueError, r"\(batch, ...\).*got \(\)"),
            (torch.zeros(0, 3), ValueError, r"got \(0, 3\)")):
        with pytest.raises(error, match="^y must .*" + match): check_samples(x, "y")


def test_what_cannot_be_a_tensor_is_refused_by_name():
    for value in ("a", None, [[1.], [1., 2.]], object()):
        kind = type(value).__name__
        with pytest.raises(TypeError, match=f"mask must be a tensor or numbers, got {kind}"):
            as_tensor(value, "mask")
    with pytest.raises(TypeError, match="mask must be real"): as_tensor(1j, "mask")
