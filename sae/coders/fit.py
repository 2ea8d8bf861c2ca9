"""Whether a coder, a store and a model belong together at all."""

from typing import TYPE_CHECKING

from sae.base.errors import UserError, nearest
from sae.coders.contract import Coder
from sae.store import ActivationStore

if TYPE_CHECKING:
    from sae.lm import LanguageModel


def check_fit(coder: Coder, store: ActivationStore, lm: "LanguageModel") -> tuple[str, str]:
    """The site that the coder reads and the one that it predicts (for most, the same).

    Raises `UserError` if coder, store and model do not belong together.
    """
    site, target = coder.site, coder.target_site
    if not isinstance(site, str) or not isinstance(target, str):
        raise UserError("The coder's metadata has no `hook_name`; it must name the coder's site.")
    for does, name, expected in (
        ("reads", site, coder.d_in),
        ("predicts", target, coder.d_out),
    ):
        if name not in store.sites:
            raise UserError(
                f"The coder {does} `{name}`, but the store at {store.path} has only "
                f"{', '.join(store.sites)}; harvest that site." + nearest(name, store.sites)
            )
        if (width := store.width[name]) != expected:
            raise UserError(
                f"The coder {does} activations of width {expected}, but `{name}` in the store at "
                f"{store.path} has {width}: they are of different models; choose the coder that "
                "was trained on this store's model."
            )
    stored = store.attributes.get("model", {})
    if stored.get("hash") not in (None, lm.hash):
        raise UserError(
            f"The store at {store.path} was harvested from another model (`{stored.get('name')}`, "
            f"{stored['hash'][:12]}) than `{lm.name}` ({lm.hash[:12]}); load the model "
            "that it names, or harvest again."
        )
    return site, target
