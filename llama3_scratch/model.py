"""Llama 3 as functions over the checkpoint's own dict.

A tensor's name ends in its axes: B batch · T tokens of this call · S tokens seen so far · D width · H query heads ·
G key/value heads · R = H/G query heads that share one · N heads of either kind · K head width · J = K/2 rotation
pairs · F feed-forward width · V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llama3_scratch.cache import CAUSAL, NO_CACHE, Mask, NoCache, visible
from llama3_scratch.config import Config, RopeScaling
from llama3_scratch.linear import at_least_f32, embed, linear
from llama3_scratch.stored import Params
from llama3_scratch.tied import warn_if_apart
from llama3_scratch.token_ids import Ids, as_batch

Block = Callable[..., Tensor]


def rms_norm(x_BTD: Tensor, params: Params, name: str, config: Config) -> Tensor:
    """x_BTD scaled to a root mean square of 1 over D, then times the weight of `name` (arXiv:1910.07467).

    The norm is taken in f32 and cast back before the weight, as in Meta's `RMSNorm`.
    """
    wide_BTD = x_BTD.to(at_least_f32(x_BTD.dtype))
    mean_square_BT1 = wide_BTD.pow(2).mean(-1, keepdim=True)
    normed_BTD = (wide_BTD * torch.rsqrt(mean_square_BT1 + config.norm_eps)).to(x_BTD.dtype)
    return normed_BTD * params[f"{name}.weight"].to(x_BTD.dtype)


def rope_frequencies(config: Config, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """How far each pair turns a token, in radians: freqs_J, falling from 1 to about 1/theta (arXiv:2104.09864)."""
    K = config.head_dim
    exponents_J = torch.arange(0, K, 2, device=device).to(dtype) / K
    freqs_J = 1.0 / (config.rope_theta**exponents_J)
    if config.rope_scaling is not None:
        freqs_J = scale_frequencies(freqs_J, config.rope_scaling)
    if config.rope_divisors is not None:
        freqs_J = freqs_J / torch.tensor(config.rope_divisors, dtype=dtype, device=device)
    return freqs_J


def scale_frequencies(freqs_J: Tensor, scaling: RopeScaling) -> Tensor:
    """Llama 3.1's longer context: slow pairs turn `factor` times slower, fast ones as before, between a blend. freqs_J.

    Meta's `apply_scaling`, term by term, so that the table is equal to the last bit.
    """
    low, high, context = scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_context
    wavelength_J = 2 * math.pi / freqs_J
    slowed_J = torch.where(wavelength_J > context / low, freqs_J / scaling.factor, freqs_J)
    smooth_J = (context / wavelength_J - low) / (high - low)
    blended_J = (1 - smooth_J) * slowed_J / scaling.factor + smooth_J * slowed_J
    between_J = (wavelength_J >= context / high) & (wavelength_J <= context / low)
    return torch.where(between_J, blended_J, slowed_J)


def rotations(positions_BT: Tensor, config: Config, dtype: torch.dtype) -> Tensor:
    """The turn of each pair at each position as a complex number of length 1: rotation_BTJ."""
    freqs_J = rope_frequencies(config, at_least_f32(dtype), positions_BT.device)
    angles_BTJ = positions_BT.to(freqs_J.dtype)[..., None] * freqs_J
    return torch.polar(torch.ones_like(angles_BTJ), angles_BTJ)


def rotate(x_BTNK: Tensor, rotation_BTJ: Tensor) -> Tensor:
    """RoPE: neighbouring pairs of each head, taken as complex numbers, turned by their position's angle. x_BTNK."""
    pairs_BTNJ = torch.view_as_complex(x_BTNK.to(at_least_f32(x_BTNK.dtype)).unflatten(-1, (-1, 2)).contiguous())
    turned_BTNJ = pairs_BTNJ * rotation_BTJ[:, :, None]
    return torch.view_as_real(turned_BTNJ).flatten(-2).to(x_BTNK.dtype)


def attend(q_BTGRK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, mask_BTS: Mask) -> Tensor:
    """Each query's mean of the values it may see, weighted by softmax(q·k / √K): out_BTGRK (arXiv:1706.03762 §3.2).

    R query heads share a key/value head (arXiv:2305.13245): two axes of one einsum, nothing is repeated.
    """
    visible_BTS = visible(mask_BTS, q_BTGRK.shape[1], k_BSGK.shape[1], q_BTGRK.device)
    scores_BGRTS = torch.einsum("btgrk,bsgk->bgrts", q_BTGRK, k_BSGK) / math.sqrt(q_BTGRK.shape[-1])
    masked_BGRTS = scores_BGRTS.masked_fill(~visible_BTS[:, None, None], -math.inf)
    weights_BGRTS = F.softmax(masked_BGRTS, dim=-1, dtype=at_least_f32(scores_BGRTS.dtype)).to(q_BTGRK.dtype)
    return torch.einsum("bgrts,bsgk->btgrk", weights_BGRTS, v_BSGK)


def attend_fused(q_BTGRK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, mask_BTS: Mask) -> Tensor:
    """`attend` in one kernel that never holds all scores at once, and leaves out what a causal T = S doesn't see:
    out_BTGRK.
    """
    T, S = q_BTGRK.shape[1], k_BSGK.shape[1]
    q_BHTK = q_BTGRK.flatten(2, 3).transpose(1, 2)
    k_BGSK, v_BGSK = k_BSGK.transpose(1, 2), v_BSGK.transpose(1, 2)
    if isinstance(mask_BTS, Tensor) or (mask_BTS == CAUSAL and T != S):
        mask_B1TS = visible(mask_BTS, T, S, q_BTGRK.device)[:, None]
        out_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BGSK, v_BGSK, attn_mask=mask_B1TS, enable_gqa=True)
    else:
        causal = mask_BTS == CAUSAL
        out_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BGSK, v_BGSK, is_causal=causal, enable_gqa=True)
        out_BHTK = out_BHTK + 0 * q_BHTK.sum(-1, keepdim=True)  # torch makes 0 of a NaN query, which would hide it
    return out_BHTK.transpose(1, 2).unflatten(2, q_BTGRK.shape[2:4])


def attention(
    x_BTD: Tensor,
    params: Params,
    name: str,
    config: Config,
    *,
    rotation_BTJ: Tensor,
    mask_BTS: Mask,
    cache: NoCache,
    attend: Callable[..., Tensor],
) -> Tensor:
    """Grouped-query self-attention of the layer's `{name}` weights wq, wk, wv, wo: x_BTD."""
    H, G, K = config.n_heads, config.n_kv_heads, config.head_dim
    q_BTHK = linear(x_BTD, params, f"{name}.wq").unflatten(-1, (H, K))
    k_BTGK = linear(x_BTD, params, f"{name}.wk").unflatten(-1, (G, K))
    v_BTGK = linear(x_BTD, params, f"{name}.wv").unflatten(-1, (G, K))
    q_BTHK = rotate(q_BTHK, rotation_BTJ)
    k_BTGK = rotate(k_BTGK, rotation_BTJ)
    k_BSGK, v_BSGK = cache.extend(name, k_BTGK, v_BTGK)
    q_BTGRK = q_BTHK.unflatten(2, (G, H // G))
    out_BTGRK = attend(q_BTGRK, k_BSGK, v_BSGK, mask_BTS)
    return linear(out_BTGRK.flatten(2), params, f"{name}.wo")


def swiglu(x_BTD: Tensor, params: Params, name: str) -> Tensor:
    """The gated feed-forward w2(silu(w1·x) · w3·x): x_BTD (arXiv:2002.05202)."""
    gate_BTF = linear(x_BTD, params, f"{name}.w1")
    up_BTF = linear(x_BTD, params, f"{name}.w3")
    hidden_BTF = F.silu(gate_BTF) * up_BTF
    return linear(hidden_BTF, params, f"{name}.w2")


def block(
    x_BTD: Tensor,
    params: Params,
    name: str,
    config: Config,
    *,
    rotation_BTJ: Tensor,
    mask_BTS: Mask,
    cache: NoCache,
    attend: Callable[..., Tensor] = attend,
) -> Tensor:
    """One layer, x_BTD: attention and feed-forward, each on a normed copy, each added to the residual stream."""
    normed_BTD = rms_norm(x_BTD, params, f"{name}.attention_norm", config)
    attended_BTD = attention(
        normed_BTD,
        params,
        f"{name}.attention",
        config,
        rotation_BTJ=rotation_BTJ,
        mask_BTS=mask_BTS,
        cache=cache,
        attend=attend,
    )
    x_BTD = x_BTD + attended_BTD
    normed_BTD = rms_norm(x_BTD, params, f"{name}.ffn_norm", config)
    fed_BTD = swiglu(normed_BTD, params, f"{name}.feed_forward")
    return x_BTD + fed_BTD


def fused_block(x_BTD: Tensor, params: Params, name: str, config: Config, **state: Any) -> Tensor:
    """`block` with the fused attention: the same numbers but for rounding, faster on long prompts."""
    return block(x_BTD, params, name, config, attend=attend_fused, **state)


def decode(
    x_BTD: Tensor, params: Params, config: Config, *, cache: NoCache = NO_CACHE, block: Block = fused_block
) -> Tensor:
    """All layers and the last norm: x_BTD. `block` may be wrapped: checkpointed, recorded, patched, compiled."""
    T = x_BTD.shape[1]
    positions_BT = cache.positions(T, x_BTD.device)
    mask_BTS = cache.mask(T, x_BTD.device)
    rotation_BTJ = rotations(positions_BT, config, x_BTD.dtype)
    for layer in range(config.n_layers):
        x_BTD = block(
            x_BTD, params, f"layers.{layer}", config, rotation_BTJ=rotation_BTJ, mask_BTS=mask_BTS, cache=cache
        )
    cache.advance(T)
    return rms_norm(x_BTD, params, "norm", config)


def unembed(x_BTD: Tensor, params: Params) -> Tensor:
    """The score of every token of the vocabulary: logits_BTV, in at least f32."""
    logits_BTV = linear(x_BTD, params, "output")
    return logits_BTV.to(at_least_f32(logits_BTV.dtype))


def forward(
    tokens: Ids,
    params: Params,
    config: Config,
    *,
    cache: NoCache = NO_CACHE,
    block: Block = fused_block,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Token ids in, (B, T) or of one prompt (T,), logits_BTV out. `dtype` is the activations' (else the weights')."""
    warn_if_apart(params, config)
    x_BTD = embed(as_batch(tokens, params), params, "tok_embeddings", dtype=dtype)
    x_BTD = decode(x_BTD, params, config, cache=cache, block=block)
    return unembed(x_BTD, params)
