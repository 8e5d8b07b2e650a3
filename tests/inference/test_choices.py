"""The choices: what each refuses, that flags have its defaults and bounds, and that all of it comes without torch."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import pytest

from llama3_scratch.caches.quantized import SLOTS_BY_BITS
from llama3_scratch.errors import UsageError
from llama3_scratch.inference import choices, sample
from llama3_scratch.inference.choices import (
    CHAT_SAMPLING,
    CacheChoice,
    DraftChoice,
    ModelChoice,
    PromptChoice,
    SamplingChoice,
)
from llama3_scratch.params import quantize
from llama3_scratch.system import cli
from llama3_scratch.terminal import flags
from llama3_scratch.text.tokenizer import CHAT_FORMATS

NAN, INF = float("nan"), float("inf")

BAD = [
    (ModelChoice, {"model": 5}, "`model`: expected a path or a name, got 5"),
    (ModelChoice, {"device": None}, "`device`: expected a text, got None"),
    (ModelChoice, {"dtype": "int8"}, "`dtype`: expected one of auto, float32, bfloat16, float16, float64, got 'int8'"),
    (ModelChoice, {"quantize": "int3"}, "`quantize`: expected one of int8-row, int8"),
    (ModelChoice, {"adapters": [1]}, r"`adapters`: expected a folder or several, got \[1\]"),
    (ModelChoice, {"rope_scale_factor": 0}, "`rope_scale_factor`: expected a number above 0, got 0"),
    (ModelChoice, {"allow_extra": "no"}, "`allow_extra`: expected True or False, got 'no'"),
    (ModelChoice, {"chat_format": "alpaca"}, "`chat_format`: expected one of llama3, chatml, template"),
    (CacheChoice, {"max_seq_len": 1}, "`max_seq_len`: expected a whole number at least 2, got 1"),
    (CacheChoice, {"kv_bits": 7}, "`kv_bits`: expected one of 16, 8, 4, got 7"),
    (CacheChoice, {"kv_k_bits": True}, "`kv_k_bits`: expected one of"),
    (CacheChoice, {"kv_group_size": 8}, "`kv_group_size` 8: goes with `kv_bits` 8 or 4"),
    (CacheChoice, {"kv_group_size": 8, "kv_bits": 16}, "`kv_group_size` 8: goes with"),
    (CacheChoice, {"sinks": 3}, "`sinks` goes with `sliding`"),
    (CacheChoice, {"sliding": 0}, "`sliding`: expected a whole number at least 1, got 0"),
    (DraftChoice, {"draft_tokens": 3}, "`draft_tokens` goes with `speculate`"),
    (DraftChoice, {"speculate": "lookup", "draft_tokens": 16}, "at least 1 and at most 15, got 16"),
    (PromptChoice, {"system": 3}, "`system`: expected a text, got 3"),
    (PromptChoice, {"raw": 1}, "`raw`: expected True or False, got 1"),
    (SamplingChoice, {"temperature": -0.1}, "`temperature`: expected a number at least 0, got -0.1"),
    (SamplingChoice, {"temperature": NAN}, "`temperature`: expected a number at least 0, got nan"),
    (SamplingChoice, {"temperature": INF}, "got inf"),
    (SamplingChoice, {"temperature": "hot"}, "got 'hot'"),
    (SamplingChoice, {"temperature": None}, "got None"),
    (SamplingChoice, {"top_p": 0}, "`top_p`: expected a number above 0 and at most 1, got 0"),
    (SamplingChoice, {"top_k": -1}, "`top_k`: expected a whole number at least 0, got -1"),
    (SamplingChoice, {"min_p": 1.1}, "`min_p`: expected a number at least 0 and at most 1"),
    (SamplingChoice, {"repeat_last_n": -2}, "`repeat_last_n`: "),
    (CacheChoice, {"kv_bit": 8}, "CacheChoice has no `kv_bit`; did you mean kv_bits?"),
    (CacheChoice, {"zzz": 8}, "CacheChoice has no `zzz`; there are max_seq_len, kv_bits, "),
    (SamplingChoice, {"presence_penalty": 2.5}, "`presence_penalty`: "),
    (SamplingChoice, {"frequency_penalty": math.nan}, "`frequency_penalty`: "),
    (SamplingChoice, {"logit_bias": {3: 101}}, "`logit_bias`: expected ids with numbers from -100 to 100"),
    (SamplingChoice, {"logit_bias": {-1: 1}}, "`logit_bias`: "),
    (SamplingChoice, {"logit_bias": {"a": 1}}, "`logit_bias`: "),
    (SamplingChoice, {"logit_bias": 5}, "`logit_bias`: "),
    (SamplingChoice, {"seed": 2**64}, "`seed`: "),
    (SamplingChoice, {"seed": 2**2000}, "`seed`: "),
    (SamplingChoice, {"max_tokens": 0}, "`max_tokens`: expected a whole number at least 1, got 0"),
    (SamplingChoice, {"max_tokens": 2.0}, "`max_tokens`: "),
    (SamplingChoice, {"max_tokens": True}, "`max_tokens`: "),
    (SamplingChoice, {"stop": [1]}, r"`stop`: expected a text or several, got \[1\]"),
    (SamplingChoice, {"stop": 1}, "`stop`: expected a text or several, got 1"),
    (SamplingChoice, {"stop": ["a", ""]}, "`stop`: expected some text, got an empty string"),
]


@pytest.mark.parametrize("kind, fields, message", BAD, ids=lambda value: str(value)[:40])
def test_f122_f126_f128_f129_f130_f212_what_a_choice_refuses(kind, fields, message):
    with pytest.raises(UsageError, match=message):
        kind(**fields)


def test_one_stands_for_several_and_choices_are_values():
    assert SamplingChoice(stop="a") == SamplingChoice(stop=["a"]) == SamplingChoice(stop=("a",))
    assert ModelChoice(adapters="a").adapters == ModelChoice(adapters=[Path("a")]).adapters == (Path("a"),)
    assert len({ModelChoice(), ModelChoice(), ModelChoice(device="cuda")}) == 2
    assert CacheChoice(kv_bits=8, kv_v_bits=4).bits == (8, 4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        SamplingChoice().seed = 3  # type: ignore[misc]


def test_a_random_seed_is_drawn_once_and_a_given_one_stays():
    drawn = SamplingChoice().seeded()
    assert drawn.seed >= 0 and drawn.seeded() is drawn
    assert SamplingChoice(seed=0).seeded().seed == 0


def _parsed(*argv: str, defaults: SamplingChoice | None = None):
    parser = cli.Parser("test", "")
    flags.add_model_flags(parser)
    flags.add_cache_flags(parser)
    flags.add_sliding_flags(parser)
    flags.add_sampling_flags(parser, defaults)
    return parser.parse_args(argv)


MADE_BY = {
    ModelChoice: flags.model_choice,
    CacheChoice: flags.cache_choice,
    DraftChoice: flags.draft_choice,
    PromptChoice: flags.prompt_choice,
    SamplingChoice: flags.sampling_choice,
}


def test_flags_have_the_choices_defaults():
    options = _parsed()
    for kind, made in MADE_BY.items():
        assert made(options) == kind()
    assert flags.sampling_choice(_parsed(defaults=CHAT_SAMPLING)) == CHAT_SAMPLING
    assert (CHAT_SAMPLING.temperature, CHAT_SAMPLING.top_p) == (0.6, 0.9)


FLAGS = {
    "--model": ("x", ModelChoice(model="x")),
    "--device": ("cuda:1", ModelChoice(device="cuda:1")),
    "--dtype": ("bfloat16", ModelChoice(dtype="bfloat16")),
    "--quantize": ("nf4", ModelChoice(quantize="nf4")),
    "--adapter": ("a", ModelChoice(adapters=(Path("a"),))),
    "--rope-scale-factor": ("32", ModelChoice(rope_scale_factor=32)),
    "--allow-extra": (None, ModelChoice(allow_extra=True)),
    "--chat-format": ("chatml", ModelChoice(chat_format="chatml")),
    "--max-seq-len": ("99", CacheChoice(max_seq_len=99)),
    "--kv-bits": ("8", CacheChoice(kv_bits=8)),
    "--kv-k-bits": ("16", CacheChoice(kv_k_bits=16)),
    "--kv-v-bits": ("4", CacheChoice(kv_v_bits=4)),
    "--sliding": ("9", CacheChoice(sliding=9)),
    "--speculate": ("lookup", DraftChoice(speculate="lookup")),
    "--date": ("26 Jul 2024", PromptChoice(date="26 Jul 2024")),
    "--temperature": ("0.5", SamplingChoice(temperature=0.5)),
    "--top-p": ("0.5", SamplingChoice(top_p=0.5)),
    "--top-k": ("5", SamplingChoice(top_k=5)),
    "--min-p": ("0.5", SamplingChoice(min_p=0.5)),
    "--repeat-penalty": ("1.5", SamplingChoice(repeat_penalty=1.5)),
    "--repeat-last-n": ("-1", SamplingChoice(repeat_last_n=-1)),
    "--presence-penalty": ("1.5", SamplingChoice(presence_penalty=1.5)),
    "--frequency-penalty": ("-0.5", SamplingChoice(frequency_penalty=-0.5)),
    "--seed": ("5", SamplingChoice(seed=5)),
    "--max-tokens": ("5", SamplingChoice(max_tokens=5)),
    "--stop": ("x", SamplingChoice(stop=("x",))),
}


@pytest.mark.parametrize("flag", FLAGS)
def test_each_flag_makes_its_choice_and_no_other(flag):
    value, wanted = FLAGS[flag]
    options = _parsed(flag, *([value] if value is not None else []))
    for kind, made in MADE_BY.items():
        assert made(options) == (wanted if kind is type(wanted) else kind())


def test_what_is_told_without_torch_is_what_the_rooms_have():
    assert set(choices.QUANTIZED) == set(quantize.FORMS)
    assert choices.CHAT_FORMATS == CHAT_FORMATS
    assert set(choices.KV_BITS) == set(SLOTS_BY_BITS)
    assert choices.REPEAT_LAST_N == sample.REPEAT_LAST_N


def test_choices_and_flags_need_no_torch():
    code = "import sys; from llama3_scratch.terminal import flags; from llama3_scratch.inference import loading\n"
    code += "flags.ModelChoice(model='x'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
