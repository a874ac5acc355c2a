"""The first layers of a model as a model of its own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from clear_ray.engine.shallow import first_layers
from clear_ray.engine.slot_cache import SlotCache, SlotRunner
from clear_ray.errors import ConfigError
from tests.unit.engine.tiny import tiny_model

IDS = [[5, 9, 33, 2, 41], [7, 1, 12, 50, 3]]


@torch.inference_mode()
def test_states_are_those_of_the_layer_under_the_models_last_norm() -> None:
    model = tiny_model(num_hidden_layers=4)
    states = model(input_ids=torch.tensor(IDS), output_hidden_states=True).hidden_states
    for layers in (1, 3):
        short = first_layers(model, layers)
        found = short(input_ids=torch.tensor(IDS), output_hidden_states=True)
        expected = model.model.norm(states[layers])
        assert torch.equal(found.hidden_states[-1], expected)
        assert torch.equal(found.logits, model.lm_head(expected))
    assert len(model.model.layers) == 4
    assert torch.equal(model(input_ids=torch.tensor(IDS), output_hidden_states=True).hidden_states[-1], states[-1])


@torch.inference_mode()
def test_slots_hold_no_more_than_its_layers() -> None:
    model = tiny_model(num_hidden_layers=3)
    cache, runner = SlotCache(), SlotRunner(first_layers(model, 1))
    cache.reserve(2, 8, kept_rows=0)
    total_ND = runner.prefill(cache, 0, IDS, chunk=2)
    states = model(input_ids=torch.tensor(IDS), output_hidden_states=True).hidden_states[1]
    torch.testing.assert_close(total_ND, model.model.norm(states).sum(dim=1).float())
    assert len(cache._keys) == 1


def test_weights_are_shared() -> None:
    model = tiny_model()
    short = first_layers(model, 1)
    own = {id(parameter) for parameter in model.parameters()}
    assert {id(parameter) for parameter in short.parameters()} < own


def test_more_layers_than_there_are_are_refused() -> None:
    with pytest.raises(ConfigError, match="the model has 2 layers"):
        first_layers(tiny_model(), 3)


def test_layers_that_are_not_one_list_are_refused() -> None:
    model = tiny_model()
    model.model.others = nn.ModuleList(nn.Identity() for _ in range(2))
    with pytest.raises(ConfigError, match="cannot be told apart"):
        first_layers(model, 1)
