"""The tiny world of the tests: a Llama whose every dimension is a different number, seeded weights, real data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from llama3_scratch.config import Config, RopeScaling
from llama3_scratch.init import init
from llama3_scratch.linear import Params

# D=48 L=5 H=6 G=2 (R=3) V=67 F=40, K=8, J=4
CONFIG = Config(48, 5, 6, 2, 67, 40, rope_scaling=RopeScaling(32.0), max_seq_len=4096)


def params(config: Config = CONFIG, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Params:
    """Weights wild enough for a wrong eps or an unpermuted query to show: matrices N(0, 0.3), norms 1 + 0.2 N(0, 1)."""
    return init(config, seed=seed, std=0.3, norm_std=0.2, dtype=dtype)


def tokens(batch: int, length: int, config: Config = CONFIG, *, seed: int = 1) -> torch.Tensor:
    """Random token ids: tokens_BT."""
    return torch.randint(config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


def data(name: str) -> Path:
    """A file of the shared test data; the test is skipped, saying so, where it's absent."""
    root = Path(os.environ.get("LLAMA3_SCRATCH_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (root / name).exists():
        pytest.skip(f"{name} is not in {root}; set LLAMA3_SCRATCH_DATA to the folder that has it")
    return root / name
