"""Sparse coders: one file per architecture over one contract, saved in SAELens's folder format."""

from sae.coders.contract import Coder, Forward
from sae.coders.fit import check_fit
from sae.coders.folder import coder_hash, load_coder, save_coder
from sae.coders.registry import ARCHITECTURES, make_coder
from sae.coders.two_sites import TwoSites
from sae.kernels.codes import Codes, Support

__all__ = [
    "ARCHITECTURES",
    "Coder",
    "Codes",
    "Forward",
    "Support",
    "TwoSites",
    "check_fit",
    "coder_hash",
    "load_coder",
    "make_coder",
    "save_coder",
]
