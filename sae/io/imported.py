"""From another tool's tensors to a coder of ours: what the importers share."""

from pathlib import Path
from typing import Any

from torch import Tensor

from sae.base.errors import UserError
from sae.coders import Coder, make_coder


def imported_coder(
    architecture: str, tensors: dict[str, Tensor], site: str, source: dict[str, Any], **options: Any
) -> Coder:
    """A frozen float32 coder from tensors in SAELens's layout (`W_enc` [D, F], `W_dec` [F, D]).

    `source` says where it came from; it is kept in `metadata.loupe.imported`.
    """
    d_in, d_sae = tensors["W_enc"].shape
    if tensors["W_dec"].shape != (d_sae, d_in):  # before memory is taken for such a coder
        raise ValueError(f"its decoder has {tuple(tensors['W_dec'].shape)}, not {(d_sae, d_in)}")
    coder = make_coder(architecture, d_in, d_sae, **options)
    for name, own in coder.saved_tensors().items():  # torch would spread (1, D) over (F, D)
        if name in tensors and tensors[name].shape != own.shape:
            raise ValueError(f"`{name}` has {tuple(tensors[name].shape)}, not {tuple(own.shape)}")
    coder.load_saved({name: tensor.float() for name, tensor in tensors.items()})
    coder.metadata = {"hook_name": site, "loupe": {"imported": source}}
    return coder.requires_grad_(False).eval()


def named_tensors(tensors: dict[str, Tensor], names: dict[str, str], path: Path) -> dict[str, Any]:
    """Tensors under our names, {ours: theirs}; `UserError` names those that `path` lacks."""
    missing = [theirs for theirs in names.values() if theirs not in tensors]
    if missing:
        raise UserError(
            f"{path} has no {', '.join(missing)}; it has {', '.join(tensors) or 'nothing'}."
        )
    return {ours: tensors[theirs] for ours, theirs in names.items()}
