"""A training run of seconds: a Llama of two layers, a token a byte, its data and its plan."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from llama3_scratch.config import Config
from llama3_scratch.data.shards import Shards, write_shards
from llama3_scratch.init import init
from llama3_scratch.text.tokenizer import PATTERN, Tokenizer
from llama3_scratch.training.choices import TrainingPlan
from llama3_scratch.training.loop import Training

CONFIG = Config(
    dim=32,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    vocab_size=258,
    hidden_dim=48,
    rope_theta=1e4,
    max_seq_len=64,
    tied=True,
)
PLAN = TrainingPlan(steps=12, lr=3e-3, warmup=3, accumulate=2)


def bytes_tokenizer() -> Tokenizer:
    return Tokenizer(
        {bytes([byte]): byte for byte in range(256)},
        pattern=PATTERN,
        special_tokens={"<|begin_of_text|>": 256, "<|end_of_text|>": 257},
        bos_id=256,
        eos_id=257,
        stop_tokens=[257],
        chat_format=None,
        add_bos=True,
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    pick = random.Random(0).choice
    texts = [f"{pick('ABC')} {pick(['cat', 'dog', 'hen'])} {pick(['ran', 'sat'])} {number}." for number in range(400)]
    write_shards(texts, bytes_tokenizer(), folder, validation=0.1)
    return folder


def batches(data: Path, part: str = "train"):
    return Shards(data).batches(part, size=4, length=24, seed=1)


def training(data: Path, plan: TrainingPlan = PLAN, **changes) -> Training:
    params = init(CONFIG, seed=0, std=0.05, embedding_std=0.05)
    return Training(params, CONFIG, list(params), batches(data), plan, **changes)
