"""As many open files as a sweep needs: the limit is raised, or the refusal comes at the start."""

import resource

import pytest

from sae.base.errors import UserError
from sae.base.open_files import SPARE, require_open_files


@pytest.mark.parametrize(
    ("soft", "hard", "needed", "raised_to"),
    [
        (1024, 4096, 1500, 1500 + SPARE),
        (1024, resource.RLIM_INFINITY, 1500, 1500 + SPARE),
        (4096, 4096, 1500, None),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 10**6, None),
    ],
)
def test_the_limit_is_raised_as_far_as_needed(
    soft: int, hard: int, needed: int, raised_to: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_to: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: set_to.append(limits))
    require_open_files(needed, "It", "give fewer")
    assert set_to == ([(raised_to, hard)] if raised_to else [])


def test_beyond_what_the_system_allows_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 64))  # and so does the system say
    with pytest.raises(UserError, match=r"It needs about 1,628 files .* a process 64; give fewer"):
        require_open_files(1500, "It", "give fewer")
