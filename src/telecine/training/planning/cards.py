"""What bounds an update on a card: launches of kernels, arithmetic, or memory. Estimates from peak rates."""

from __future__ import annotations

from typing import NamedTuple

from rich.table import Table

from telecine.training.planning.update import UpdatePlan

# Python and the driver, for each operator: 5 to 10 microseconds.
LAUNCH_SECONDS = 7e-6


class _Card(NamedTuple):
    bf16: float  # dense matrix products, FLOP/s
    tf32: float
    bytes_per_second: float


# Dense peak rates of NVIDIA's data sheets (H100 SXM, A100 SXM 80 GB, L40S) and of its Ada whitepaper (RTX 4090).
CARDS = {
    "H100": _Card(989e12, 494e12, 3.35e12),
    "A100": _Card(312e12, 156e12, 2.04e12),
    "L40S": _Card(362e12, 183e12, 0.864e12),
    "RTX 4090": _Card(165e12, 82.6e12, 1.01e12),
}


def seconds_on(card: str, plan: UpdatePlan, *, is_half: bool) -> dict[str, float]:
    """Return the least seconds of an update: for launches, arithmetic and memory alone, and of all with overlap."""
    rates = CARDS[card]
    peak = rates.bf16 if is_half else rates.tf32
    arithmetic = {part: flops / peak for part, flops in plan.flops.items()}
    memory = {part: moved / rates.bytes_per_second for part, moved in plan.moved.items()}
    launches = sum(plan.operators.values()) * LAUNCH_SECONDS
    kernels = sum(max(arithmetic.get(part, 0.0), memory.get(part, 0.0)) for part in arithmetic | memory)
    return {
        "launches": launches,
        "arithmetic": sum(arithmetic.values()),
        "memory": sum(memory.values()),
        "update": max(launches, kernels),
    }


def table_of_cards(plan: UpdatePlan, *, is_half: bool) -> Table:
    """Return a table of the least milliseconds of an update on each card, and of what bounds it."""
    title = f"{sum(plan.operators.values())} operators; least milliseconds of an update, an estimate from peak rates"
    table = Table("card", "launches", "arithmetic", "memory", "update", "bound by", title=title)
    for card in CARDS:
        seconds = seconds_on(card, plan, is_half=is_half)
        bounds = {name: seconds[name] for name in ("launches", "arithmetic", "memory")}
        table.add_row(card, *(f"{1000 * each:.3g}" for each in seconds.values()), max(bounds, key=bounds.__getitem__))
    return table
