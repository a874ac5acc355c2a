"""Which prompts to read together, so that few positions are computed twice or for nothing.

A pass over several prompts pays for the longest of them in every row, and reads what they all begin with only once. So
prompts of like length belong together, and so do prompts with the same opening: chat templates, system prompts and
worked examples often make up most of a prompt.

Shapes: N prompts.
"""

from __future__ import annotations

from collections.abc import Sequence

PREFILL_TOKENS = {"cpu": 512, "cuda": 8192}
"""Positions of one pass."""
PASS_COST = {"cpu": 64, "cuda": 2048}
"""What a pass costs beside its positions, in positions: each one reads all weights, and a small one is all overhead.

On CUDA the kernels of one pass take as long to be launched as some thousand positions of a small model to be computed."""


def common_prefix_tokens(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two sequences have in common at their beginnings."""
    shared = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        shared += 1
    return shared


def shared_tokens(ids_N: Sequence[list[int]]) -> int:
    """Return how many tokens all sequences begin with alike."""
    # The first and the last in order differ the soonest.
    return common_prefix_tokens(min(ids_N), max(ids_N))


def reading_groups(ids_N: Sequence[list[int]], *, pass_tokens: int, pass_cost: int) -> list[list[int]]:
    """Split row numbers into the groups that are to be read together.

    Groups in order of length and groups in order of content are both tried; the cheaper split is taken.

    Args:
        ids_N: Token ids of each prompt.
        pass_tokens: Positions of one pass, shared beginning apart; a longer prompt is a group of its own.
        pass_cost: What another pass costs, in positions; one of `PASS_COST`.
    """
    by_length = sorted(range(len(ids_N)), key=lambda row: len(ids_N[row]))
    by_content = sorted(range(len(ids_N)), key=lambda row: ids_N[row])
    splits = [_split(ids_N, order, pass_tokens, pass_cost) for order in (by_length, by_content)]
    return min(splits, key=lambda groups: sum(pass_cost + _positions(ids_N, group) for group in groups))


def _split(ids_N: Sequence[list[int]], order: list[int], pass_tokens: int, pass_cost: int) -> list[list[int]]:
    """Cut an order of rows where going on would cost more than starting anew."""
    groups: list[list[int]] = []
    shared = longest = 0
    for row in order:
        tokens = len(ids_N[row])
        if groups:
            rows = len(groups[-1])
            new_shared = min(shared, common_prefix_tokens(ids_N[groups[-1][0]], ids_N[row]))
            new_longest = max(longest, tokens)
            cost, new_cost = shared + rows * (longest - shared), new_shared + (rows + 1) * (new_longest - new_shared)
            if (rows + 1) * (new_longest - new_shared) <= pass_tokens and new_cost <= cost + tokens + pass_cost:
                groups[-1].append(row)
                shared, longest = new_shared, new_longest
                continue
        groups.append([row])
        shared = longest = tokens
    return groups


def _positions(ids_N: Sequence[list[int]], group: list[int]) -> int:
    rows = [ids_N[row] for row in group]
    shared = shared_tokens(rows)
    return shared + len(rows) * (max(map(len, rows)) - shared)
