"""PEFT's folders: read, written and computed as PEFT does, and what is wrong with one told by name."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llama3_scratch.checkpoint.adapters import add_adapters
from llama3_scratch.checkpoint.check import check as check_names
from llama3_scratch.checkpoint.load import Checkpoint
from llama3_scratch.checkpoint.peft import read_peft
from llama3_scratch.checkpoint.peft_out import write_peft
from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.model import forward
from llama3_scratch.params.hf_layout import half_split, interleaved
from llama3_scratch.params.lora import adapter, attach, detach, stack, trainable
from llama3_scratch.params.quantize import dequantize, quantize
from tests import tiny
from tests.compare import check
from tests.forms import trained
from tests.hf_reference import ALL, doubled, hf_model, their_model, wide

CONFIG = replace(tiny.CONFIG, n_layers=2)
TOKENS_BT = tiny.tokens(2, 30)
Q = "base_model.model.model.layers.0.self_attn.q_proj"


OPTIONS = {
    "LoRA": {},
    "all-linear": {"target_modules": "all-linear"},
    "all biases": {"bias": "all"},
    "biases of adapters": {"bias": "lora_only"},
    "a name that isn't there": {"target_modules": ["q_proj", "c_attn"]},
    "fan in, fan out": {"fan_in_fan_out": True},
    "nothing to save": {"modules_to_save": []},
    "a layer's number": {"layers_to_transform": 1},
    "layers and a pattern": {"layers_to_transform": [0], "layers_pattern": "layers"},
    "layers and patterns": {"layers_to_transform": [1], "layers_pattern": ["h", "layers"]},
    "no layers": {"layers_to_transform": []},
    "a path and layers": {"target_modules": ["q_proj", "model.layers.0.mlp.up_proj"], "layers_to_transform": [1]},
    "but for some": {"exclude_modules": ["q_proj", "layers.1.mlp.up_proj"]},
    "but for a pattern": {"exclude_modules": r".*\.0\..*"},
    "all-linear but for some": {"target_modules": "all-linear", "exclude_modules": ["gate_proj"]},
    "a pattern with an end": {"target_modules": r"model\.layers\.\d\.self_attn\.(q|o)_proj"},
    "a pattern with a flag": {"target_modules": r"(?i).*\.(K_PROJ|up_proj)"},
    "alternatives of which the first is shorter": {
        "target_modules": r"model.layers.0.mlp.up|model.layers.0.mlp.up_proj"
    },
    "anchored patterns": {
        "rank_pattern": {r"^model\.layers\.0\.self_attn\.q_proj": 2},
        "alpha_pattern": {"q_proj|v_proj": 3},
    },
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "of some": {"target_modules": ["q_proj", "down_proj"]},
    "with the head": {"target_modules": [*ALL, "lm_head"]},
    "a pattern": {"target_modules": r".*\.(k|v)_proj"},
    "rslora": {"use_rslora": True},
    "DoRA": {"use_dora": True},
    "rslora and DoRA": {"use_dora": True, "use_rslora": True},
    "patterns": {
        "rank_pattern": {"q_proj": 3, r"layers\.1\.mlp\.\w+": 5},
        "alpha_pattern": {"k_proj": 11, "model.layers.0.mlp.up_proj": 2.5},
    },
    "one layer": {"layers_to_transform": [1]},
    "whole weights too": {"modules_to_save": ["lm_head", "embed_tokens", "norm"]},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_f206_f207_an_adapter_of_pefts_computes_the_same_here(tmp_path, options):
    params = tiny.params(CONFIG)
    model = their_model(params, CONFIG, **options)
    model.save_pretrained(tmp_path)
    made = stack(params, read_peft(tmp_path, CONFIG))
    check_names(made, CONFIG, "here")
    with torch.no_grad(), wide():
        wanted = model.double()(TOKENS_BT).logits
    check(forward(TOKENS_BT, doubled(made), CONFIG), wanted, 1e-6)
    without = forward(TOKENS_BT, doubled(params), CONFIG)
    assert (without - wanted).abs().max() > 0.1


@pytest.mark.parametrize("options", [{}, {"rslora": True}, {"dora": True}, {"targets": ["wv", "output"]}], ids=str)
def test_f206_f207_an_adapter_of_ours_computes_the_same_there(tmp_path, options):
    peft = pytest.importorskip("peft", reason="the parity extra: pip install -e '.[parity]'")
    params = tiny.params(CONFIG)
    made = trained(attach(params, CONFIG, rank=4, alpha=6, seed=3, **options))
    if "dora" not in options:  # ranks and scales that differ
        more = adapter(trained(attach(params, CONFIG, rank=3, alpha=2, targets=["w2", "wq"], seed=4)))
        made = stack(made, {name: tensor for name, tensor in more.items() if "layers.1" in name})
    write_peft(tmp_path / "out", made, CONFIG, base="tiny", rslora="rslora" in options)
    model = peft.PeftModel.from_pretrained(hf_model(params, CONFIG), tmp_path / "out").eval()
    with torch.no_grad(), wide():
        wanted = model.double()(TOKENS_BT).logits
    check(forward(TOKENS_BT, doubled(made), CONFIG), wanted, 1e-6)
    again = stack(params, read_peft(tmp_path / "out", CONFIG))
    assert set(again) == set(made)
    for name, tensor in made.items():
        check(again[name], tensor, 1e-6, name) if tensor.ndim else again[name].item() == pytest.approx(tensor.item())


@pytest.mark.parametrize("form", [None, "int8", "nf4"])
def test_f206_whole_weights_take_the_place_of_the_models(tmp_path, form):
    config = replace(tiny.TILED, n_layers=2, vocab_size=272, tied=True)
    params = tiny.params(config)
    model = their_model(params, config, modules_to_save=["lm_head"])
    model.save_pretrained(tmp_path)
    base = params if form is None else quantize(params, form)
    made = add_adapters(checkpoint(tmp_path, config=config, params=base), [tmp_path])
    check_names(made.params, made.config, "here")
    assert not made.config.tied and made.params["tok_embeddings.weight"] is base["tok_embeddings.weight"]
    trained = load_file(tmp_path / "adapter_model.safetensors")["base_model.model.lm_head.weight"]
    assert made.params["output.weight"].equal(trained) and "output.int8_scales" not in made.params
    with pytest.raises(UsageError, match=r"output.weight: two adapters bring it whole, which don't add up"):
        add_adapters(checkpoint(tmp_path, config=config, params=base), [tmp_path, tmp_path])


def test_f206_whole_weights_that_are_missing_or_of_other_sizes(folder):
    says(folder, modules_to_save=["lm_head"])
    refused(folder, r"lm_head is missing, though adapter_config.json names 5 modules")
    holds(folder, lambda its: its.update({"base_model.model.lm_head.weight": torch.ones(68, 48)}))
    refused(
        folder,
        r"lm_head.weight: 68 rows, this model's vocabulary has 67: the adapter was trained after its size was ch",
    )
    holds(folder, lambda its: its.update({"base_model.model.lm_head.weight": torch.ones(67, 49)}))
    refused(
        folder, r"lm_head.weight: shape \[67, 49\], expected \[67, 48\] \(this model's weight is 67 × 48; the adapter"
    )
    says(folder, modules_to_save=["score"])
    refused(folder, r"modules_to_save: 'score' is no module of a Llama, expected some of embed_tokens, ")


def test_an_adapter_of_a_norm(folder):
    holds(folder, lambda its: its.update({"base_model.model.model.norm.lora_A.weight": torch.ones(4, 48)}))
    refused(folder, r"model.norm.lora_A.weight: an adapter of a norm, which none has")


def test_f209_the_copy_of_a_tied_head_leaves_it_tied(tmp_path):
    config = replace(CONFIG, vocab_size=272, tied=True)
    params = tiny.params(config)
    model = their_model(params, config, target_modules=["lm_head"])
    model.save_pretrained(tmp_path)
    assert "base_model.model.lm_head.base_layer.weight" in load_file(tmp_path / "adapter_model.safetensors")
    made = add_adapters(checkpoint(tmp_path, config=config, params=params), [tmp_path])
    assert made.config.tied and made.params["output.weight"] is made.params["tok_embeddings.weight"]
    with torch.no_grad(), wide():
        wanted = model.double()(TOKENS_BT).logits
    check(forward(TOKENS_BT, doubled(made.params), CONFIG), wanted, 1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": "all-linear"},
        {"target_modules": "ALL-LINEAR"},
        {"target_modules": [*ALL, "c_attn"], "bias": "all"},
        {"fan_in_fan_out": True, "inference_mode": False, "task_type": None},
        {"modules_to_save": None, "layers_pattern": None, "megatron_config": None, "trainable_token_indices": None},
    ],
    ids=str,
)
def test_f206_a_configuration_written_by_hand_means_here_what_it_means_there(tmp_path, changes):
    """PEFT writes what it made of its options; others write the options themselves."""
    peft = pytest.importorskip("peft", reason="the parity extra: pip install -e '.[parity]'")
    params = tiny.params(CONFIG)
    their_model(params, CONFIG).save_pretrained(tmp_path)
    says(tmp_path, **changes)
    model = peft.PeftModel.from_pretrained(hf_model(params, CONFIG), tmp_path).eval()
    with torch.no_grad(), wide():
        wanted = model.double()(TOKENS_BT).logits
    check(forward(TOKENS_BT, doubled(stack(params, read_peft(tmp_path, CONFIG))), CONFIG), wanted, 1e-6)


def test_f206_an_adapter_that_the_configuration_leaves_out(folder):
    """PEFT would ignore it without a word."""
    for change in (
        {"target_modules": ["q_proj"]},
        {"exclude_modules": ["down_proj"]},
        {"target_modules": "all-linear", "exclude_modules": ".*down_proj"},
        {"target_modules": ["q_proj", "model.layers.0.mlp.down_proj"], "layers_to_transform": [0, 1]},
    ):
        says(folder, **{"target_modules": ["q_proj", "down_proj"], "exclude_modules": None} | change)
        refused(folder, r"mlp.down_proj has an adapter, which adapter_config.json doesn't name among its modules and P")


def test_f206_a_bias_among_the_tensors(folder):
    says(folder, bias="all")
    for key in (f"{Q}.bias", f"{Q}.base_layer.bias", f"{Q}.lora_B.bias"):
        holds(folder, lambda its, key=key: its.update({key: torch.ones(48)}))
        refused(folder, rf"{key}: a bias, and no linear of a Llama has one")
        holds(folder, lambda its, key=key: its.pop(key))


@pytest.mark.parametrize("how", ["modules_to_save", "save_embedding_layers", "lm_head's adapter"])
def test_an_adapter_with_more_tokens_says_so(tmp_path, how):
    peft = pytest.importorskip("peft", reason="the parity extra: pip install -e '.[parity]'")
    model = hf_model(tiny.params(CONFIG), CONFIG)
    model.resize_token_embeddings(69)
    options = {
        "modules_to_save": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
        "save_embedding_layers": {"target_modules": ["q_proj"]},
        "lm_head's adapter": {"target_modules": ["q_proj", "lm_head"]},
    }[how]
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=4, **options))
    model.save_pretrained(tmp_path, save_embedding_layers=how == "save_embedding_layers")
    refused(
        tmp_path, r"(embed_tokens|lm_head)\.\S+: 69 rows, this model's vocabulary has 67: the adapter was trained after"
    )


def loss(logits_BTV):
    return torch.nn.functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), TOKENS_BT[:, 1:].flatten())


@pytest.mark.parametrize("dora", [False, True])
def test_gradients_are_pefts(tmp_path, dora):
    params = tiny.params(CONFIG)
    model = their_model(params, CONFIG, use_dora=dora)
    model.save_pretrained(tmp_path)
    made = doubled(stack(params, read_peft(tmp_path, CONFIG)))
    with wide():
        loss(model.double()(TOKENS_BT).logits).backward()
    learnt = trainable(made)
    for tensor in learnt.values():
        tensor.requires_grad_()
    loss(forward(TOKENS_BT, made, CONFIG)).backward()
    theirs = {name.replace(".default", ""): weight.grad for name, weight in model.named_parameters()}
    kinds = {"wq": "self_attn.q_proj", "wk": "self_attn.k_proj", "w2": "mlp.down_proj"}
    heads = {"wq": CONFIG.n_heads, "wk": CONFIG.n_kv_heads}
    for kind, module in kinds.items():
        stem = f"layers.1.{'feed_forward' if kind == 'w2' else 'attention'}.{kind}.adaptor"
        for part in ("A.weight", "B.weight", *["magnitude"] * dora):
            end = "lora_magnitude_vector.weight" if part == "magnitude" else f"lora_{part}"
            wanted = theirs[f"base_model.model.model.layers.1.{module}.{end}"]
            if kind in heads and part != "A.weight":
                wanted = interleaved(wanted, heads[kind])
            check(made[f"{stem}.{part}"].grad, wanted, 1e-9, f"{stem}.{part}")


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("form", ["int4", "nf4"])
def test_qlora_computes_what_peft_does_on_the_same_numbers(tmp_path, form, dora):
    config = replace(tiny.TILED, n_layers=2)
    base = quantize(tiny.params(config), form)
    model = their_model(dequantize(base, torch.float32), config, use_dora=dora)
    model.save_pretrained(tmp_path)
    made = stack(base, read_peft(tmp_path, config))
    tokens_BT = tiny.tokens(2, 30, config)
    with torch.no_grad(), wide():
        wanted = model.double()(tokens_BT).logits
    check(forward(tokens_BT, made, config, dtype=torch.float64), wanted, 1e-5)


def test_f207_rows_of_b_and_magnitudes_of_q_and_k_move_and_a_stays(tmp_path):
    made = trained(attach(tiny.params(CONFIG), CONFIG, rank=4, alpha=6, dora=True, seed=3))
    write_peft(tmp_path / "out", made, CONFIG)
    stored = load_file(tmp_path / "out" / "adapter_model.safetensors")
    q = "layers.0.attention.wq.adaptor"
    assert stored[f"{Q}.lora_A.weight"].equal(made[f"{q}.A.weight"])
    assert stored[f"{Q}.lora_B.weight"].equal(half_split(made[f"{q}.B.weight"], CONFIG.n_heads))
    assert stored[f"{Q}.lora_magnitude_vector"].equal(half_split(made[f"{q}.magnitude"], CONFIG.n_heads))
    assert not stored[f"{Q}.lora_B.weight"].equal(made[f"{q}.B.weight"])
    v = Q.replace("q_proj", "v_proj")
    assert stored[f"{v}.lora_B.weight"].equal(made["layers.0.attention.wv.adaptor.B.weight"])


@pytest.fixture
def folder(tmp_path):
    made = trained(attach(tiny.params(CONFIG), CONFIG, rank=4, alpha=6, targets=["wq", "w2"], seed=3))
    write_peft(tmp_path / "adapter", made, CONFIG, base="meta-llama/Tiny")
    return tmp_path / "adapter"


def says(folder, **fields):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def holds(folder, change):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def refused(folder, said, config=CONFIG):
    with pytest.raises(FileError, match=said) as caught:
        read_peft(folder, config)
    assert caught.value.exit_code == 3 and str(caught.value).startswith(f"{folder}")


def test_f197_no_folder_or_no_config(folder, tmp_path):
    refused(tmp_path / "nothing", "nothing: not found, expected the folder of an adapter with adapter_config.json and")
    (folder / "adapter_config.json").unlink()
    refused(folder, r"adapter_config.json: PEFT's adapter_config.json not found")


def test_f197_no_weights(folder):
    (folder / "adapter_model.safetensors").unlink()
    refused(folder, r"adapter_model.safetensors is missing, and adapter_model.bin too")


def test_f198_a_pickled_adapter_is_read_as_tensors_alone(folder, tmp_path):
    wanted = read_peft(folder, CONFIG)
    tensors = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(tensors, folder / "adapter_model.bin")
    found = read_peft(folder, CONFIG)
    assert set(found) == set(wanted) and all(found[name].equal(tensor) for name, tensor in wanted.items())
    torch.save({"weights": print}, folder / "adapter_model.bin")
    refused(folder, r"adapter_model.bin: refused: contains code \(GLOBAL print\)")


def test_f199_another_rank_than_the_config_says(folder):
    says(folder, r=5)
    refused(
        folder, rf"{Q}.lora_A.weight: shape \[4, 48\], expected \[5, 48\] \(from adapter_config.json's r or rank_pat"
    )


def test_f200_another_models_sizes(folder):
    refused(
        folder,
        rf"{Q}.lora_A.weight: shape \[4, 48\], expected \[4, 192\] \(this model's weight is 192 × 192; the adapter is",
        replace(tiny.TILED, n_layers=2),
    )
    refused(folder, r"layers.1.mlp.down_proj.lora_A.weight isn't part of an", replace(CONFIG, n_layers=1))
    refused(folder, r"layers.2.self_attn.q_proj, .* are missing, though .* names 6 ", replace(CONFIG, n_layers=3))


def checkpoint(path, *, config=CONFIG, params=None, chat_format=None):
    config = replace(config, vocab_size=272)
    made = tiny.params(config) if params is None else params
    return Checkpoint(config, made, tiny.tokenizer(chat_format), path)


@pytest.mark.parametrize(
    "base, path, warns",
    [
        ("meta-llama/Llama-3.2-1B", "models/tiny", True),
        ("meta-llama/Llama-3.2-1B", "models/llama3.2-1b-instruct", False),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "weights/smollm2-135m", False),
        ("meta-llama/Llama-3.2-1B", "Llama-3.2-1B/original", False),
        (None, "models/tiny", False),
    ],
)
def test_f200_another_models_name(folder, base, path, warns, tmp_path, caplog):
    says(folder, base_model_name_or_path=base)
    add_adapters(checkpoint(tmp_path / path), [folder])
    messages = [record.getMessage() for record in caplog.records]
    assert [f"an adapter for {base}, the model is" in message for message in messages] == [True] * warns


@pytest.mark.parametrize("field", ["target_modules", "modules_to_save"])
@pytest.mark.parametrize("names", [["c_attn", "query_key_value"], "h\\..*query"])
def test_f201_modules_that_no_llama_has(folder, field, names):
    says(folder, **{field: names})
    wrong = "'c_attn', 'query_key_value' is" if isinstance(names, list) else ".*query' fits"
    refused(folder, rf"adapter_config.json: {field}: {wrong} no module of a Llama, expected some of embed_")


def test_f201_a_tensor_of_a_module_that_no_llama_has(folder):
    holds(
        folder, lambda its: its.update({"base_model.model.model.layers.0.attn.c_proj.lora_A.weight": torch.ones(4, 48)})
    )
    refused(
        folder, r"layers.0.attn.c_proj.lora_A.weight isn't part of an adapter of this model, expected names as base_"
    )


def test_f202_a_without_b(folder):
    holds(folder, lambda its: its.pop(f"{Q}.lora_B.weight"))
    refused(folder, rf"adapter_model.safetensors: {Q}.lora_B.weight is missing, there is lora_A.weight")


def test_f202_a_whole_module_is_missing(folder):
    holds(folder, lambda its: [its.pop(f"{Q}.lora_{part}.weight") for part in "AB"])
    refused(folder, r"model.layers.0.self_attn.q_proj is missing, though adapter_config.json names 4 modules")


def test_f203_an_empty_b(folder):
    holds(folder, lambda its: its.update({f"{Q}.lora_B.weight": torch.empty(0)}))
    refused(
        folder, rf"{Q}.lora_B.weight: shape \[0\], expected \[48, 4\]; an empty tensor is what saving from within Deep"
    )


def test_f203_no_tensors(folder):
    holds(folder, dict.clear)
    refused(folder, r"adapter_model.safetensors: holds no tensors")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_f204_not_a_number(folder, bad):
    holds(folder, lambda its: its[f"{Q}.lora_B.weight"][7, 3].fill_(bad))
    refused(folder, rf"adapter_model.safetensors: {Q}.lora_B.weight: 1 NaN or infinite values, the first at \[7, 3\]")


@pytest.mark.parametrize(
    "alpha, said", [(0, "got 0"), (-8, "got -8"), ("16", "got '16'"), (None, "lora_alpha is missing")]
)
def test_f205_alpha(folder, alpha, said):
    says(folder, lora_alpha=alpha)
    refused(folder, f"adapter_config.json: lora_alpha .*{said}|{said}")


def test_f205_alpha_is_nan(folder):
    says(folder, lora_alpha=math.nan)
    refused(folder, "adapter_config.json: NaN isn't a number")


@pytest.mark.parametrize(
    "field, value",
    [
        ("peft_type", "LOHA"),
        ("task_type", "SEQ_CLS"),
        ("bias", "some"),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", "corda"),
        ("init_lora_weights", "lora_ga"),
        ("init_lora_weights", "mica"),
        ("init_lora_weights", "loftq"),
        ("task_type", "FEATURE_EXTRACTION"),
        ("task_type", "SEQ_2_SEQ_LM"),
        ("megatron_config", {"tensor_model_parallel_size": 1}),
        ("kasa_config", {"beta": 1}),
        ("ensure_weight_tying", True),
        ("lora_bias", True),
        ("use_qalora", True),
        ("layer_replication", [[0, 2]]),
        ("trainable_token_indices", [3]),
        ("target_parameters", ["x"]),
        ("alora_invocation_tokens", [1]),
        ("a_field_of_next_year", 1),
    ],
)
def test_f206_what_is_not_computed_here_is_refused(folder, field, value):
    says(folder, **{field: value})
    refused(folder, rf"adapter_config.json: {field} is .*, which isn't supported; ")


def test_f206_use_dora_and_magnitudes_go_together(folder):
    says(folder, use_dora=True)
    refused(folder, rf"{Q}.lora_magnitude_vector is missing, there is lora_A.weight, lora_B.weight")
    holds(folder, lambda its: its.update({f"{Q}.lora_magnitude_vector": torch.ones(48)}))
    says(folder, use_dora=False)
    refused(folder, rf"{Q}.lora_magnitude_vector: a magnitude, but use_dora isn't true; see adapter_config.json")
    says(folder, use_dora="yes")
    refused(folder, r"adapter_config.json: use_dora must be true or false, got 'yes'")


def test_f206_an_adapter_of_the_embedding(folder):
    says(folder, target_modules=["q_proj", "down_proj", "embed_tokens"])
    refused(folder, r"target_modules: an adapter of the embedding \(embed_tokens\) isn't supported")


@pytest.mark.parametrize(
    "field, value, said",
    [
        ("rank_pattern", {"q_proj": 0}, "q_proj must be a whole number from 1"),
        ("rank_pattern", [1], r"rank_pattern must be an object, got \[1\]"),
        ("alpha_pattern", {"q_(proj": 2}, "alpha_pattern: .* isn't a pattern"),
        ("exclude_modules", "q_(proj", r"exclude_modules: .* isn't a pattern"),
        ("exclude_modules", 3, r"exclude_modules must be a list of names or a pattern, got 3"),
        ("layers_to_transform", ["1"], r"layers_to_transform must be a list of whole numbers, got \['1'\]"),
        ("target_modules", [1], r"target_modules must be a list of names or a pattern, got \[1\]"),
        ("target_modules", {"q_proj": 1}, "target_modules must be a list of names or a pattern, got"),
        ("target_modules", "q_(proj", r"target_modules: .*q_\(proj.* isn't a pattern"),
    ],
)
def test_f206_patterns(folder, field, value, said):
    says(folder, **{field: value})
    refused(folder, said)


def test_other_dtypes(folder):
    holds(folder, lambda its: its.update({f"{Q}.lora_B.weight": torch.ones(48, 4).char()}))
    refused(folder, rf"{Q}.lora_B.weight: dtype int8, expected float32, bfloat16 or float16")


def base_with(rows, chat_format="llama3"):
    """A checkpoint whose special tokens' rows of the embedding are `rows` of what they were."""
    model = checkpoint(Path("models/tiny"), chat_format=chat_format)
    embedding = model.params["tok_embeddings.weight"].clone()
    embedding[256:] = rows(embedding[256:])
    return replace(model, params=model.params | {"tok_embeddings.weight": embedding})


@pytest.mark.parametrize(
    "rows", [lambda rows: 1e-6 * rows, lambda rows: rows[:1].expand_as(rows)], ids=["small", "alike"]
)
def test_f210_a_chat_format_of_untrained_tokens_warns(folder, rows, caplog):
    add_adapters(base_with(rows), [folder])
    [record] = [record for record in caplog.records if "never trained" in record.getMessage()]
    assert record.levelno == logging.WARNING
    assert (
        "its chat format has <|start_header_id|>, <|end_header_id|>, <|eot_id|>, whose embeddings were never"
        in record.getMessage()
    )


@pytest.mark.parametrize("where", ["chat_template.jinja", "tokenizer_config.json"])
def test_f210_a_chat_template_beside_the_adapter_counts_too(folder, where, caplog):
    base = base_with(lambda rows: 0 * rows)
    base.tokenizer.set_chat_format(None)
    add_adapters(base, [folder])
    assert "never trained" not in caplog.text
    (folder / where).write_text(json.dumps({"chat_template": "{{ messages }}"}))
    add_adapters(base, [folder])
    assert "never trained" in caplog.text


def test_f210_trained_tokens_pass(folder, caplog):
    add_adapters(base_with(lambda rows: 0.3 * rows), [folder])
    assert "never trained" not in caplog.text


def test_f211_folders_add_up_in_any_order(folder, tmp_path):
    made = trained(attach(tiny.params(CONFIG), CONFIG, rank=2, alpha=5, targets=["wq", "wk"], seed=4), seed=9)
    write_peft(tmp_path / "second", made, CONFIG)
    one, other = (
        add_adapters(checkpoint(tmp_path / "Tiny"), folders)
        for folders in ([folder, tmp_path / "second"], [tmp_path / "second", folder])
    )
    tokens_BT = tiny.tokens(1, 20)
    check(forward(tokens_BT, one.params, one.config), forward(tokens_BT, other.params, other.config), 2e-5)
    for first in ([folder], [tmp_path / "second"]):
        alone = forward(tokens_BT, add_adapters(checkpoint(tmp_path / "Tiny"), first).params, one.config)
        assert not forward(tokens_BT, one.params, one.config).allclose(alone, atol=1e-2)


def test_a_folder_is_replaced_whole_and_strangers_are_kept(folder):
    params = tiny.params(CONFIG)
    made = attach(params, CONFIG, rank=1, alpha=1, seed=0)
    write_peft(folder, made, CONFIG)
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 1
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"holds notes.txt"):
        write_peft(folder, made, CONFIG)
    with pytest.raises(UsageError, match="there are no adapters to write"):
        write_peft(folder, detach(made), CONFIG)
    some = attach(
        attach(params, CONFIG, rank=1, alpha=1, targets=["wq"], seed=0),
        CONFIG,
        rank=1,
        alpha=1,
        dora=True,
        targets=["wk"],
        seed=0,
    )
    with pytest.raises(UsageError, match="some of the adapters are DoRA's, some aren't"):
        write_peft(folder, some, CONFIG)
