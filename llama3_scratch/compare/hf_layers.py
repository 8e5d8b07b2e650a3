"""Hugging Face's transformers as the other side of a comparison: its own layers, filled with our weights.

One layer exists at a time, so that a model is compared in little more memory than it takes.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llama3_scratch.compare import tensor_names as names
from llama3_scratch.compare.difference import Difference, difference
from llama3_scratch.compare.tensor_names import ModelTensor
from llama3_scratch.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from llama3_scratch.config import Config
    from llama3_scratch.stored import Params

_FREQUENCY_TOLERANCE = 1e-6  # relative: transformers has RoPE's frequencies in f32 only
_HEAD_PIECE_ROWS = 1 << 14  # of the head turned into floats at once
_ATTENTION = "llama3_scratch"  # the name under which transformers knows the attention that is watched
_SOFTMAX = (names.SCORES, names.MASKED_SCORES, names.ATTENTION_WEIGHTS)


def require_transformers(what: str) -> None:
    """Raise UsageError where transformers isn't installed."""
    if not importlib.util.find_spec("transformers"):
        raise UsageError(f"{what} needs Hugging Face's transformers, which is missing: " + 'pip install -e ".[parity]"')


@dataclass
class HFModel:
    """Transformers' model on T tokens from position 0, in one dtype, its layers made one at a time of our weights."""

    params: Params
    config: Config
    dtype: torch.dtype
    settings: Any
    tables: tuple[Tensor, Tensor]  # cosines and sines, each 1TK
    frequencies: Difference

    def rotation(self) -> Tensor:
        """rotation_1TJ: its tables as complex numbers."""
        import torch

        J = self.config.head_dim // 2
        return torch.complex(*(table_1TK[..., :J].contiguous() for table_1TK in self.tables))

    def layer(self, x_BTD: Tensor, name: str) -> tuple[Tensor, dict[str, Tensor], dict[ModelTensor, Tensor]]:
        """Its layer `name` on x_BTD: what that returns; what each module returned, by Meta's name; and what went on
        between the modules, by the tensor of our model that it should equal. All heads are in Meta's order.
        """
        import torch
        from transformers.models.llama.modeling_llama import LlamaDecoderLayer

        from llama3_scratch.params.hf_layout import LAYER_MODULES, half_split, interleaved, rotated_heads
        from llama3_scratch.params.lora import merged_rows

        with torch.device("meta"):
            layer = LlamaDecoderLayer(self.settings, 0).eval()
        weights: dict[str, Tensor] = {}
        made: dict[str, Tensor] = {}
        between: dict[ModelTensor, Tensor] = {}
        G, R = self.config.n_kv_heads, self.config.n_heads // self.config.n_kv_heads

        def keep(step: str, heads: int | None, module: nn.Module, inputs: tuple[Tensor], out: Tensor) -> None:
            made[f"{name}.{step}"] = interleaved(out.movedim(-1, 0), heads).movedim(0, -1) if heads else out
            taken = {
                "attention.wo": names.ATTENTION_HEADS,
                "ffn_norm": names.AFTER_ATTENTION,
                "feed_forward.w2": names.HIDDEN,
            }.get(step)
            if taken:
                between[taken] = inputs[0].unflatten(-1, (G, R, -1)) if step == "attention.wo" else inputs[0]

        def attended(
            module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **options: Any
        ) -> tuple[Tensor, None]:
            from transformers.integrations.sdpa_attention import sdpa_attention_forward

            q_BTHK, k_BSGK = (interleaved(x.movedim(-1, 0), 1).movedim(0, -1).transpose(1, 2) for x in (query, key))
            between[names.TURNED_QUERIES], between[names.TURNED_KEYS] = q_BTHK, k_BSGK
            # Their kernel holds neither: scores and weights are taken from the q and k that it is given.
            scores_BGRTS = torch.einsum("btgrk,bsgk->bgrts", q_BTHK.unflatten(2, (G, R)), k_BSGK) * scaling
            future_TS = torch.ones(scores_BGRTS.shape[-2:], dtype=torch.bool, device=query.device).triu(1)
            masked_BGRTS = scores_BGRTS.masked_fill(future_TS, -torch.inf)
            between[names.SCORES], between[names.MASKED_SCORES] = scores_BGRTS, masked_BGRTS
            between[names.ATTENTION_WEIGHTS] = masked_BGRTS.softmax(-1)
            return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **options)

        for part, module in LAYER_MODULES.items():
            heads = rotated_heads(f"{name}.{part}", self.config)
            floats = merged_rows(self.params, f"{name}.{part}", self.dtype)
            weights[f"{module}.weight"] = half_split(floats, heads) if heads else floats
            layer.get_submodule(module).register_forward_hook(functools.partial(keep, part, heads))
        layer.load_state_dict(weights, assign=True)
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            _norm(norm, norm.weight)
        _watched_attention(attended)
        out = layer(x_BTD, position_embeddings=self.tables)
        return out, made | {name: out}, between

    def norm(self, x_BTD: Tensor) -> Tensor:
        """Its last norm of x_BTD."""
        from transformers.models.llama.modeling_llama import LlamaRMSNorm

        norm = LlamaRMSNorm(self.config.dim, self.config.norm_eps)
        return _norm(norm, self.params["norm.weight"].to(self.dtype))(x_BTD)

    def logits(self, x_BTD: Tensor) -> Tensor:
        """logits_BTV of the normed x_BTD."""
        import torch

        from llama3_scratch.params.lora import merged_rows

        starts = range(0, self.config.vocab_size, _HEAD_PIECE_ROWS)
        rows = (
            merged_rows(self.params, "output", self.dtype, slice(start, start + _HEAD_PIECE_ROWS)) for start in starts
        )
        return torch.cat([x_BTD @ some.T for some in rows], dim=-1)

    def steps(self, tokens_BT: Tensor, n_logits: int) -> Iterator[tuple[str, Tensor]]:
        """A pass through all of it: each tensor that our model has too, under the tracer's key for it.

        The head runs on the last `n_logits` tokens.
        """
        from llama3_scratch.linear import embed

        H, G, K = self.config.n_heads, self.config.n_kv_heads, self.config.head_dim
        yield names.ROTATION.key(), self.rotation()
        x_BTD = embed(tokens_BT, self.params, "tok_embeddings", dtype=self.dtype)
        yield names.EMBEDDED.key("tok_embeddings"), x_BTD
        for index in range(self.config.n_layers):
            name = f"layers.{index}"
            x_BTD, made, between = self.layer(x_BTD, name)
            attention, feed_forward = f"{name}.attention", f"{name}.feed_forward"
            yield names.ATTENTION_NORMED.key(name), made[f"{name}.attention_norm"]
            yield names.QUERIES.key(attention), made[f"{attention}.wq"].unflatten(-1, (H, K))
            yield names.KEYS.key(attention), made[f"{attention}.wk"].unflatten(-1, (G, K))
            yield names.VALUES.key(attention), made[f"{attention}.wv"].unflatten(-1, (G, K))
            for tensor in (names.TURNED_QUERIES, names.TURNED_KEYS, *_SOFTMAX, names.ATTENTION_HEADS):
                yield tensor.key(attention), between[tensor]
            yield names.ATTENDED.key(name), made[f"{attention}.wo"]
            yield names.AFTER_ATTENTION.key(name), between[names.AFTER_ATTENTION]
            yield names.FFN_NORMED.key(name), made[f"{name}.ffn_norm"]
            yield names.GATE.key(feed_forward), made[f"{feed_forward}.w1"]
            yield names.UP.key(feed_forward), made[f"{feed_forward}.w3"]
            yield names.HIDDEN.key(feed_forward), between[names.HIDDEN]
            yield names.FED.key(name), made[f"{feed_forward}.w2"]
            yield names.LAYER_OUTPUT.key(name), x_BTD
        x_BTD = self.norm(x_BTD)
        yield names.NORMED_OUTPUT.key(), x_BTD
        yield names.LOGITS.key(), self.logits(x_BTD[:, -n_logits:])


def hf_model(params: Params, config: Config, length: int, dtype: torch.dtype) -> HFModel:
    """Transformers' model for `length` tokens; its RoPE frequencies are compared with ours at once."""
    import torch
    from transformers import LlamaConfig
    from transformers.models.llama import modeling_llama as hf

    from llama3_scratch import model
    from llama3_scratch.checkpoint.hf_out import config_json

    _watched_attention(None)
    settings = LlamaConfig.from_dict(config_json(params, config, None), attn_implementation=_ATTENTION)
    freqs_J = model.rope_frequencies(config, torch.float32)
    theirs_J: Tensor = hf.LlamaRotaryEmbedding(settings).inv_freq
    if config.rope_divisors is not None:
        theirs_J = theirs_J / torch.tensor(config.rope_divisors)
    off = difference(
        "", freqs_J / theirs_J, torch.ones_like(theirs_J), _FREQUENCY_TOLERANCE
    )  # relative: ones have no std
    found = Difference("rope frequencies", off.worst, off.mean, theirs_J.std().item(), _FREQUENCY_TOLERANCE)
    # Their table is in f32; in f64 their side takes our frequencies, which were compared just now.
    wide_J = theirs_J if dtype == torch.float32 else model.rope_frequencies(config, dtype)
    angles_1TJ = torch.arange(length)[None, :, None].to(dtype) * wide_J
    angles_1TK = torch.cat((angles_1TJ, angles_1TJ), dim=-1)
    return HFModel(params, config, dtype, settings, (angles_1TK.cos(), angles_1TK.sin()), found)


def _watched_attention(function: Any) -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(_ATTENTION, function)


def _norm(norm: Any, weight: Tensor) -> nn.Module:
    """Transformers' RMSNorm with this weight; in f64 torch's own in its place, since theirs drops to f32."""
    import torch
    import torch.nn.functional as F

    norm.weight = torch.nn.Parameter(weight, requires_grad=False)
    if weight.dtype == torch.float64:
        norm.forward = lambda x: F.rms_norm(x, weight.shape, weight, norm.variance_epsilon)
    return norm
