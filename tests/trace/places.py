"""The step of a trace in which each deliberate mistake shows first."""

from __future__ import annotations

# Mistake → the first step that differs from transformers' run.
ROTATION, BEFORE_LAYER_0 = "decode.rotation_BTJ", "layers.0.block.normed_BTD"
TURNED_Q, RAW_Q, RAW_K = (f"layers.0.attention.{name}" for name in ("q_BTHK.2", "q_BTHK", "k_BTGK"))
VISIBLE, SCORES, MASKED = (
    f"layers.0.attention.attend.{name}" for name in ("visible_BTS", "scores_BGRTS", "masked_BGRTS")
)
GATE, EMBEDDED = "layers.0.feed_forward.swiglu.gate_BTF", "tok_embeddings.embed.rows_BTD"
PLACE = {
    "factor 8 for 32": ROTATION,
    "no scaling": ROTATION,
    "scaling of Llama 3's 4096": ROTATION,
    "high_freq_factor 3": ROTATION,
    "theta 10000": ROTATION,
    "eps 1e-6": BEFORE_LAYER_0,
    "eps 1e-3": BEFORE_LAYER_0,
    "a layer short": "layers.4.block.normed_BTD",
    "q and k permuted as HF's": RAW_Q,
    "k permuted as HF's": RAW_K,
    "half rotation": TURNED_Q,
    "rotation the other way": TURNED_Q,
    "no rotation": TURNED_Q,
    "gate and up swapped": GATE,
    "k and v swapped": RAW_K,
    "norms swapped": BEFORE_LAYER_0,
    "first layers swapped": BEFORE_LAYER_0,
    "head tied though stored": "unembed.logits_BTV",
    "norm weights left out": BEFORE_LAYER_0,
    "weights rounded to bf16": EMBEDDED,
    "weights rounded to f16": EMBEDDED,
    "LayerNorm": BEFORE_LAYER_0,
    "gelu": GATE,
    "relu": GATE,
    "heads tiled": SCORES,
    "scores over the root of dim": SCORES,
    "attention in f32": SCORES,
    "mask one too far": MASKED,
    "mask one too short": MASKED,
    "no mask": MASKED,
    "cached steps one position early": f"pass1.{TURNED_Q}",
}
