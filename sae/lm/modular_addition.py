"""A one-layer transformer that reads `a b =` and says (a + b) mod p: its mechanism is known.

Nanda et al. 2023, "Progress measures for grokking via mechanistic interpretability": embeddings,
one block (attention, then a ReLU MLP, no layer norm) and an unembedding of their own. Trained past
grokking it adds by a few frequencies of Fourier's: cos and sin of 2πka/p become those of
2πk(a + b)/p, and logits are sums of cos 2πk(a + b − c)/p.

    net = load_modular_addition()  # the embedded one, trained by pipelines.grok
    x_BD = net.capture(net.grid, "blocks.0.mlp.hook_post")
    logits_Bp = net.logits(net.grid, "blocks.0.mlp.hook_post", coder)  # spliced
"""

import math
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sae.base.errors import UserError, nearest
from sae.base.files import read_json_object
from sae.base.foreign import reading
from sae.base.tensors import read_safetensors

# What is read and replaced, as a forward pass reaches it; always at the last token, `=`.
WEIGHTS = "model.safetensors"
SITES = (
    "blocks.0.hook_resid_mid",
    "blocks.0.mlp.hook_pre",
    "blocks.0.mlp.hook_post",
    "blocks.0.hook_mlp_out",
    "blocks.0.hook_resid_post",
)
Replace = Callable[[Tensor], Tensor]


class ModularAddition(nn.Module):
    """The transformer. Pairs (B, 2) of numbers below `p` -> logits (B, p) at `=`.

    Only the last token is read out, and what a number contributes to attention depends on the
    number and its place alone: keys and values are taken of the 2p + 1 (token, place) pairs and
    looked up, which is the same as taking them of every sequence.
    """

    def __init__(self, p: int = 113, d_model: int = 128, heads: int = 4, d_mlp: int = 512) -> None:
        super().__init__()
        if d_model % heads:
            raise UserError(f"`d_model` is {d_model}; it must be a multiple of `heads`, {heads}.")
        self.p, self.d_model, self.heads, self.d_mlp = p, d_model, heads, d_mlp
        shapes = {
            "W_E": (p + 1, d_model),  # the last token is `=`
            "W_pos": (3, d_model),
            "W_Q": (d_model, d_model),  # heads side by side
            "W_K": (d_model, d_model),
            "W_V": (d_model, d_model),
            "W_O": (d_model, d_model),
            "W_in": (d_model, d_mlp),
            "b_in": (d_mlp,),
            "W_out": (d_mlp, d_model),
            "b_out": (d_model,),
            "W_U": (d_model, p),
        }
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))

    W_E: Tensor
    W_pos: Tensor
    W_Q: Tensor
    W_K: Tensor
    W_V: Tensor
    W_O: Tensor
    W_in: Tensor
    b_in: Tensor
    W_out: Tensor
    b_out: Tensor
    W_U: Tensor

    def initialise(self, seed: int) -> None:
        """Normal with variance 1/d_model, 1/p for the unembedding; biases 0 (Nanda et al.)."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, tensor in self.named_parameters():
                if tensor.ndim == 2:
                    inputs = self.p if name == "W_U" else self.d_model
                    tensor.normal_(std=1 / math.sqrt(inputs), generator=generator)

    @property
    def grid(self) -> Tensor:
        """(p², 2): every pair, row a·p + b."""
        return torch.cartesian_prod(torch.arange(self.p), torch.arange(self.p))

    def site_width(self, site: str) -> int:
        return self.d_mlp if ".mlp." in check_site(site) else self.d_model

    def forward(self, pairs_B2: Tensor) -> Tensor:
        """(B, p) logits, with gradients."""
        mid_BD = self._attend(pairs_B2)
        neurons_BH = torch.relu(self._before_relu(mid_BD))
        return (mid_BD + self._mlp_out(neurons_BH)) @ self.W_U

    @torch.no_grad()
    def capture(self, pairs_B2: Tensor, site: str) -> Tensor:
        """(B, D) activations at `=`."""
        seen: list[Tensor] = []

        def see(x_BD: Tensor) -> Tensor:
            seen.append(x_BD)
            return x_BD

        self.logits(pairs_B2, site, see)
        return seen[0]

    @torch.no_grad()
    def logits(
        self, pairs_B2: Tensor, site: str = SITES[-1], replace: Replace | None = None
    ) -> Tensor:
        """(B, p) logits with `replace(x_BD)` in the place of the activations at `site`."""
        check_site(site)
        put = {name: replace if name == site and replace else _keep for name in SITES}
        mid_BD = put[SITES[0]](self._attend(pairs_B2))
        before_BH = put[SITES[1]](self._before_relu(mid_BD))
        neurons_BH = put[SITES[2]](torch.relu(before_BH))
        out_BD = put[SITES[3]](self._mlp_out(neurons_BH))
        return put[SITES[4]](mid_BD + out_BD) @ self.W_U

    def _attend(self, pairs_B2: Tensor) -> Tensor:
        """(B, D): the residual stream at `=` after attention."""
        p, heads = self.p, self.heads
        asking_D = self.W_E[p] + self.W_pos[2]
        numbers_pD = self.W_E[:p]
        places_LD = torch.cat(
            [numbers_pD + self.W_pos[0], numbers_pD + self.W_pos[1], asking_D[None]]
        )
        query_hd = (asking_D @ self.W_Q).view(heads, -1)
        key_Lhd = (places_LD @ self.W_K).view(len(places_LD), heads, -1)
        score_Lh = (key_Lhd * query_hd).sum(-1) / math.sqrt(query_hd.shape[1])
        index_B3 = F.pad(pairs_B2 + torch.tensor([0, p]), (0, 1), value=2 * p)
        weight_B3h = F.embedding(index_B3, score_Lh).softmax(1)
        value_B3hd = F.embedding(index_B3, places_LD @ self.W_V).view(*index_B3.shape, heads, -1)
        mixed_BD = (weight_B3h[..., None] * value_B3hd).sum(1).flatten(1)
        return asking_D + mixed_BD @ self.W_O

    def _before_relu(self, mid_BD: Tensor) -> Tensor:
        return mid_BD @ self.W_in + self.b_in

    def _mlp_out(self, neurons_BH: Tensor) -> Tensor:
        return neurons_BH @ self.W_out + self.b_out


def answers(pairs_B2: Tensor, p: int) -> Tensor:
    """(B,): (a + b) mod p."""
    return pairs_B2.sum(1) % p


def pair_losses(logits_Bp: Tensor, targets_B: Tensor) -> Tensor:
    """(B,) nats in float64: in float32 a log-softmax near 0 has no digits left."""
    return F.cross_entropy(logits_Bp.double(), targets_B, reduction="none")


def split_pairs(p: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Rows of the grid (p²) that the model is trained on, and the rest."""
    order = torch.randperm(p * p, generator=torch.Generator().manual_seed(seed))
    count = int(share * p * p)
    return order[:count].sort().values, order[count:].sort().values


def addition_folder() -> Path:
    return Path(str(files("sae") / "assets" / "modular-addition"))


def load_modular_addition(folder: Path | str | None = None) -> ModularAddition:
    """The model of a folder that `pipelines.grok` wrote; by default the embedded one."""
    folder = Path(folder) if folder is not None else addition_folder()
    if not (folder / WEIGHTS).exists():
        raise UserError(
            f"{folder} holds no `{WEIGHTS}`; train one with `python -m pipelines.grok "
            f"--out {folder}`."
        )
    config = read_json_object(folder / "config.json")
    tensors = read_safetensors(folder / WEIGHTS)
    with reading(f"The model in {folder}"):
        sizes = {name: int(size) for name, size in config["model"].items()}
        if min(sizes.values(), default=0) < 1:
            raise ValueError("a size in config.json is no positive whole number")
        with torch.device("meta"):  # no memory is taken for what config.json promises
            net = ModularAddition(**sizes)
        net.load_state_dict({k: v.float() for k, v in tensors.items()}, assign=True)
        return net.eval().requires_grad_(False)


def check_site(site: str) -> str:
    if site not in SITES:
        raise UserError(
            f"Unknown site `{site}`; of modular addition it must be one of {', '.join(SITES)}."
            + nearest(site, SITES)
        )
    return site


def _keep(x: Tensor) -> Tensor:
    return x
