"""The official sizes shrunk: the head widths, head ratios, RoPE and tying of each, few layers, little width."""

from __future__ import annotations

import torch

from llama3_scratch.config import Config, RopeScaling, hidden_dim
from llama3_scratch.init import init
from llama3_scratch.stored import Params

EIGHT, THIRTY_TWO = RopeScaling(8.0), RopeScaling(32.0)

# name: (config, multiple_of, ffn_dim_multiplier), the last two as Meta's params.json would have them
SHAPES: dict[str, tuple[Config, int, float | None]] = {
    "3-8b": (Config(512, 2, 4, 1, 211, hidden_dim(512, 64, 1.3)), 64, 1.3),
    "3-70b": (Config(512, 2, 8, 1, 211, hidden_dim(512, 128, 1.3)), 128, 1.3),
    "3.1-8b": (Config(512, 2, 8, 2, 211, hidden_dim(512, 64, 1.3), rope_scaling=EIGHT), 64, 1.3),
    "3.1-405b": (Config(512, 2, 16, 1, 211, hidden_dim(512, 128, 1.2), rope_scaling=EIGHT), 128, 1.2),
    "3.2-1b": (Config(256, 2, 4, 1, 211, hidden_dim(256, 32, 1.5), rope_scaling=THIRTY_TWO, tied=True), 32, 1.5),
    "3.2-3b": (Config(384, 2, 3, 1, 211, hidden_dim(384, 32, 1.0), rope_scaling=THIRTY_TWO, tied=True), 32, 1.0),
}


def params(config: Config, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Params:
    """Matrices N(0, 0.06): at Hugging Face's 0.02 a wrong RoPE factor or eps is smaller than any tolerance."""
    return init(config, seed=seed, std=0.06, norm_std=0.2, dtype=dtype)
