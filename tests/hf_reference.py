"""Hugging Face's `LlamaForCausalLM` with our weights in it, and patches that let it run in f64 throughout."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from llama3_scratch.config import Config
from llama3_scratch.stored import Params

_PARTS = {
    "attention_norm": "input_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
}
_ENDS = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}


def hf_name(name: str) -> str:
    """The key in Hugging Face's state dict that holds what Meta calls `name`."""
    stem = name.removesuffix(".weight")
    if stem in _ENDS:
        return f"{_ENDS[stem]}.weight"
    _, layer, part = stem.split(".", 2)
    return f"model.layers.{layer}.{_PARTS[part]}.weight"


def halves(weight: Tensor, head_dim: int) -> Tensor:
    """Rows of a query or key weight from Meta's order (pairs are neighbours) to HF's (a pair is K/2 rows apart)."""
    return weight.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)


def to_hf(params: Params, config: Config) -> dict[str, Tensor]:
    """`params` under HF's names, in HF's row order."""
    renamed = {}
    for name, tensor in params.items():
        turned = name.endswith(("wq.weight", "wk.weight"))
        renamed[hf_name(name)] = halves(tensor, config.head_dim) if turned else tensor
    return renamed


def hf_config(config: Config):
    transformers = pytest.importorskip("transformers", reason="the parity extra: pip install -e '.[parity]'")
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    if scaling := config.rope_scaling:
        rope |= {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context,
        }
    return transformers.LlamaConfig(
        hidden_size=config.dim,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.n_kv_heads,
        head_dim=config.head_dim,
        vocab_size=config.vocab_size,
        intermediate_size=config.hidden_dim,
        rms_norm_eps=config.norm_eps,
        rope_parameters=rope,
        max_position_embeddings=131_072,
        tie_word_embeddings=config.tied,
        attn_implementation="sdpa",  # HF's eager one takes its softmax in f32, whatever the dtype
    )


def hf_model(params: Params, config: Config):
    """LlamaForCausalLM in the dtype of `params`, in f64 to be run within `wide()`."""
    settings = hf_config(config)
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM(settings).to(params["norm.weight"].dtype).eval()
    model.load_state_dict(to_hf(params, config), strict=True)
    return model


@contextlib.contextmanager
def wide() -> Iterator[None]:
    """Within, HF's RMSNorm and rotary embedding compute in f64, where they'd otherwise drop to f32."""
    pytest.importorskip("transformers", reason="the parity extra: pip install -e '.[parity]'")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.llama import modeling_llama as llama

    def norm(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    def rotary(self, x, position_ids):
        formula = ROPE_INIT_FUNCTIONS.get(self.rope_type, self.compute_default_rope_parameters)
        # HF's own formulas, which name torch.float, evaluated in f64.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "float", torch.float64)
            inv_freq, _ = formula(self.config)
        assert inv_freq.dtype == torch.float64
        angles = position_ids[..., None].double() * inv_freq
        both = torch.cat((angles, angles), dim=-1)
        return both.cos(), both.sin()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llama.LlamaRMSNorm, "forward", norm)
        patch.setattr(llama.LlamaRotaryEmbedding, "forward", rotary)
        yield


ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def doubled(params):
    return {name: tensor.double() for name, tensor in params.items()}


def their_model(params, config, **options):
    """PEFT's model of these weights in f32, with numbers in its adapter as after some steps."""
    peft = pytest.importorskip("peft", reason="the parity extra: pip install -e '.[parity]'")
    options = {"r": 4, "lora_alpha": 6, "target_modules": ALL} | options
    model = peft.get_peft_model(hf_model(params, config), peft.LoraConfig(task_type="CAUSAL_LM", **options))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if "lora_magnitude" in name:
                weight.mul_(1 + 0.2 * noise)
            elif "lora_" in name:
                weight.copy_(0.1 * noise)
            elif weight.requires_grad:
                weight.add_(0.1 * noise)
    return model.eval()
