"""Chat templates of many models, chats and tools to lay out, and what transformers makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llama3_scratch.text.byte_level import to_alphabet
from llama3_scratch.text.hf_tokenizer import read_tokenizer_json
from llama3_scratch.text.tokenizer import PATTERN, Tokenizer

MERGES = [(b"\n", b"\n"), (b" ", b"a"), (b"a", b"b"), (b" a", b"b"), (b"\n\n", b"\n"), (b":", b"\n"), (b"<", b"|")]
CONTROL = [
    *("<s>", "</s>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>"),
    *("<|im_start|>", "<|im_end|>", "[INST]", "[/INST]", "<|user|>", "<|system|>", "<|assistant|>", "<|end|>"),
    *("<start_of_turn>", "<end_of_turn>", "<|User|>", "<|Assistant|>"),
]
# One of each kind that models come with.
TEMPLATES = {
    "chatml": "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "chatml-bos": "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
    "{{ '<|im_end|>\n' }}{% endfor %}{{ '<|im_start|>assistant\n' }}",
    "chatml-default-system": """
        {%- if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] %}{% set rest = messages[1:] %}
        {%- else %}{% set first = 'Be ab.' %}{% set rest = messages %}{% endif -%}
        <|im_start|>system
        {{- '\n' ~ first }}<|im_end|>
        {%- for m in rest %}{{ '\n<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' }}{% endfor -%}
        {% if add_generation_prompt %}{{ '\n<|im_start|>assistant\n' }}{% endif %}""",
    "chatml-stripped": "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content | trim + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "chatml-thinking": """{% for m in messages %}{% set c = m.content %}
{% if m.role == 'assistant' and '</think>' in c %}{% set c = c.split('</think>')[-1] %}{% endif %}
{{ '<|im_start|>' + m.role + '\n' + c + '<|im_end|>\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}""",
    "zephyr": """{% for m in messages %}
{% if m['role'] == 'user' %}
{{ '<|user|>\n' + m['content'] + eos_token }}
{% elif m['role'] == 'system' %}
{{ '<|system|>\n' + m['content'] + eos_token }}
{% elif m['role'] == 'assistant' %}
{{ '<|assistant|>\n'  + m['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}""",
    "mistral": """{{ bos_token }}{% for m in messages %}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must alternate: user, assistant, user …') }}
    {%- endif %}
    {%- if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}
    {%- else %}{{ ' ' + m.content + eos_token }}{% endif %}
{%- endfor %}""",
    "gemma": """{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('No system role') }}{% endif %}
{% for m in messages %}{% set role = 'model' if m.role == 'assistant' else m.role %}
{{ '<start_of_turn>' + role + '\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}
{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}""",
    "llama2": """{% if messages[0].role == 'system' %}
{%- set system = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}
{%- set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}
{%- for m in rest %}{% if loop.index0 == 0 %}{% set content = system + m.content %}
{%- else %}{% set content = m.content %}{% endif %}
{%- if m.role == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
{%- elif m.role == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}""",
    "alpaca": """{% for m in messages %}{% if m.role == 'user' %}{{ '### Instruction:\n' + m.content + '\n\n' }}
{%- elif m.role == 'assistant' %}{{ '### Response:\n' + m.content + eos_token + '\n\n' }}
{%- else %}{{ m.content + '\n\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}""",
    "vicuna": """{% for m in messages %}{% if m.role == 'system' %}{{ m.content + ' ' }}
{%- elif m.role == 'user' %}{{ 'USER: ' + m.content + ' ' }}
{%- else %}{{ 'ASSISTANT: ' + m.content + eos_token }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}ASSISTANT:{% endif %}""",
    "phi": "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
    "deepseek": """{% set ns = namespace(system='', first=true) %}
{%- for m in messages %}{% if m.role == 'system' %}{% set ns.system = ns.system + m.content %}{% endif %}{% endfor %}
{{- bos_token ~ ns.system }}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.first = false %}{{ '<|User|>' + m.content }}{% endif %}
{%- if m.role == 'assistant' %}{{ '<|Assistant|>' + m.content.split('</think>')[-1] + eos_token }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|Assistant|>' }}{% endif %}""",
    "macros": """{%- macro turn(role, content) %}{{ '<|im_start|>' ~ role ~ '\n' ~ content ~ '<|im_end|>\n' }}
{%- endmacro -%}
{% set kept = messages | selectattr('role', 'ne', 'tool') | list %}{% for m in kept %}{{ turn(m.role, m.content) }}
{%- if loop.index > 3 %}{% break %}{% endif %}{% endfor %}{{ turn('note', kept | length) }}<|im_start|>assistant
""",
    "llama3": "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = "
    "'<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}",
    "llama3.1": """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{% set date_string = strftime_now("%d %b %Y") %}
    {%- else %}{% set date_string = "26 Jul 2024" %}{% endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}{% set messages = messages[1:] %}
{%- else %}{% set system_message = "" %}{% endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{%- if tools is not none %}{{ "Environment: ipython\n" }}{% endif %}
{{- "Cutting Knowledge Date: December 2023\nToday Date: " + date_string + "\n\n" + system_message + "<|eot_id|>" }}
{%- if tools is not none %}
    {{- "<|start_header_id|>user<|end_header_id|>\n\nGiven the following functions, please respond with a JSON for " }}
    {{- "a function call with its proper arguments that best answers the given prompt.\n\nRespond in the format " }}
    {{- '{"name": function name, "parameters": dictionary of argument name and its value}.Do not use variables.\n\n' }}
    {%- for tool in tools %}{{- tool | tojson(indent=4) + "\n\n" }}{% endfor %}
    {{- messages[0]['content'] | trim + "<|eot_id|>" }}{% set messages = messages[1:] %}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls | length == 1 %}{{ raise_exception("One tool call at once!") }}{% endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
        {{- '{"name": "' + tool_call.name + '", "parameters": ' }}{{ tool_call.arguments | tojson }}{{ "}<|eot_id|>" }}
    {%- else %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\n\n" }}
        {{- message.content | tojson + "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}
""",
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>{% generation %}{{ m.content }}"
    "<|end|>{% endgeneration %}\n{% else %}{{ '<|' + m.role + '|>' + m.content }}{% endif %}{% endfor %}<|assistant|>",
    "json": "{{ messages | tojson(indent=1) }}{{ messages }}{{ pad_token }}{{ documents }}<|assistant|>",
}


def chat(roles: str, *contents: str) -> list[dict[str, Any]]:
    named = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return [{"role": named[role], "content": contents[index % len(contents)]} for index, role in enumerate(roles)]


CALLED = [
    *chat("u", "Hi"),
    {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"é": "<a> ab", "n": [1, None]}}]},
    *chat("t", "2"),
]


def model(folder: Path, template: str | None = None, **settings: Any) -> Path:
    """A Hugging Face folder's tokenizer: bytes, a few merges, and the control tokens of every kind of chat."""
    tokens = [bytes([byte]) for byte in range(256)] + [a + b for a, b in MERGES]
    ids = {token: id for id, token in enumerate(tokens)}
    # Merges in the order of their ids, as a trainer writes them.
    control = {name: len(tokens) + id for id, name in enumerate(CONTROL)}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    document = {
        "version": "1.0",
        "added_tokens": [{"id": id, "content": name, "special": True, **flags} for name, id in control.items()],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": {to_alphabet(token): id for token, id in ids.items()},
            "merges": [[to_alphabet(a), to_alphabet(b)] for a, b in MERGES],
        },
    }
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", **settings}
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(document))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def read(folder: Path, template: str, **settings: Any) -> Tokenizer:
    return read_tokenizer_json(model(folder, template, **settings))


def as_transformers_sees(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {**message, "tool_calls": [{"type": "function", "function": call} for call in message["tool_calls"]]}
        if "tool_calls" in message
        else message
        for message in messages
    ]


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Météo <a> & 'b'",
            "parameters": {"type": "object", "properties": {"city": {"type": "string", "default": None}}},
        },
    },
    {"type": "function", "function": {"name": "f"}},
]
HERMES = """{%- if tools %}<|im_start|>system
{%- if messages[0].role == 'system' %}{{ '\n' + messages[0].content + '\n' if messages[0].content }}
{%- set messages = messages[1:] %}{% endif %}
{{ '\n# Tools\n' }}
You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{% for tool in tools %}{{ tool | tojson + '\n' }}{% endfor -%}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>
{% endif %}{% for m in messages %}{{ '<|im_start|>' + m.role }}
{%- if m.role == 'tool' %}{{ '\n<tool_response>\n' + m.content + '\n</tool_response>' }}
{%- else %}{{ '\n' + (m.content or '') if m.content or not m.tool_calls }}
{%- for call in m.tool_calls or [] %}
    {{- '\n<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson }}
    {{- '}\n</tool_call>' }}
{%- endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
