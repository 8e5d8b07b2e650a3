"""Mistakes that others made, each of which a parity check must find."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llama3_scratch import model
from llama3_scratch.cache import Cache, Mask, visible
from llama3_scratch.config import Config, RopeScaling
from llama3_scratch.model import attend, block, forward
from llama3_scratch.stored import Params
from tests import tiny
from tests.hf_reference import halves

CONFIG, T = tiny.CONFIG, 128  # in f64 that suffices; a longer text would only show more
STEPS = 8  # of which each is one cached token at the end
Mutation = Callable[[pytest.MonkeyPatch, Params, Config], tuple[Params, Config]]


def ours(params: Params, config: Config) -> Tensor:
    """logits_BTV of the tokens that HF's were made from: most in one call, the last ones a token at a time."""
    tokens_BT, cache = tiny.tokens(1, T, config), Cache(T)
    pieces = [tokens_BT[:, : T - STEPS], *tokens_BT[:, T - STEPS :].split(1, dim=1)]
    return torch.cat([forward(piece, params, config, cache=cache, block=model.block) for piece in pieces], dim=1)


def config_with(**fields) -> Mutation:
    return lambda patch, params, config: (params, replace(config, **fields))


def weights(change: Callable[[str, Tensor, Params], Tensor]) -> Mutation:
    return lambda patch, params, config: ({n: change(n, t, params) for n, t in params.items()}, config)


def swapped(first: str, second: str) -> Mutation:
    def change(name: str, tensor: Tensor, params: Params) -> Tensor:
        other = name.replace(first, second) if first in name else name.replace(second, first)
        return params[other]

    return weights(change)


def function(name: str, make: Callable[[Callable], Callable]) -> Mutation:
    """The model's function `name` replaced by what `make` makes of it."""

    def mutate(patch, params, config):
        patch.setattr(model, name, make(getattr(model, name)))
        return params, config

    return mutate


def attending(wrong: Callable[..., Tensor]) -> Mutation:
    def mutate(patch, params, config):
        patch.setattr(model, "block", lambda *arguments, **state: block(*arguments, attend=wrong, **state))
        return params, config

    return mutate


def state(**changes: Callable[[Tensor], Tensor]) -> Mutation:
    """The rotation or the mask that every layer is given, changed."""

    def mutate(patch, params, config):
        def wrong(*arguments, **given):
            T = arguments[0].shape[1]
            given["mask_BTS"] = visible(given["mask_BTS"], T, given["cache"].span(T), arguments[0].device)
            return block(*arguments, **given | {key: change(given[key]) for key, change in changes.items()})

        patch.setattr(model, "block", wrong)
        return params, config

    return mutate


def tiled_heads(q_BTGRK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, mask_BTS: Mask) -> Tensor:
    """Query head h reads key/value head h mod G, where it should be h // R."""
    G, R = q_BTGRK.shape[2:4]
    q_BTRGK = q_BTGRK.flatten(2, 3).unflatten(2, (R, G))
    out_BTGRK = attend(q_BTRGK.transpose(2, 3), k_BSGK, v_BSGK, mask_BTS)
    return out_BTGRK.transpose(2, 3).flatten(2, 3).unflatten(2, (G, R))


def scaled_by_width(q_BTGRK: Tensor, *rest: Tensor) -> Tensor:
    return attend(q_BTGRK * math.sqrt(q_BTGRK.shape[-1] / CONFIG.dim), *rest)


def softmax_in_f32(q_BTGRK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, mask_BTS: Mask) -> Tensor:
    return attend(q_BTGRK.float(), k_BSGK.float(), v_BSGK.float(), mask_BTS).double()


def one_turn_less(rotation_BTJ: Tensor) -> Tensor:
    """A prompt's positions right, but a cached step's one too low: a shift of all would cancel out."""
    return rotation_BTJ if rotation_BTJ.shape[1] > 1 else rotation_BTJ / rotations_of_one()


def rotations_of_one() -> Tensor:
    return model.rotations(torch.ones(1, 1), CONFIG, torch.float64)


def future_by_one(visible_BTS: Tensor) -> Tensor:
    return visible_BTS | visible_BTS.roll(1, dims=-1)


def past_by_one(visible_BTS: Tensor) -> Tensor:
    """A query doesn't see itself, but for the first, which would see nothing."""
    T, S = visible_BTS.shape[1:]
    itself = torch.arange(S) == torch.arange(S - T, S)[:, None]
    return visible_BTS & (~itself | (torch.arange(S) == 0))


def half_rotation(rotate: Callable) -> Callable:
    """HF's pairs (k, k + K/2) on rows that are in Meta's order."""

    def wrong(x_BTHK: Tensor, rotation_BTJ: Tensor) -> Tensor:
        J = rotation_BTJ.shape[-1]
        neighbours = x_BTHK.unflatten(-1, (2, J)).transpose(-1, -2).flatten(-2)
        return rotate(neighbours, rotation_BTJ).unflatten(-1, (J, 2)).transpose(-1, -2).flatten(-2)

    return wrong


def unpermuted(names: tuple[str, ...]) -> Mutation:
    return weights(lambda name, tensor, params: halves(tensor, CONFIG.head_dim) if name.endswith(names) else tensor)


def without_mean(_: Callable) -> Callable:
    """LayerNorm, which subtracts the mean, in the place of RMSNorm."""

    def wrong(x_BTD: Tensor, params: Params, name: str, config: Config) -> Tensor:
        return F.layer_norm(x_BTD, x_BTD.shape[-1:], params[f"{name}.weight"], eps=config.norm_eps)

    return wrong


def activated_by(activation: Callable[[Tensor], Tensor]) -> Callable:
    def make(_: Callable) -> Callable:
        def wrong(x_BTD: Tensor, params: Params, name: str) -> Tensor:
            hidden_BTF = activation(model.linear(x_BTD, params, f"{name}.w1"))
            return model.linear(hidden_BTF * model.linear(x_BTD, params, f"{name}.w3"), params, f"{name}.w2")

        return wrong

    return make


MUTATIONS: dict[str, Mutation] = {
    "factor 8 for 32": config_with(rope_scaling=RopeScaling(8.0)),
    "no scaling": config_with(rope_scaling=None),
    "scaling of Llama 3's 4096": config_with(rope_scaling=RopeScaling(32.0, original_context=4096)),
    "high_freq_factor 3": config_with(rope_scaling=RopeScaling(32.0, high_freq_factor=3.0)),
    "theta 10000": config_with(rope_theta=10_000.0),
    "eps 1e-6": config_with(norm_eps=1e-6),
    "eps 1e-3": config_with(norm_eps=1e-3),
    "a layer short": config_with(n_layers=CONFIG.n_layers - 1),
    "q and k permuted as HF's": unpermuted(("wq.weight", "wk.weight")),
    "k permuted as HF's": unpermuted(("wk.weight",)),
    "half rotation": function("rotate", half_rotation),
    "rotation the other way": function("rotate", lambda rotate: lambda x, rotation: rotate(x, rotation.conj())),
    "no rotation": function("rotate", lambda rotate: lambda x, rotation: x),
    "gate and up swapped": swapped(".w1.", ".w3."),
    "k and v swapped": swapped(".wk.", ".wv."),
    "norms swapped": swapped(".attention_norm.", ".ffn_norm."),
    "first layers swapped": swapped("layers.0.", "layers.1."),
    "head tied though stored": weights(lambda n, t, params: params[n.replace("output", "tok_embeddings")]),
    "norm weights left out": weights(lambda n, t, params: torch.ones_like(t) if t.ndim == 1 else t),
    "weights rounded to bf16": weights(lambda n, t, params: t.bfloat16().double()),
    "weights rounded to f16": weights(lambda n, t, params: t.half().double()),
    "LayerNorm": function("rms_norm", without_mean),
    "gelu": function("swiglu", activated_by(F.gelu)),
    "relu": function("swiglu", activated_by(F.relu)),
    "heads tiled": attending(tiled_heads),
    "scores over the root of dim": attending(scaled_by_width),
    "attention in f32": attending(softmax_in_f32),
    "mask one too far": state(mask_BTS=future_by_one),
    "mask one too short": state(mask_BTS=past_by_one),
    "no mask": state(mask_BTS=torch.ones_like),
    "cached steps one position early": state(rotation_BTJ=one_turn_less),
}  # fmt: skip
