from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from sae.base import devices
from sae.base.errors import UserError


@pytest.mark.parametrize(("cuda", "chosen"), [(True, "cuda"), (False, "cpu")])
def test_mps_is_taken_by_name_alone(
    cuda: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert devices.default_device() == chosen
    assert devices.parse_device("mps").type == "mps"
    assert devices.default_dtype("mps") is torch.float32


@pytest.mark.parametrize("native", [True, False])
def test_bfloat16_is_for_cards_that_have_it(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Older ones emulate it, slowly; it is the device in question that is asked."""
    current = [0]

    @contextmanager
    def device(chosen: str) -> Iterator[None]:
        current.append(torch.device(chosen).index)
        yield
        current.pop()

    def supported(including_emulation: bool = True) -> bool:
        return including_emulation or (native and current[-1] == 1)

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    found = [devices.default_dtype(name) for name in ("cuda:1", "cuda:0")]
    assert found == [torch.bfloat16 if native else torch.float32, torch.float32]


def test_float64_never_goes_to_mps() -> None:
    assert devices.float64_device(torch.device("mps")).type == "cpu"
    assert devices.float64_device(torch.device("cuda:1")) == torch.device("cuda:1")
    assert devices.in_float64(torch.ones(3)).dtype is torch.float64


def test_a_device_that_is_not_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match="`mps` is not there"):
        devices.parse_device("mps")
