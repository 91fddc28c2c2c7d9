"""From measurements to a verdict, by rules that do not know the claim.

A :class:`Comparison` says for one setting (a library, a size, a lag) whether what is claimed was seen, "yes", or its opposite,
"no", or no difference, "even". What counts as a difference:

- of counts (parameters, bytes): more than 2 %. Hidden sizes are whole numbers, so that parameters cannot be made quite equal.
- of times: the p20 to p80 of the rounds' ratios lies on one side of 1, and the median at least 2 % from it.
- of what was learned: the seeds' means differ with p < 5 %, two-sided, by an exact permutation test.

A claim **holds** if all its comparisons say yes, **does not hold** if none does, and else **depends**: on the setting that tells
the outcomes apart best.
"""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

YES, NO, EVEN = "yes", "no", "even"
HOLDS, FAILS, DEPENDS = "holds", "does not hold", "depends"
#: Relative differences of counts and times below this are none.
LEAST = 0.02
#: Of the exact permutation test.
SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Comparison:
    """One setting's evidence; ``effect`` is what the claim's row summarises, in its unit."""

    setting: dict[str, str]
    outcome: str
    effect: float


def of_counts(setting: dict[str, str], claimed_less: float, claimed_more: float) -> Comparison:
    """The claim is that the first count is below the second; the effect is their ratio."""
    ratio = claimed_less / claimed_more
    return Comparison(setting, YES if ratio < 1 - LEAST else NO if ratio > 1 + LEAST else EVEN, ratio)


def of_times(setting: dict[str, str], timing: dict[str, Any]) -> Comparison:
    """The claim is that ``timing``'s subject is faster than its baseline; the effect is its time as a share of the baseline's.

    ``timing`` has the fields of :class:`benchmarks.timing.Timing`.
    """
    low, mid, high = timing["speedup_p20"], timing["speedup"], timing["speedup_p80"]
    faster, slower = low > 1 and mid > 1 + LEAST, high < 1 and mid < 1 - LEAST
    return Comparison(setting, YES if faster else NO if slower else EVEN, 1 / mid)


def of_samples(setting: dict[str, str], claimed_less: Sequence[float], claimed_more: Sequence[float]) -> Comparison:
    """The claim is that the first mean is below the second; the effect is the second's less the first's."""
    difference = statistics.fmean(claimed_more) - statistics.fmean(claimed_less)
    if permutation_p(claimed_less, claimed_more) >= SIGNIFICANCE:
        return Comparison(setting, EVEN, difference)
    return Comparison(setting, YES if difference > 0 else NO, difference)


def permutation_p(first: Sequence[float], second: Sequence[float]) -> float:
    """The share of all ways to deal both samples' values to two groups of these sizes whose means differ at least as much."""
    values, n = [*first, *second], len(first)
    total = sum(values)
    # |mean of a group - mean of the rest| grows with |sum of the group - its expectation|.
    expected = total * n / len(values)
    observed = abs(sum(first) - expected)
    sums = [abs(sum(group) - expected) for group in itertools.combinations(values, n)]
    return sum(value >= observed - 1e-12 * max(1.0, abs(total)) for value in sums) / len(sums)


@dataclass(frozen=True)
class Verdict:
    """``kind`` is :data:`HOLDS`, :data:`FAILS` or :data:`DEPENDS`; ``words`` say more, possibly nothing."""

    kind: str
    words: str


def judge(comparisons: Sequence[Comparison]) -> Verdict:
    if not comparisons:
        raise ValueError("a verdict needs at least one comparison")
    tally = Counter(comparison.outcome for comparison in comparisons)
    if tally[YES] == len(comparisons):
        return Verdict(HOLDS, "")
    if not tally[YES]:
        if tally[NO] == len(comparisons):
            return Verdict(FAILS, "the opposite does")
        if not tally[NO]:
            return Verdict(FAILS, "no difference beyond the spread")
        return Verdict(FAILS, f"the opposite in {tally[NO]}, no difference in {tally[EVEN]} of {len(comparisons)}")
    return Verdict(DEPENDS, _dependence(comparisons))


def _dependence(comparisons: Sequence[Comparison]) -> str:
    """On which setting the outcome depends, and how.

    One setting that explains all outcomes, or else two that do; or else the one that explains most. Two must leave groups of two
    comparisons on average: groups of one explain anything.
    """
    varied = [key for key in comparisons[0].setting if len({comparison.setting[key] for comparison in comparisons}) > 1]
    if not varied:
        return "on chance: " + _outcomes(comparisons)
    choices = [(key,) for key in varied]
    choices += [pair for pair in itertools.combinations(varied, 2) if 2 * len(_groups(comparisons, pair)) <= len(comparisons)]
    for keys in choices:
        if _explained(comparisons, keys) == len(comparisons):
            return f"on the {' and the '.join(keys)} ({_by_group(comparisons, keys)})"
    most = max(choices[: len(varied)], key=lambda keys: _explained(comparisons, keys))
    return f"mostly on the {most[0]} ({_by_group(comparisons, most)})"


def _explained(comparisons: Sequence[Comparison], keys: Sequence[str]) -> int:
    """How many comparisons have the outcome that is the most frequent among those of the same settings."""
    return sum(max(Counter(c.outcome for c in group).values()) for group in _groups(comparisons, keys).values())


def _by_group(comparisons: Sequence[Comparison], keys: Sequence[str]) -> str:
    alike: dict[str, list[str]] = {}
    for values, group in _groups(comparisons, keys).items():
        alike.setdefault(_outcomes(group), []).append(" with ".join(values))
    return "; ".join(f"{', '.join(groups)}: {outcomes}" for outcomes, groups in alike.items())


def _groups(comparisons: Sequence[Comparison], keys: Sequence[str]) -> dict[tuple[str, ...], list[Comparison]]:
    groups: dict[tuple[str, ...], list[Comparison]] = {}
    for comparison in comparisons:
        groups.setdefault(tuple(comparison.setting[key] for key in keys), []).append(comparison)
    return groups


def _outcomes(comparisons: Sequence[Comparison]) -> str:
    words = {YES: "as claimed", NO: "the opposite", EVEN: "no difference"}
    tally = Counter(comparison.outcome for comparison in comparisons)
    if len(tally) == 1:
        return words[comparisons[0].outcome]
    return ", ".join(f"{words[outcome]} in {tally[outcome]}" for outcome in (YES, NO, EVEN) if tally[outcome])
