"""Linear layers with packed weights, beside plain ones of the same numbers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from clear_ray.engine.loading import load_model
from clear_ray.engine.packed import PackedLinear, pack_linears
from clear_ray.engine.smollm2 import EMBEDDED_MODEL

AMPLE = 1 << 40


class Small(nn.Module):
    """A table of tokens, two layers and a head whose weight is the table's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.table = nn.Embedding(50, 24)
        self.wide = nn.Linear(24, 40)
        self.narrow = nn.Linear(40, 24, bias=False)
        self.head = nn.Linear(24, 50, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> Any:
        return self.head(self.narrow(torch.relu(self.wide(self.table(ids)))))


@pytest.fixture
def model() -> Small:
    return Small().eval()


@pytest.mark.parametrize("shape", [(1,), (8,), (70,), (2, 5), (3, 0), (0,)])
@torch.inference_mode()
def test_products_are_those_of_plain_layers(model: Small, shape: tuple[int, ...]) -> None:
    ids = torch.arange(torch.tensor(shape).prod().item()).reshape(shape) % 50
    plain = model(ids)
    assert pack_linears(model, free_bytes=AMPLE) == 3
    assert [type(each) for each in (model.wide, model.narrow, model.head)] == [PackedLinear] * 3
    packed = model(ids)
    assert packed.shape == plain.shape
    torch.testing.assert_close(packed, plain)


@torch.inference_mode()
def test_a_layer_that_is_asked_for_its_weight_is_a_plain_one_again(model: Small) -> None:
    before = copy.deepcopy(model)
    pack_linears(model, free_bytes=AMPLE)
    assert torch.equal(model.wide.weight, before.wide.weight)
    assert (type(model.wide), type(model.narrow)) == (nn.Linear, PackedLinear)
    assert "wide.weight" in dict(model.named_parameters())
    torch.testing.assert_close(model(torch.arange(9)), before(torch.arange(9)))
    with pytest.raises(AttributeError, match="no_such"):
        model.narrow.no_such  # noqa: B018


def test_a_shared_weight_is_packed_only_where_there_is_room_for_both(model: Small) -> None:
    assert pack_linears(model, free_bytes=4 * model.head.weight.nbytes - 1) == 2
    assert type(model.head) is nn.Linear
    assert model.head.weight is model.table.weight


def test_pages_of_a_file_are_packed_only_as_far_as_there_is_room(model: Small, tmp_path: Path) -> None:
    save_file({"wide": model.wide.weight.data, "narrow": model.narrow.weight.data}, tmp_path / "weights.safetensors")
    mapped = load_file(tmp_path / "weights.safetensors")
    model.wide.weight, model.narrow.weight = (nn.Parameter(mapped[name]) for name in ("wide", "narrow"))
    assert pack_linears(model, free_bytes=4 * model.wide.weight.nbytes) == 1
    assert [type(each) for each in (model.wide, model.narrow, model.head)] == [PackedLinear, nn.Linear, nn.Linear]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_number_formats_are_left_as_they_are(model: Small, dtype: torch.dtype) -> None:
    assert pack_linears(model.to(dtype), free_bytes=AMPLE) == 0
    assert type(model.wide) is nn.Linear


def test_layers_of_other_kinds_are_left_as_they_are() -> None:
    attention = nn.MultiheadAttention(8, 2)  # reads the weight of its last layer, which is of a class of its own
    assert pack_linears(attention, free_bytes=AMPLE) == 0


@torch.inference_mode()
def test_a_loaded_model_gives_the_logits_of_plain_layers() -> None:
    model = load_model(EMBEDDED_MODEL, device=torch.device("cpu"), dtype=None)
    linears = [each for each in model.modules() if isinstance(each, nn.Linear)]
    assert {type(each) for each in linears} == {PackedLinear}
    ids = torch.tensor([[1, 17, 400, 3, 90, 12_000]])
    packed = model(ids).logits
    for each in linears:
        assert each.weight.shape == (each.out_features, each.in_features)
    assert {type(each) for each in linears} == {nn.Linear}
    plain = model(ids).logits
    assert float((packed - plain).abs().max()) < 1e-3 * float(plain.std())
