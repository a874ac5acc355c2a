"""What brings the choice of tokens to vLLM's second runner, which has no CPU build: driven as that runner drives it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from clear_ray.config.engine import TransformersConfig
from clear_ray.engine import Grant
from clear_ray.engine.choice import choice_of
from clear_ray.engine.vllm_choice import TOLD, TokenChooser, told_of
from tests.unit.engine.test_vllm_choice import ASKED, ENDS, MOST_TOKENS, chooser, folder, generate, model
from tests.unit.engine.tiny import answer_for

pytestmark = pytest.mark.vllm

__all__ = ["chooser", "folder", "model"]
SLOTS, LONGEST = 16, 64


class Runner:
    """The tables of vLLM's second runner, and its passes over some of the slots; draws nothing by itself."""

    def __init__(self, model: Any, folder: Path) -> None:
        from clear_ray.engine.vllm_processors import ChoiceV2  # vLLM is in an environment of its own

        facts = {"model": str(folder), "vocabulary": model.config.vocab_size, "end_token_ids": ENDS}
        self.model = model
        self.ids = torch.zeros(SLOTS, LONGEST, dtype=torch.int32)
        self.prompt_tokens = np.zeros(SLOTS, dtype=np.int32)
        states: Any = SimpleNamespace(
            all_token_ids=SimpleNamespace(gpu=self.ids), prompt_len=SimpleNamespace(np=self.prompt_tokens)
        )
        self.processor = ChoiceV2(SimpleNamespace(additional_config={TOLD: facts}), states)
        self.length_of: dict[int, int] = {}

    def add(self, slot: int, prompt_tokens: int, ids: list[int], told: str | None) -> bool:
        from vllm import SamplingParams

        self.prompt_tokens[slot], self.length_of[slot] = prompt_tokens, len(ids)
        self.ids[slot, : len(ids)] = torch.tensor(ids, dtype=torch.int32)
        return self.processor.add_request(slot, SamplingParams(extra_args=told and {TOLD: told}))

    @torch.inference_mode()
    def step(self, slots: list[int], lengths: list[int]) -> None:
        """Have slots read up to some length; those that have then read all of theirs get a token more."""
        from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext

        read = [self.ids[slot, :length].long() for slot, length in zip(slots, lengths, strict=True)]
        logits_NV = torch.stack([self.model(ids[None]).logits[0, -1].float() for ids in read])
        places = torch.tensor(slots)
        context = LogitsContext(
            expanded_idx_mapping=places,
            idx_mapping=places,
            idx_mapping_np=np.array(slots, dtype=np.int32),
            expanded_local_pos=torch.zeros(len(slots)),
            input_ids=torch.stack([ids[-1] for ids in read]),
            pos=torch.tensor(lengths) - 1,
            seq_lens_upper_bound_np=np.array(lengths, dtype=np.int32),
        )
        chosen = self.processor.apply(logits_NV, context).argmax(dim=-1).tolist()
        for slot, length, token_id in zip(slots, lengths, chosen, strict=True):
            if length == self.length_of[slot]:
                self.ids[slot, length] = token_id
                self.length_of[slot] += 1


def test_the_second_runner_gets_the_tokens_of_the_first(model: Any, folder: Path, chooser: TokenChooser) -> None:
    ids = [11, 45, 7, 45, 300, 9]
    grants = [Grant(name, "", MOST_TOKENS, seed=5, sampling=sampling) for name, sampling in ASKED.items()]
    expected = generate(model, chooser, [answer_for(grant, ids) for grant in grants])
    runner = Runner(model, folder)
    told = [told_of(answer_for(grant, ids), choice_of(TransformersConfig(), grant.sampling), None) for grant in grants]
    running = {slot: expected[row] for slot, row in zip(range(SLOTS - 1, 0, -1), range(len(grants)), strict=False)}
    for (slot, _), one in zip(running.items(), told, strict=True):
        assert runner.add(slot, len(ids), ids, one)
    assert not runner.add(0, 2, [5, 6], None)
    runner.step([*running, 0], [3] * len(running) + [2])  # a part of the prompts
    for step in range(MOST_TOKENS):
        slots = sorted(slot for slot, wanted in running.items() if step < len(wanted))
        if step == 7:  # two had to make room, come back in each other's slot, and are read in two parts
            a, b = slots[-2:]
            kept = {slot: runner.ids[slot, : runner.length_of[slot]].tolist() for slot in (a, b)}
            said = {slot: told[list(running).index(slot)] for slot in (a, b)}
            for slot, other in ((a, b), (b, a)):
                runner.add(slot, len(ids), kept[other], said[other])
            running[a], running[b] = running[b], running[a]
            runner.step([a, b], [len(ids) + 2] * 2)
        runner.step(slots, [runner.length_of[slot] for slot in slots])
    for slot, wanted in running.items():
        assert runner.ids[slot, len(ids) : runner.length_of[slot]].tolist() == wanted
