"""Linear layers of a model on a CPU, with their weights in the order in which oneDNN reads them.

torch multiplies float32 by MKL, which puts a weight in its order anew for every pass of more than one row, and which leaves
half of a processor idle that Intel did not make. oneDNN comes with torch as well, and takes a weight that was put in order
once; torch's own compiler has it do so. docs/performance.md has what that saves.

Products differ by rounding alone, as they do between any two processors. A packed model answers where it is: it can neither
be copied nor saved.
"""

from __future__ import annotations

from bisect import bisect
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import nn

_ROWS_EXPECTED = 8  # of a pass that generates; any number is multiplied
_MOST_APART = 1e-4  # of the largest product
_COPIES_SHARE = 0.25  # of the free memory


class PackedLinear(nn.Linear):
    """A linear layer without its plain weight. Whatever asks for that gets it, and makes the layer a plain one again."""

    _packed: torch.Tensor

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the products with the weight, plus the bias."""
        return _multiply(rows, self._packed, self.bias)

    def __getattr__(self, name: str) -> Any:
        """Return what is no attribute yet: of a packed layer, that is its weight."""
        if name != "weight":
            return super().__getattr__(name)
        weight = nn.Parameter(self._packed.to_dense(), requires_grad=False)
        del self._packed
        self.__class__ = nn.Linear  # type: ignore[assignment]
        self.weight = weight
        return weight


@torch.no_grad()
def pack_linears(model: nn.Module, *, free_bytes: int) -> int:
    """Pack the weights of a model's linear layers; return of how many.

    A packed weight takes as much memory as a plain one, which it takes the place of. It is memory on top where the plain one
    stays: the head of many models is their table of tokens, and weights that were saved in float32 are pages of their file,
    which all processes share. Such are packed as far as a quarter of the free memory goes.

    Args:
        model: A model for inference. Layers that are not float32 on a CPU are left as they are, and all of them where this
            build of torch cannot do it.
        free_bytes: Memory that may be had.
    """
    layers = [module for module in model.modules() if type(module) is nn.Linear and _is_fit(module.weight)]
    if not layers or not _multiplies_alike(min(layers, key=lambda layer: layer.weight.numel())):
        return 0
    users = Counter(id(weight) for module in model.modules() for weight in module._parameters.values())
    room, mapped, taken = _COPIES_SHARE * free_bytes, _MappedFiles(), 0
    for layer in layers:
        if users[id(layer.weight)] > 1 or layer.weight.data_ptr() in mapped:
            if layer.weight.nbytes > room:
                continue
            room -= layer.weight.nbytes
        packed = _pack(layer.weight.data)
        del layer.weight
        layer.__class__ = PackedLinear
        layer._packed = packed
        taken += 1
    return taken


class _MappedFiles:
    """What of this process's memory is pages of files, as far as the system tells."""

    def __init__(self) -> None:
        maps = Path("/proc/self/maps")
        lines = maps.read_text(encoding="utf-8", errors="replace").splitlines() if maps.is_file() else []
        ranges = [line.split()[0].split("-") for line in lines if line.split()[4] != "0"]  # the number of the file
        self._ranges = sorted((int(first, 16), int(end, 16)) for first, end in ranges)

    def __contains__(self, address: int) -> bool:
        place = bisect(self._ranges, address, key=lambda each: each[0]) - 1
        return place >= 0 and address < self._ranges[place][1]


def _is_fit(weight: torch.Tensor) -> bool:
    has_it: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return has_it and weight.device.type == "cpu" and weight.dtype == torch.float32


def _multiplies_alike(layer: nn.Linear) -> bool:
    """Return whether a layer's products are the same with a packed weight, which torch promises in no version."""
    weight = layer.weight.data
    rows = torch.eye(min(_ROWS_EXPECTED, weight.shape[1]), weight.shape[1]) + 0.5
    try:
        products = _multiply(rows, _pack(weight), layer.bias)
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return torch.allclose(products, layer(rows), rtol=0.0, atol=_MOST_APART * float(products.abs().max()))


def _pack(weight: torch.Tensor) -> torch.Tensor:
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ROWS_EXPECTED)
    return packed


def _multiply(rows: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
    return product
