"""What a checkpoint's numbers decide: sizes, RoPE, and every tensor's name and shape. No torch here."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

from llama3_scratch.errors import UsageError


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's stretching of the RoPE wavelengths, in Meta's terms (`apply_scaling`).

    Pairs that turn fewer than `low_freq_factor` times in `original_context` tokens turn `factor` times slower,
    pairs that turn more than `high_freq_factor` times stay as they are, and those between are blended.
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192


@dataclass(frozen=True)
class Config:
    """The sizes of one Llama; field names are `params.json`'s where it has one.

    `head_dim` (K) is dim / n_heads unless given, and is one of the fields from then on: a `replace` that changes dim or
    n_heads keeps it unless told `head_dim=None` too.
    """

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    hidden_dim: int
    norm_eps: float = 1e-5
    rope_theta: float = 500_000.0
    rope_scaling: RopeScaling | None = None
    rope_divisors: tuple[float, ...] | None = None  # GGUF's rope_freqs where no RopeScaling explains them
    max_seq_len: int = 8192
    tied: bool = False  # output.weight is tok_embeddings.weight
    head_dim: int = None  # type: ignore[assignment]  # K, the width of one head

    def __post_init__(self) -> None:
        sizes = ("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "hidden_dim", "max_seq_len")
        derived = self.head_dim is None
        for field in (*sizes, *([] if derived else ["head_dim"])):
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UsageError(f"{field} must be a whole number of at least 1, got {value!r}")
        if derived:
            if self.dim % self.n_heads:
                raise UsageError(
                    f"n_heads must divide dim, got dim={self.dim}, n_heads={self.n_heads}, unless head_dim is given"
                )
            object.__setattr__(self, "head_dim", self.dim // self.n_heads)
        if self.n_heads % self.n_kv_heads:
            raise UsageError(
                f"n_kv_heads must divide n_heads, got n_heads={self.n_heads}, n_kv_heads={self.n_kv_heads}"
            )
        if self.head_dim % 2:
            what, got = "head_dim", f"{self.head_dim}"
            if derived:
                what, got = "dim / n_heads", f"{self.dim} / {self.n_heads} = {self.head_dim}"
            raise UsageError(f"{what} must be even, since RoPE turns pairs, got {got}")

    @property
    def n_parameters(self) -> int:
        """How many weights the model has, a tied head counted once."""
        shapes = expected(self)
        if self.tied:
            del shapes["output.weight"]
        return sum(map(math.prod, shapes.values()))

    def layer_flops(self, tokens: int) -> int:
        """FLOPs of all layers for a text of `tokens` tokens: 2 for each token and weight of a matrix, 4 · H · K for
        each token that one sees (arXiv:2204.02311, appendix B)."""
        D, HK, GK = self.dim, self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        weights = 2 * D * HK + 2 * D * GK + 3 * D * self.hidden_dim
        return self.n_layers * (2 * tokens * weights + 4 * HK * tokens * (tokens + 1) // 2)

    def kv_bytes(self, tokens: int, batch: int = 1, element_bytes: float = 2) -> int:
        """Bytes of a KV cache of `tokens` tokens for each of `batch` prompts, `element_bytes` a number."""
        return int(2 * self.n_layers * self.n_kv_heads * self.head_dim * tokens * batch * element_bytes)


def hidden_dim(dim: int, multiple_of: int = 256, ffn_dim_multiplier: float | None = None) -> int:
    """F by Meta's formula (`FeedForward.__init__`): two thirds of 4·dim, stretched, then rounded up."""
    hidden = int(2 * (4 * dim) / 3)
    if ffn_dim_multiplier is not None:
        hidden = int(ffn_dim_multiplier * hidden)
    return multiple_of * -(-hidden // multiple_of)


def expected(config: Config) -> dict[str, tuple[int, ...]]:
    """Every tensor's name and shape, in the order of the forward pass; Meta's names."""
    D, F, V = config.dim, config.hidden_dim, config.vocab_size
    HK, GK = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {"tok_embeddings.weight": (V, D)}
    for layer in range(config.n_layers):
        name = f"layers.{layer}"
        shapes |= {
            f"{name}.attention_norm.weight": (D,),
            f"{name}.attention.wq.weight": (HK, D),
            f"{name}.attention.wk.weight": (GK, D),
            f"{name}.attention.wv.weight": (GK, D),
            f"{name}.attention.wo.weight": (D, HK),
            f"{name}.ffn_norm.weight": (D,),
            f"{name}.feed_forward.w1.weight": (F, D),
            f"{name}.feed_forward.w3.weight": (F, D),
            f"{name}.feed_forward.w2.weight": (D, F),
        }
    return shapes | {"norm.weight": (D,), "output.weight": (V, D)}


# Meta's sizes by name (llama-models, sku_list.py). A name with "-instruct" has the same sizes.
_8B = Config(4096, 32, 32, 8, 128256, 14336)
_70B = Config(8192, 80, 64, 8, 128256, 28672)
_8B_SCALED = replace(_8B, rope_scaling=RopeScaling(8.0), max_seq_len=131072)
_70B_SCALED = replace(_70B, rope_scaling=RopeScaling(8.0), max_seq_len=131072)
_1B = Config(2048, 16, 32, 8, 128256, 8192, rope_scaling=RopeScaling(32.0), max_seq_len=131072, tied=True)
OFFICIAL: dict[str, Config] = {
    "llama3-8b": _8B,
    "llama3-70b": _70B,
    "llama3.1-8b": _8B_SCALED,
    "llama3.1-70b": _70B_SCALED,
    "llama3.1-405b": replace(_70B_SCALED, dim=16384, n_layers=126, n_heads=128, hidden_dim=53248),
    "llama3.2-1b": _1B,
    "llama3.2-3b": replace(_1B, dim=3072, n_layers=28, n_heads=24, head_dim=128),
    "llama3.3-70b": _70B_SCALED,
}


def official_name(name: str) -> str | None:
    """The key in `OFFICIAL` that `name` means (`Llama-3.2-1B-Instruct`, `3.2-1b`, …), or None."""
    found = re.fullmatch(
        r"(?:meta-llama/)?(?:meta-)?(?:llama)?[-_ ]?(3(?:\.[123])?)[-_ ](\d+b)(?:-instruct)?", name, re.IGNORECASE
    )
    key = f"llama{found[1]}-{found[2].lower()}" if found else ""
    return key if key in OFFICIAL else None


def rope_factor(config: Config) -> tuple[float, str]:
    """The factor of a scaled RoPE that Meta's files leave unsaid, and why: (factor, reason).

    `params.json` says only `use_scaled_rope`; Meta's code then takes 8, but Llama 3.2 1B and 3B were trained with 32.
    The whole shape decides, so that a model of one's own isn't taken for one of those two.
    """
    sizes = ("dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "hidden_dim")
    for name in ("llama3.2-1b", "llama3.2-3b"):
        if all(getattr(config, size) == getattr(OFFICIAL[name], size) for size in sizes):
            return 32.0, f"the shape is {name}'s, trained with 32 although Meta's code says 8"
    return 8.0, "Llama 3.1's own; the shape is neither llama3.2-1b's nor llama3.2-3b's, which have 32"
