"""The sizes: Meta's table and names, what follows from them, and what can't be."""

from dataclasses import replace

import pytest

from llama3_scratch.config import OFFICIAL, RopeScaling, expected, hidden_dim, official_name, rope_factor
from llama3_scratch.errors import UsageError
from tests import tiny

# Meta's table: parameters, head width, bytes of the KV cache a token in bf16.
PUBLISHED = {
    "llama3-8b": (8_030_261_248, 128, 131_072),
    "llama3-70b": (70_553_706_496, 128, 327_680),
    "llama3.1-8b": (8_030_261_248, 128, 131_072),
    "llama3.1-70b": (70_553_706_496, 128, 327_680),
    "llama3.1-405b": (405_853_388_800, 128, 516_096),
    "llama3.2-1b": (1_235_814_400, 64, 32_768),
    "llama3.2-3b": (3_212_749_824, 128, 114_688),
    "llama3.3-70b": (70_553_706_496, 128, 327_680),
}


def test_official_sizes():
    found = {name: (config.n_parameters, config.head_dim, config.kv_bytes(1)) for name, config in OFFICIAL.items()}
    assert found == PUBLISHED
    assert replace(OFFICIAL["llama3.2-1b"], tied=False).n_parameters == 1_498_482_688
    assert {name for name, config in OFFICIAL.items() if config.tied} == {"llama3.2-1b", "llama3.2-3b"}


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_rope(name):
    config = OFFICIAL[name]
    if name.startswith("llama3-"):
        assert (config.rope_scaling, config.max_seq_len) == (None, 8192)
    else:
        factor = 32.0 if "3.2" in name else 8.0
        assert (config.rope_scaling, config.max_seq_len) == (RopeScaling(factor, 1.0, 4.0, 8192), 131_072)
    assert rope_factor(config)[0] == (32.0 if "3.2" in name else 8.0)
    assert rope_factor(replace(config, head_dim=32))[0] == 8.0, "another model than Meta's"
    assert (config.rope_theta, config.norm_eps, config.vocab_size) == (500_000.0, 1e-5, 128_256)


@pytest.mark.parametrize(
    "spelling, name",
    [
        ("llama3-8b", "llama3-8b"),
        ("Meta-Llama-3-8B-Instruct", "llama3-8b"),
        ("meta-llama/Meta-Llama-3-70B", "llama3-70b"),
        ("meta-llama/Llama-3.1-8B", "llama3.1-8b"),
        ("Llama3.1-405B-Instruct", "llama3.1-405b"),
        ("3.2-1b", "llama3.2-1b"),
        ("LLAMA_3.2_3B", "llama3.2-3b"),
        ("llama3.3-70b-instruct", "llama3.3-70b"),
        ("llama3.3-8b", None),  # never published
        ("llama3.2-11b", None),
        ("meta-llama/Llama-3.2-11B-Vision", None),
        ("meta-llama/Llama-3.1-405B-Instruct-FP8", None),
        ("meta-llama/Llama-3.2-1B-Instruct-SpinQuant_INT4_EO8", None),
        ("meta-llama/Llama-Guard-3-8B", None),
        ("meta-llama/Llama-2-7b", None),
        ("someone/Llama-3.1-8B", None),
        ("38b", None),
        ("", None),
    ],
)
def test_names(spelling, name):
    assert official_name(spelling) == name


@pytest.mark.parametrize(
    "numbers, hidden",
    [
        ((4096, 1024, 1.3), 14336),
        ((8192, 4096, 1.3), 28672),
        ((16384, 4096, 1.2), 53248),
        ((2048, 256, 1.5), 8192),
        ((3072, 256, 1.0), 8192),
        ((4096, 256), 11008),  # Llama 2 7B
        ((576,), 1536),  # SmolLM2-135M
        ((64, 4), 172),  # stories260K
    ],
)
def test_hidden_size(numbers, hidden):
    assert hidden_dim(*numbers) == hidden


def test_every_tensor():
    shapes = expected(tiny.CONFIG)
    assert len(shapes) == 3 + 9 * 5
    layer = {name.removeprefix("layers.4."): shape for name, shape in shapes.items() if name.startswith("layers.4.")}
    assert layer == {
        "attention_norm.weight": (48,),
        "attention.wq.weight": (48, 48),
        "attention.wk.weight": (16, 48),
        "attention.wv.weight": (16, 48),
        "attention.wo.weight": (48, 48),
        "ffn_norm.weight": (48,),
        "feed_forward.w1.weight": (40, 48),
        "feed_forward.w3.weight": (40, 48),
        "feed_forward.w2.weight": (48, 40),
    }
    assert (shapes["tok_embeddings.weight"], shapes["norm.weight"], shapes["output.weight"]) == (
        (67, 48),
        (48,),
        (67, 48),
    )


@pytest.mark.parametrize(
    "changes, said",
    [
        pytest.param({"dim": 48.0}, "dim must be a whole number of at least 1, got 48.0", id="F077"),
        pytest.param({"n_layers": True}, "n_layers must be a whole number", id="F077-true"),
        pytest.param({"vocab_size": 0}, "vocab_size must be a whole number of at least 1, got 0", id="F079"),
        pytest.param(
            {"n_heads": 5, "head_dim": None}, "n_heads must divide dim, got dim=48, n_heads=5, unless head", id="F081"
        ),
        pytest.param(
            {"n_heads": 48, "head_dim": None},
            "dim / n_heads must be even, since RoPE turns pairs, got 48 / 48 = 1",
            id="F081-odd",
        ),
        pytest.param({"head_dim": 7}, "head_dim must be even, since RoPE turns pairs, got 7$", id="head_dim-odd"),
        pytest.param({"head_dim": 0}, "head_dim must be a whole number of at least 1, got 0", id="head_dim-0"),
        pytest.param({"head_dim": 8.0}, "head_dim must be a whole number of at least 1, got 8.0", id="head_dim-float"),
        pytest.param({"n_kv_heads": 4}, "n_kv_heads must divide n_heads, got n_heads=6, n_kv_heads=4", id="F082"),
    ],
)
def test_impossible_sizes(changes, said):
    with pytest.raises(UsageError, match=said):
        replace(tiny.CONFIG, **changes)
