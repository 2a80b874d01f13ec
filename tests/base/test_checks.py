"""Argument errors name the contract, the value and the remedy."""

import math

import pytest
import torch

from telecine.base.checks import (
    check_choice,
    check_count,
    check_fraction,
    check_positive,
    describe,
    nearest,
    suggestion,
)

NOT_NUMBERS = (True, None, "1", 1j)
INF = math.inf
NAN = math.nan


def test_describe():
    assert describe(torch.zeros(2, 3)) == "a torch.float32 tensor of shape (2, 3) on cpu"
    assert describe("x") == "'x' (str)"
    assert describe(None) == "None (NoneType)"
    assert describe("x" * 78) == f"'{'x' * 78}' (str)"
    assert describe("x" * 79) == f"'{'x' * 76}... (str)"


def test_the_nearest_word_is_suggested():
    assert nearest("hing", ["hinge", "vanilla"]) == "Did you mean `hinge`?"
    assert nearest("x", ["hinge", "vanilla"]) == ""
    assert nearest("--resume_from_checkpoint", ["--steps"]).startswith("The same command resumes")
    assert suggestion("hing", ["hinge", "vanilla"]) == "Did you mean `hinge`?"


@pytest.mark.parametrize(
    ("word", "similar"),
    [
        ("--lr", "--optimizer.lr"),
        ("--learning_rate", "--optimizer.lr"),
        ("--learning-rate", "--optimizer.lr"),
        ("--optimizer.learning_rate", "--optimizer.lr"),
        ("--workers", "--clips.num_workers"),
        ("--epochs", "--steps"),
        ("--max_train_steps", "--steps"),
        ("--checkpointing_steps", "--save_every"),
        ("--checkpoint-every", "--save_every"),
        ("--resume", None),
    ],
)
def test_a_setting_is_found_by_a_part_of_its_name_or_by_that_of_others(word, similar):
    words = [
        "--optimizer.disc_lr",
        "--optimizer.lr",
        "--optimizer.name",
        "--clips.num_workers",
        "--save_every",
        "--seed",
        "--steps",
        "--change_data",
    ]
    assert nearest(word, words) == (f"Did you mean `{similar}`?" if similar else "")
    assert suggestion(None, {"hinge": 1, "vanilla": 2}) == "Use one of: hinge, vanilla."


@pytest.mark.parametrize(
    ("check", "accepted", "rejected", "contract"),
    [
        (check_count, {1: 1, 16: 16}, (0, -1, 1.0, INF), "a positive int"),
        (check_positive, {1: 1.0, 1e-8: 1e-8}, (0, -1.0, INF, NAN), "a finite number above 0"),
        (check_fraction, {0: 0.0, 0.999: 0.999}, (-0.1, 1, NAN), "a number from 0 to below 1"),
    ],
)
def test_numbers(check, accepted, rejected, contract):
    for value, returned in accepted.items():
        assert check("x", value) == returned
        assert type(check("x", value)) is type(returned)
    for value in (*rejected, *NOT_NUMBERS):
        with pytest.raises(
            ValueError, match=rf"^`x` must be {contract}, but got .*\)\. (Use|Leave) "
        ) as caught:
            check("x", value)
        assert describe(value) in str(caught.value)
        with pytest.raises(ValueError, match=r"\. Change it\.$"):
            check("x", value, remedy="Change it.")


def test_counts_with_another_minimum():
    assert check_count("x", 0, at_least=0) == 0
    with pytest.raises(
        ValueError, match=r"^`x` must be an int of at least 2, but got 1 \(int\). Use 2 or more.$"
    ):
        check_count("x", 1, at_least=2)


def test_choices():
    assert check_choice("mode", "sum", ("mean", "sum")) == "sum"
    with pytest.raises(
        ValueError,
        match=r"^`mode` must be one of 'mean', 'sum', but got 'sums'.*Did you mean `sum`",
    ):
        check_choice("mode", "sums", ("mean", "sum"))
    with pytest.raises(ValueError, match=r"but got None \(NoneType\). Use one of: mean, sum.$"):
        check_choice("mode", None, ("mean", "sum"))
    with pytest.raises(ValueError, match=r"but got 3 \(int\). Change it.$"):
        check_choice("mode", 3, ("mean", "sum"), remedy="Change it.")
