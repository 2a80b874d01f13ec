"""How terms are added up and named in the log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from telecine.shapes import Scalar, argument_error

Log = dict[str, Tensor]


def total(terms: Iterable[Scalar], *, like: Tensor) -> Scalar:
    """Return the sum of the terms, a 0 on `like`'s device if there are none."""
    terms = list(terms)
    return torch.stack(terms).sum() if terms else torch.zeros((), device=like.device)


def mean(terms: Iterable[Scalar], *, like: Tensor) -> Scalar:
    """Return the mean of the terms, a 0 on `like`'s device if there are none."""
    terms = list(terms)
    return total(terms, like=like) / max(len(terms), 1)


def weighted(*terms: tuple[float, Scalar | None]) -> Scalar | float:
    """Return the sum of weight times term, without those that are None or of weight 0, whose NaN would count."""
    return sum((weight * term for weight, term in terms if term is not None and weight != 0), 0.0)


def only_if(computed: object, **terms: Tensor) -> Log:
    """Return the terms to log where they were computed, and nothing where they were not."""
    return terms if computed else {}


def scheduled(names: Iterable[str], weights: Mapping[str, float], *, like: Tensor) -> Log:
    """Return the present weight of each term that has a schedule, by the argument's name."""
    return {name: torch.full((), weights[name], device=like.device) for name in names}


def with_aux(log: Log, aux: Log) -> Log:
    """Return the log together with the named auxiliary losses.

    Raises:
        ValueError: If one of them has the name of a term, which would hide it.
    """
    for name in aux:
        if name in log:
            remedy = f"Rename it, for instance to 'quantizer_{name}'."
            raise argument_error("aux_losses", "named unlike the objective's own terms", repr(name), remedy)
    return {**{name: value for name, value in aux.items() if name}, **log}


def each(name: str, terms: Log) -> Log:
    """Return `{name}_{critic}` for every critic, where there are several; the sum alone says it for one."""
    return {f"{name}_{critic}": term for critic, term in terms.items()} if len(terms) > 1 else {}


def by_critic(terms: Mapping[str, Log], name: str) -> Log:
    """Return one term of every critic that has it, by the critic's name."""
    return {critic: log[name] for critic, log in terms.items() if name in log}


def named(log: Log, split: str) -> Log:
    """Return the log as callers get it: copies in float32, detached, each name with the split before it."""
    return {f"{split}/{name}": value.detach().to(torch.float32, copy=True) for name, value in log.items()}
