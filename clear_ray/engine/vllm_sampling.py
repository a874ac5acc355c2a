"""What a row asks of its sampling, in vLLM's words.

A request goes on behind the tokens of earlier grants, which to vLLM are a prompt. So what counts the answer's own tokens is
told of them: the least length is what is left of it, and their penalties of presence and frequency are given as biases.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from clear_ray.config.sampling import Structure
from clear_ray.engine.batch import Answer, ReadToken
from clear_ray.engine.choice import TokenChoice


def keeps_to_structure(answer: Answer) -> bool:
    """Return whether an answer keeps to a structure."""
    return answer.grant.sampling is not None and answer.grant.sampling.structure is not None


def asked_of_vllm(
    answer: Answer, choice: TokenChoice, end_token_ids: tuple[int, ...], *, max_tokens: int
) -> dict[str, Any]:
    """Return arguments of `SamplingParams`, of all that shapes and filters logits and of what ends the answer.

    Args:
        answer: About to go on behind what it holds.
        choice: How its tokens are chosen.
        end_token_ids: Tokens that end every answer.
        max_tokens: Max tokens of the request; vLLM refuses a least length above it.
    """
    arguments: dict[str, Any] = {
        "top_p": choice.top_p,
        "top_k": choice.top_k,
        "min_p": choice.min_p,
        "repetition_penalty": choice.repetition_penalty,
        "presence_penalty": choice.presence_penalty,
        "frequency_penalty": choice.frequency_penalty,
        "min_tokens": min(max_tokens, max(0, choice.min_tokens - answer.length)),
        "logit_bias": _biases(answer, choice) or None,
        "stop_token_ids": sorted({*end_token_ids, *choice.stop_token_ids}),
    }
    if answer.stops is not None:
        arguments["stop"] = list(answer.stops.texts)
    if answer.grant.sampling is not None and answer.grant.sampling.structure is not None:
        arguments["structured_outputs"] = _structured(answer.grant.sampling.structure)
    return arguments


def read_tokens(answer: Answer, output: Any) -> list[ReadToken]:
    """Return what the model thought of the tokens of an output, where the answer asks for it.

    Args:
        answer: The answer.
        output: What vLLM has generated since the last one, its `CompletionOutput`.
    """
    if (most := answer.top_logprobs) is None:
        return []
    read = []
    for token_id, known in zip(output.token_ids, output.logprobs, strict=True):
        top = sorted(((other, entry.logprob) for other, entry in known.items()), key=lambda pair: -pair[1])
        read.append(ReadToken(token_id, known[token_id].logprob, tuple(top[:most])))
    return read


def _biases(answer: Answer, choice: TokenChoice) -> dict[int, float]:
    biases = dict(choice.logit_bias)
    if choice.presence_penalty or choice.frequency_penalty:
        for token_id, count in Counter(answer.token_ids).items():
            penalty = choice.presence_penalty + choice.frequency_penalty * count
            biases[token_id] = biases.get(token_id, 0.0) - penalty
    return biases


def _structured(structure: Structure) -> Any:
    from vllm.sampling_params import StructuredOutputsParams

    if structure.kind == "json_object":
        return StructuredOutputsParams(json_object=True)
    if structure.kind == "json_schema":
        return StructuredOutputsParams(json=structure.value)
    if structure.kind == "choice":
        return StructuredOutputsParams(choice=json.loads(structure.value))
    if structure.kind == "regex":
        return StructuredOutputsParams(regex=structure.value)
    return StructuredOutputsParams(grammar=structure.value)
