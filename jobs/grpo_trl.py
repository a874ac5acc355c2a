"""GRPO with TRL, whose groups of rollouts are bought under one budget of tokens.

    python jobs/grpo_trl.py --budget 8000 --queries 24

The trainer, its engine and its loss are TRL's own. Two things are ours: `PricedTrainer` samples the prompts that
`RolloutGroups` asks for in place of a shuffled epoch, and the reward function tells it what came back. TRL's groups have
one size, so a prompt gets a whole group or none, and comes again only while its outcome is still in doubt. Prompts and
verifier are reasoning-gym's, the model is the embedded one. The learning rate is 0 unless another is given: the rollout
loop is what is shown here. Needs `pip install trl`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from datasets import Dataset
from torch.utils.data import Sampler
from trl import GRPOConfig, GRPOTrainer

from clear_ray import RolloutGroups
from clear_ray.engine.smollm2 import EMBEDDED_MODEL, resolve_model
from clear_ray.tasks.scorers import load_scorer
from clear_ray.tasks.source import ReasoningGymSource, generate_queries

_TASKS = {
    "chain_sum": {"min_terms": 2, "max_terms": 3, "max_digits": 1},
    "basic_arithmetic": {},
    "gcd": {},
    "products": {},
}


class PricedSampler(Sampler[int]):
    """The prompts that are asked for, each repeated by its group's size, until the budget buys no further group."""

    def __init__(self, groups: RolloutGroups, size: int) -> None:
        self._groups, self._size = groups, size

    def __iter__(self) -> Iterator[int]:
        while len(asked := self._groups.ask(self._size)):
            yield from np.repeat(asked.prompt_M, asked.rollouts_M).tolist()

    def __len__(self) -> int:
        return len(self._groups.tokens_N) * self._size


class PricedTrainer(GRPOTrainer):  # type: ignore[misc]
    """TRL's trainer; its batch is one group."""

    def __init__(self, groups: RolloutGroups, **arguments: Any) -> None:
        self._groups = groups
        super().__init__(**arguments)

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler[int]:
        return PricedSampler(self._groups, self.args.num_generations)


def settings_of(options: argparse.Namespace, folder: str) -> GRPOConfig:
    """Return TRL's settings: its batch is one group, and the budget ends the training."""
    return GRPOConfig(
        output_dir=folder,
        per_device_train_batch_size=options.group,
        num_generations=options.group,
        max_completion_length=options.max_tokens,
        learning_rate=options.learning_rate,
        max_steps=10**6,  # the budget ends the training
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        bf16=False,
        disable_tqdm=True,
    )


def main() -> None:
    """Sample and verify groups until the budget buys no further one, and print the account."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--budget", type=int, default=8_000, help="tokens of all rollouts")
    parser.add_argument("--queries", type=int, default=24)
    parser.add_argument("--group", type=int, default=4, help="rollouts of a group")
    parser.add_argument("--max-tokens", type=int, default=48, help="ceiling of a rollout")
    parser.add_argument("--learning-rate", type=float, default=0.0)
    options = parser.parse_args()

    each = -(-options.queries // len(_TASKS))
    sources = [ReasoningGymSource(task=task, params=params, count=each, examples=2) for task, params in _TASKS.items()]
    rows = list(generate_queries(sources))[: options.queries]  # with worked examples, each is a conversation
    groups = RolloutGroups(
        np.full(len(rows), options.max_tokens / 2),
        ceiling_N=np.full(len(rows), options.max_tokens),
        budget_tokens=options.budget,
        rollouts=options.group,
    )
    scorer = load_scorer("reasoning_gym")

    def verified(completions: list[Any], completion_ids: list[list[int]], row: list[int], **_: Any) -> list[float]:
        """Score a group, and tell what it was."""
        texts = [completion[0]["content"] for completion in completions]
        rewards = [
            float(scorer(text, rows[k]["gold"], rows[k]["metadata"]) or 0.0) for text, k in zip(texts, row, strict=True)
        ]
        groups.tell(row, [reward >= 1.0 for reward in rewards], [len(ids) for ids in completion_ids])
        return rewards

    dataset = Dataset.from_list([{"prompt": json.loads(row["messages"]), "row": k} for k, row in enumerate(rows)])
    with tempfile.TemporaryDirectory() as folder:
        PricedTrainer(
            groups,
            model=str(resolve_model(EMBEDDED_MODEL)),
            reward_funcs=verified,
            train_dataset=dataset,
            args=settings_of(options, folder),
        ).train()
    done_N = groups.right_N + groups.wrong_N
    mixed = int(((groups.right_N > 0) & (groups.wrong_N > 0)).sum())
    print(
        json.dumps(
            {
                "prompts": len(rows),
                "groups": int((done_N > 0).sum()),
                "mixed": mixed,
                "rollouts": int(done_N.sum()),
                "budget_tokens": groups.budget_tokens,
                "spent_tokens": groups.spent_tokens,
            }
        )
    )


if __name__ == "__main__":
    main()
