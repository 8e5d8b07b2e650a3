"""What the endpoints are asked, as checked frozen values: a body in, or an error that names the field."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llama3_scratch.inference.choices import CHAT_SAMPLING, MAX_BIAS, SamplingChoice
from llama3_scratch.serving.body_fields import Fields
from llama3_scratch.serving.errors import ApiError
from llama3_scratch.text.openai_messages import dialog_of, tool_names, tools_of
from llama3_scratch.text.tool_prompts import Message, Tool

MAX_N = 4  # answers to a prompt
MAX_TOP_LOGPROBS = 20
MAX_STOPS, MAX_STOP_CHARACTERS = 16, 256  # Continue sends long lists; the search for them costs at every token
MAX_TOKENS = 2**20  # that can be asked for; the context ends an answer long before
MAX_PROMPTS, MAX_INPUTS, MAX_TOOLS, MAX_BIASES = 128, 2_048, 128, 1_024
COMPLETION_TOKENS = 16  # of a completion that doesn't say how many: OpenAI's


@dataclass(frozen=True)
class Sampled:
    """What both kinds of answers share: how tokens are drawn, where an answer ends, and how it is told."""

    model: str | None
    sampling: SamplingChoice
    max_tokens: int | None  # None: as many as the context has room for
    n: int
    stream: bool
    include_usage: bool
    ignore_eos: bool
    logprobs: int | None  # likeliest tokens to tell beside each one; None: tell nothing


@dataclass(frozen=True)
class ChatRequest:
    """A chat that is to be gone on with; a last message of the assistant's is the beginning of the answer."""

    messages: tuple[Message, ...]
    sampled: Sampled
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "auto"  # "none", "auto", "required", or a tool's name behind a colon: ":get_weather"
    parallel_tool_calls: bool = True
    schema: Mapping[str, Any] | bool | None = None  # of the JSON that the answer is; True: any object

    @property
    def callable(self) -> frozenset[str]:
        """The names of the tools that the answer may call."""
        return frozenset() if self.tool_choice == "none" else tool_names(list(self.tools))

    @property
    def forced(self) -> tuple[Tool, ...]:
        """The tools of which the answer has to call one."""
        if self.tool_choice == "required":
            return self.tools
        return tuple(tool for tool in self.tools if f":{tool['function']['name']}" == self.tool_choice)


@dataclass(frozen=True)
class CompletionRequest:
    """Texts, or tokens, that are to be gone on with."""

    prompts: tuple[str | tuple[int, ...], ...]
    sampled: Sampled
    echo: bool = False  # begin each answer with its prompt


@dataclass(frozen=True)
class EmbeddingRequest:
    model: str | None
    inputs: tuple[str | tuple[int, ...], ...]
    base64: bool = False
    dimensions: int | None = None  # the first ones alone, normalised again


@dataclass(frozen=True)
class TextRequest:
    """What is to be cut into tokens: a text, or a chat."""

    model: str | None
    text: str | None = None
    messages: tuple[Message, ...] = ()
    tools: tuple[Tool, ...] = ()
    add_special: bool = True
    with_pieces: bool = False


def chat_request(body: Mapping[str, Any]) -> ChatRequest:
    fields = Fields(body)
    messages = dialog_of(fields.get("messages"))
    wants = fields.flag("logprobs")
    top = fields.whole("top_logprobs", None, minimum=0, maximum=MAX_TOP_LOGPROBS)
    if top is not None and not wants:
        raise ApiError(400, "top_logprobs: goes with logprobs true", param="top_logprobs")
    tools, choice = _tools(fields), _tool_choice(fields)
    if choice not in ("none", "auto") and not tools:
        raise ApiError(400, "tool_choice: asks for a call, and there are no tools", param="tool_choice")
    request = ChatRequest(
        tuple(messages),
        _sampled(fields, max_tokens=_chat_tokens(fields), logprobs=(top or 0) if wants else None),
        tools,
        choice,
        fields.flag("parallel_tool_calls", True),
        _schema(fields),
    )
    if request.sampled.ignore_eos and (request.schema is not None or request.forced):
        raise ApiError(400, "ignore_eos: an answer by a schema ends where the schema does", param="ignore_eos")
    if choice.startswith(":") and not request.forced:
        raise ApiError(400, f"tool_choice: {choice[1:99]} isn't among the tools", param="tool_choice")
    return request


def completion_request(body: Mapping[str, Any]) -> CompletionRequest:
    fields = Fields(body)
    if fields.get("suffix") not in (None, ""):
        raise ApiError(
            400, "suffix: this model goes on with a text, it fills no gaps; leave suffix out", param="suffix"
        )
    if fields.get("best_of") not in (None, 1):
        raise ApiError(400, "best_of: isn't supported; ask for n answers and choose among them", param="best_of")
    prompts = _prompts(fields, "prompt", MAX_PROMPTS)
    limit = fields.whole("max_tokens", COMPLETION_TOKENS, minimum=0, maximum=MAX_TOKENS)
    echo = fields.flag("echo")
    if limit == 0 and not echo:
        raise ApiError(400, "max_tokens: expected 1 or more, or 0 with echo true", param="max_tokens")
    top = fields.whole("logprobs", None, minimum=0, maximum=MAX_TOP_LOGPROBS)
    sampled = _sampled(fields, max_tokens=limit, logprobs=top)
    if len(prompts) * sampled.n > MAX_PROMPTS:
        many = f"n: {len(prompts)} prompts with n {sampled.n} are more than {MAX_PROMPTS} answers"
        raise ApiError(400, many, param="n")
    return CompletionRequest(prompts, sampled, echo)


def embedding_request(body: Mapping[str, Any]) -> EmbeddingRequest:
    fields = Fields(body)
    return EmbeddingRequest(
        fields.text("model") or None,
        _prompts(fields, "input", MAX_INPUTS),
        fields.one_of("encoding_format", ("float", "base64"), "float") == "base64",
        fields.whole("dimensions", None, minimum=1),
    )


def text_request(body: Mapping[str, Any]) -> TextRequest:
    """Of `tokenize`: `content` (llama.cpp's name) or `prompt` (vLLM's), or `messages`."""
    fields = Fields(body)
    chat = fields.get("messages") is not None
    text = fields.text("content", fields.text("prompt"))
    if not chat and text is None:
        raise ApiError(400, "content: expected a text, got nothing", param="content")
    return TextRequest(
        fields.text("model") or None,
        text,
        tuple(dialog_of(fields.get("messages"))) if chat else (),
        _tools(fields),
        fields.flag("add_special", fields.flag("add_special_tokens", False)),
        fields.flag("with_pieces"),
    )


def token_list(body: Mapping[str, Any]) -> tuple[int, ...]:
    """Of `detokenize`."""
    fields = Fields(body)
    tokens = fields.get("tokens")
    if not isinstance(tokens, list) or not all(map(_is_id, tokens)):
        raise fields.wrong("tokens", "a list of token ids")
    return tuple(tokens)


def _tools(fields: Fields) -> tuple[Tool, ...]:
    tools = tools_of(fields.get("tools"))
    if len(tools) > MAX_TOOLS:
        raise ApiError(400, f"tools: expected at most {MAX_TOOLS}, got {len(tools)}", param="tools")
    return tuple(tools)


def _tool_choice(fields: Fields) -> str:
    given = fields.get("tool_choice")
    if isinstance(given, dict):
        function = Fields(given, "tool_choice.").object("function")
        name = None if function is None else function.text("name")
        if not name:
            raise fields.wrong("tool_choice", 'none, auto, required, or {"type": "function", "function": {"name": …}}')
        return f":{name}"
    return fields.one_of("tool_choice", ("none", "auto", "required"), "auto")


def _schema(fields: Fields) -> Mapping[str, Any] | bool | None:
    form = fields.object("response_format")
    if form is None:
        return None
    kind = form.one_of("type", ("text", "json_object", "json_schema"), "text")
    if kind == "text":
        return None
    inner = form.object("json_schema")
    if kind == "json_object":
        schema = form.get("schema")  # llama.cpp's way to say one
        return schema if isinstance(schema, dict) else True
    if inner is None:
        raise form.wrong("json_schema", "an object with name and schema")
    schema = inner.get("schema")
    if not isinstance(schema, dict):
        raise inner.wrong("schema", "a JSON schema")
    return schema


def _chat_tokens(fields: Fields) -> int | None:
    """None: as many as the context has room for."""
    older = fields.whole("max_tokens", None, minimum=1, maximum=MAX_TOKENS)
    return fields.whole("max_completion_tokens", older, minimum=1, maximum=MAX_TOKENS)


def _sampled(fields: Fields, *, max_tokens: int | None, logprobs: int | None) -> Sampled:
    n = fields.whole("n", 1, minimum=1, maximum=MAX_N)
    stream = fields.flag("stream")
    options = fields.object("stream_options")
    if options is not None and not stream:
        raise ApiError(400, "stream_options: goes with stream true", param="stream_options")
    sampling = SamplingChoice(
        temperature=fields.number("temperature", CHAT_SAMPLING.temperature, minimum=0, maximum=2),
        top_p=fields.number("top_p", CHAT_SAMPLING.top_p, minimum=0, maximum=1) or 1e-6,  # 0 keeps the likeliest
        top_k=max(0, fields.whole("top_k", 0, minimum=-1)),  # −1 is vLLM's word for all
        min_p=fields.number("min_p", 0.0, minimum=0, maximum=1),
        repeat_penalty=_repeat_penalty(fields),
        presence_penalty=fields.number("presence_penalty", 0.0, minimum=-2, maximum=2),
        frequency_penalty=fields.number("frequency_penalty", 0.0, minimum=-2, maximum=2),
        logit_bias=_logit_bias(fields),
        seed=_seed(fields),
        stop=_stops(fields),
    )
    return Sampled(
        fields.text("model") or None,
        sampling,
        max_tokens,
        n,
        stream,
        options is not None and options.flag("include_usage"),
        fields.flag("ignore_eos"),
        logprobs,
    )


def _logit_bias(fields: Fields) -> tuple[tuple[int, float], ...]:
    biases = fields.object("logit_bias")
    if biases is None:
        return ()
    found: list[tuple[int, float]] = []
    for name in biases.names:
        if not re.fullmatch(r"\d{1,9}", name, re.ASCII) or len(found) == MAX_BIASES:
            raise fields.wrong("logit_bias", f"at most {MAX_BIASES} token ids with numbers")
        found.append((int(name), biases.number(name, 0.0, minimum=-MAX_BIAS, maximum=MAX_BIAS)))
    return tuple(found)


def _repeat_penalty(fields: Fields) -> float:
    """llama.cpp's name, else vLLM's."""
    other = fields.number("repetition_penalty", 1.0, above=0, maximum=10)
    return fields.number("repeat_penalty", other, above=0, maximum=10)


def _seed(fields: Fields) -> int:
    """OpenAI's are signed, torch's not; −1 is a random one, as for llama.cpp."""
    seed = fields.whole("seed", -1, minimum=-(2**63), maximum=2**64 - 1)
    return seed if seed == -1 else seed % 2**64


def _stops(fields: Fields) -> tuple[str, ...]:
    value = fields.get("stop")
    stops: Sequence[Any] = () if value is None else (value,) if isinstance(value, str) else value
    if not isinstance(stops, Sequence) or len(stops) > MAX_STOPS:
        raise fields.wrong("stop", f"a text or at most {MAX_STOPS}")
    if not all(isinstance(stop, str) and 0 < len(stop) <= MAX_STOP_CHARACTERS for stop in stops):
        raise fields.wrong("stop", f"texts of 1 to {MAX_STOP_CHARACTERS} characters")
    return tuple(dict.fromkeys(stops))


def _prompts(fields: Fields, name: str, most: int) -> tuple[str | tuple[int, ...], ...]:
    """A text, texts, a list of ids, or lists of ids."""
    value = fields.get(name)
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and value:
        if all(map(_is_id, value)):
            return (tuple(value),)
        if len(value) > most:
            raise fields.wrong(name, f"at most {most} of them")
        if all(isinstance(one, str) for one in value):
            return tuple(value)
        if all(isinstance(one, list) and one and all(map(_is_id, one)) for one in value):
            return tuple(map(tuple, value))
    raise fields.wrong(name, "a text, a list of texts, a list of token ids, or a list of such lists")


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
