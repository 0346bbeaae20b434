"""The benchmark's figures as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

GIB = 2**30


def bench_tables(found: Mapping[str, Any]) -> Iterator[Table]:
    """Engine, limits and training, as far as they were measured."""
    yield _engine(found)
    yield _limits(found["roofline"], found["workloads"]["search"])
    if "training" in found:
        yield _training(found["training"])


def _engine(found: Mapping[str, Any]) -> Table:
    weights = "4-bit NF4" if found["quantized"] else found["dtype"]
    where = f"{found['device']}, {found['threads']} threads, {weights}"
    table = Table(title=f"{found['model']} on {where}, torch {found['torch']}")
    for column in ("workload", "requests", "seconds", "finished tokens/s", "prompt tokens/s"):
        table.add_column(column, justify="left" if column == "workload" else "right")
    for column in ("decode tokens/s", "busy", "outside model", "peak memory"):
        table.add_column(column, justify="right")
    for name, part in found["workloads"].items():
        outside = part["outside_model_share"]
        table.add_row(
            name,
            str(part["requests"]),
            f"{part['seconds']:.1f}",
            f"{part['finished_tokens_per_s']:.1f}",
            f"{part['prompt_tokens_per_s']:.1f}",
            f"{part['decode_tokens_per_s']:.1f}",
            f"{100 * part['occupancy']:.0f} % of {part['slots']}",
            "-" if outside is None else f"{100 * outside:.1f} %",
            f"{part['peak_memory_bytes'] / GIB:.2f} GiB",
        )
    names = {"naive": "search, one at a time", "static": "search, static batches"}
    for name, part in found.get("baselines", {}).items():
        ratio = f"ours is {found['ratios'][name]:.1f} x"
        rate = f"{part['finished_tokens_per_s']:.1f}"
        row = (names[name], str(part["requests"]), f"{part['seconds']:.1f}", rate, ratio)
        table.add_row(*row, "", "", "", "")
    return table


def _limits(roof: Mapping[str, Any], search: Mapping[str, Any]) -> Table:
    table = Table(title="A decoding step of the search, against the machine's limits")
    for column in ("", "a step needs", "the machine gives", "share reached"):
        table.add_column(column, justify="right")
    least = search["seconds_per_step"]
    operations = roof["operations_per_step"] / roof["operations_per_s"] / least
    table.add_row(
        "bytes",
        f"{roof['bytes_per_step'] / 1e9:.2f} GB",
        f"{roof['bytes_per_s'] / 1e9:.1f} GB/s",
        f"{100 * roof['bytes_share']:.0f} %",
    )
    table.add_row(
        "operations",
        f"{roof['operations_per_step'] / 1e9:.1f} G",
        f"{roof['operations_per_s'] / 1e9:.0f} G/s",
        f"{100 * operations:.0f} %",
    )
    return table


def _training(training: Mapping[str, Any]) -> Table:
    table = Table(title="Training")
    for column in ("", "steps", "tokens", "seconds", "tokens/s", "peak memory"):
        table.add_column(column, justify="right")
    for name, part in training.items():
        table.add_row(
            name.upper(),
            str(part["steps"]),
            str(part["tokens"]),
            f"{part['seconds']:.1f}",
            f"{part['tokens_per_s']:.1f}",
            f"{part['peak_memory_bytes'] / GIB:.2f} GiB",
        )
    return table
