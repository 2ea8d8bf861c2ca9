"""Whether a coder, a store and a model belong together at all."""

from typing import TYPE_CHECKING

from sae.base.errors import UserError, nearest
from sae.coders.contract import Coder
from sae.store import ActivationStore

if TYPE_CHECKING:
    from sae.lm import LanguageModel


def check_fit(coder: Coder, store: ActivationStore, lm: "LanguageModel") -> str:
    """The coder's site. Raises `UserError` if the three do not belong together."""
    site = coder.metadata.get("hook_name")
    if not isinstance(site, str):
        raise UserError("The coder's metadata has no `hook_name`; it must name the coder's site.")
    if site not in store.sites:
        raise UserError(
            f"The coder reads `{site}`, but the store at {store.path} has only "
            f"{', '.join(store.sites)}; harvest that site." + nearest(site, store.sites)
        )
    if (width := store.width[site]) != coder.d_in:
        raise UserError(
            f"The coder takes activations of width {coder.d_in}, but `{site}` in the store at "
            f"{store.path} has {width}: they are of different models; choose the coder that was "
            "trained on this store's model."
        )
    stored = store.attributes.get("model", {})
    if stored.get("hash") not in (None, lm.hash):
        raise UserError(
            f"The store at {store.path} was harvested from another model (`{stored.get('name')}`, "
            f"weights {stored['hash'][:12]}) than `{lm.name}` ({lm.hash[:12]}); load the model "
            "that it names, or harvest again."
        )
    return site
