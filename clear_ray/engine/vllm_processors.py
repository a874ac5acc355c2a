"""The choice of tokens as processors of logits, one for each of vLLM's runners, which show a batch in different ways.

vLLM makes them in its workers by name. Rows that tell nothing are left as they are.

Shapes: N rows of a pass, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext, LogitsProcRequestState
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as LogitsProcessorV2

from clear_ray.engine.vllm_choice import TOLD, ModelFacts, RequestRow, TokenChooser


class ChoiceV1(LogitsProcessor):  # type: ignore[misc]
    """For the first runner: a request's tokens are in a list that the runner keeps up to date.

    Args:
        vllm_config: The engine's.
        device: Not looked at: logits say where they are.
        is_pin_memory: Not looked at.
    """

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        del device, is_pin_memory
        self._chooser = _chooser(vllm_config)
        self._rows: dict[int, RequestRow] = {}

    def is_argmax_invariant(self) -> bool:
        """Whether the likeliest token stays so."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Take note of which requests are in the batch, and where."""
        process_dict_updates(self._rows, batch_update, self._begin)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Leave one token to each row that asks."""
        if rows := [(place, row) for place, row in self._rows.items() if place < len(logits)]:
            self._chooser.force(logits, rows)
        return logits

    def _begin(self, params: SamplingParams, prompt_ids: list[int] | None, generated: list[int]) -> RequestRow | None:
        told = _told(params)
        return None if told is None else self._chooser.begin(told, prompt_ids or [], generated)


class ChoiceV2(LogitsProcessorV2):  # type: ignore[misc]
    """For the second runner: requests keep their slots, and their tokens are on the device.

    Args:
        vllm_config: The engine's.
        req_states: The runner's tables of requests.
    """

    def __init__(self, vllm_config: Any, req_states: LogitsProcRequestState) -> None:
        self._chooser = _chooser(vllm_config)
        self._states = req_states
        self._told: dict[int, str] = {}
        self._rows: dict[int, RequestRow] = {}

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Take note of a request that enters a slot; return whether it asks for anything."""
        self._rows.pop(req_idx, None)
        self._told.pop(req_idx, None)
        if (told := _told(sampling_params)) is None:
            return False
        self._told[req_idx] = told
        return True

    def apply(self, logits: torch.Tensor, ctx: LogitsContext) -> torch.Tensor:
        """Leave one token to each row that asks and has read its prompt."""
        slots = ctx.idx_mapping_np.tolist()
        if not any(slot in self._told for slot in slots):
            return logits
        newest, lengths = ctx.input_ids.tolist(), ctx.seq_lens_upper_bound_np.tolist()
        rows = [
            (place, row)
            for place, slot in enumerate(slots)
            if slot in self._told and (row := self._row(slot, lengths[place], newest[place])) is not None
        ]
        if rows:
            self._chooser.force(logits, rows)
        return logits

    def _row(self, slot: int, length: int, newest: int) -> RequestRow | None:
        """Return a slot's request, up to date with its `length` tokens; None while it reads its prompt."""
        prompt_tokens = int(self._states.prompt_len.np[slot])
        if length < prompt_tokens:
            return None
        row = self._rows.get(slot)
        if row is None:
            ids = self._states.all_token_ids.gpu[slot, :length].tolist()
            row = self._chooser.begin(self._told[slot], ids[:prompt_tokens], ids[prompt_tokens:])
            self._rows[slot] = row
            return row
        generated = row.answer.generated
        missing = length - prompt_tokens - len(generated)
        if missing == 1:
            generated.append(newest)
        elif missing > 1:
            generated += self._states.all_token_ids.gpu[slot, length - missing : length].tolist()
        return row


def _chooser(vllm_config: Any) -> TokenChooser:
    facts = vllm_config.additional_config[TOLD]
    return TokenChooser(ModelFacts(facts["model"], facts["vocabulary"], tuple(facts["end_token_ids"])))


def _told(params: SamplingParams) -> str | None:
    told: str | None = (params.extra_args or {}).get(TOLD)
    return told
