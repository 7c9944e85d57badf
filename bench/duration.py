"""How long the command takes, by what the results say of themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TARGET_MINUTES, SHORT_TARGET_MINUTES = 40, 5  # of the issue: all cases, and all in their short form


def document(results: Mapping[str, Mapping[str, Any]], short: Mapping[str, Any] | None) -> str:
    """Return the Markdown of the block ``duration``.

    Args:
        results: The last result of each case, by its name. ``took`` has the ``seconds`` of the whole case and
            its ``rounds``; results of before have none.
        short: The last short form of all cases, likewise; None where it was not kept.
    """
    return f"{_describe_whole(results)} {_describe_short(short)}"


def _describe_whole(results: Mapping[str, Mapping[str, Any]]) -> str:
    took = {name: result["took"] for name, result in results.items() if result.get("took")}
    unknown = [f"`{name}`" for name in results if name not in took]
    each = ", ".join(f"`{name}` {each['seconds'] / 60:.1f}" for name, each in took.items())
    if not took:
        return (
            "The last results do not say how long they took; the target is less than "
            f"{TARGET_MINUTES} minutes in all."
        )
    rounds = sorted({each["rounds"] for each in took.values()})
    said = f"{rounds[0]}" if len(rounds) == 1 else f"{rounds[0]} to {rounds[-1]}"
    if unknown:
        return (
            f"In minutes, with {said} rounds, the last results took: {each}; not known of "
            f"{', '.join(unknown)}."
        )
    minutes = sum(each["seconds"] for each in took.values()) / 60
    return (
        f"The last results took {minutes:.1f} minutes in all, with {said} rounds; the target, less than "
        f"{TARGET_MINUTES}, is {_judge(minutes, TARGET_MINUTES)}. Each in minutes: {each}."
    )


def _describe_short(short: Mapping[str, Any] | None) -> str:
    if short is None:
        return (
            "How long all cases take with `--short` was not kept yet; the target is less than "
            f"{SHORT_TARGET_MINUTES} minutes."
        )
    minutes = short["took"]["seconds"] / 60
    return (
        f"With `--short`, all cases took {minutes:.1f} minutes; the target, less than "
        f"{SHORT_TARGET_MINUTES}, is {_judge(minutes, SHORT_TARGET_MINUTES)}."
    )


def _judge(minutes: float, target: float) -> str:
    return "kept" if minutes < target else "**missed**"
