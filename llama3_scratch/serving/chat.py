"""`POST /v1/chat/completions`: the assistant's next message, whole or as it comes."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from starlette.responses import JSONResponse, Response

from llama3_scratch.errors import UsageError
from llama3_scratch.inference.grammar import Grammar
from llama3_scratch.serving.answer import Part, TokenLogprob
from llama3_scratch.serving.answering import make_answers
from llama3_scratch.serving.endpoint import Call
from llama3_scratch.serving.errors import ApiError
from llama3_scratch.serving.generation import Generation
from llama3_scratch.serving.prompts import chat_tokens
from llama3_scratch.serving.requests import ChatRequest, chat_request
from llama3_scratch.serving.responses import DONE, Chunks, chat_logprobs, new_id, usage, whole
from llama3_scratch.serving.streaming import send_stream
from llama3_scratch.text.tool_call_stream import ToolCallStream


async def chat(call: Call) -> Response | None:
    service, began = call.service, time.perf_counter()
    asked = chat_request(await call.json())
    adapter = service.adapter(asked.sampled.model)
    with service.place(asked.sampled.n):
        tools = asked.tools if asked.callable else ()
        prompt = await chat_tokens(service, asked.messages, tools, call.caller.salt)
        grammar = await service.apart(_grammar, call, asked)
        answers = make_answers(
            service, [prompt], asked.sampled, adapter=adapter, salt=call.caller.salt, grammar=grammar
        )
        async with Generation(service, answers, began, service.choice.max_seconds) as generation:
            choices = [_Choice(index, asked) for index in range(asked.sampled.n)]
            name = asked.sampled.model or service.name
            if asked.sampled.stream:
                await send_stream(call.send, _frames(call, asked, generation, choices, name))
                done = None
            else:
                async for parts in generation.parts(call.receive):
                    for part in parts:
                        choices[part.index].take(part)
                bodies = [choice.body() for choice in choices]
                done = JSONResponse(
                    whole(
                        new_id("chatcmpl"), "chat.completion", name, bodies, usage(answers), timings=generation.timings
                    )
                )
            call.told.finished(answers, [choice.finish_reason or "" for choice in choices])
            for answer in answers:
                service.said_before.keep(prompt, answer.tokens, answer.words.text, call.caller.salt)
            return done


def _grammar(call: Call, asked: ChatRequest) -> Grammar | None:
    """What the answer has to be, where anything is said of that: calls come before JSON by a schema.

    Raises ApiError for a schema that can't be followed. Takes up to a quarter of a second.
    """
    try:
        if asked.forced:
            return call.service.grammars.calls(asked.forced, several=asked.parallel_tool_calls)
        return None if asked.schema is None else call.service.grammars.json(asked.schema)
    except UsageError as error:
        param = "tools" if asked.forced else "response_format"
        raise ApiError(400, f"{param}: {error}", param=param) from error


class _Choice:
    """One answer on its way to the client: its content, and the tool calls that it may be instead."""

    def __init__(self, index: int, asked: ChatRequest) -> None:
        self.index = index
        self.finish_reason: str | None = None
        self._logprobs = asked.sampled.logprobs is not None
        self._calls = ToolCallStream(asked.callable) if asked.callable else None
        self._most_calls = None if asked.parallel_tool_calls else 1
        self._content = ""
        self._tool_calls: list[dict[str, Any]] = []
        self._tokens: list[TokenLogprob] = []  # whose text is held back, or of the whole answer

    def take(self, part: Part) -> tuple[str, list[TokenLogprob]]:
        """A part of the answer: the content that is certain by now, and its tokens."""
        content = part.text if self._calls is None else self._calls.feed(part.text)
        self._tokens += part.tokens
        if part.finish_reason:
            self.finish_reason = part.finish_reason
            if self._calls is not None:
                rest, calls = self._calls.finish()
                content += rest
                self._tool_calls = calls[: self._most_calls]
                self.finish_reason = "tool_calls" if calls else part.finish_reason
        self._content += content
        return content, self._tokens if content else []

    def told(self) -> None:
        """The tokens that `take` gave are with the client."""
        self._tokens = []

    def body(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": self._content, "refusal": None}
        if self._tool_calls:
            message |= {"content": None, "tool_calls": self._tool_calls}
        logprobs = chat_logprobs(self._tokens) if self._logprobs and not self._tool_calls else None
        return {"index": self.index, "message": message, "logprobs": logprobs, "finish_reason": self.finish_reason}

    def chunks(self, part: Part, made: Chunks) -> bytes:
        """The chunks that a part makes: content or tool calls, and the end."""
        content, tokens = self.take(part)
        found = b""
        if content:
            found += made.choice(self.index, _delta(content=content), self._told_logprobs(tokens), None)
            self.told()
        for index, call in enumerate(self._tool_calls):
            found += made.choice(self.index, _delta(tool_calls=[{"index": index, **call}]), None, None)
        if self.finish_reason:
            rest = self._told_logprobs(self._tokens) if self._tokens and not self._tool_calls else None
            found += made.choice(self.index, _delta(), rest, self.finish_reason)
        return found

    def _told_logprobs(self, tokens: list[TokenLogprob]) -> dict[str, Any] | None:
        return chat_logprobs(tokens) if self._logprobs else None


def _delta(**said: Any) -> Mapping[str, Any]:
    return {"delta": said}


async def _frames(
    call: Call, asked: ChatRequest, generation: Generation, choices: list[_Choice], name: str
) -> AsyncGenerator[bytes, None]:
    made = Chunks(new_id("chatcmpl"), "chat.completion.chunk", name)
    yield b"".join(made.choice(one.index, _delta(role="assistant", content=None), None, None) for one in choices)
    async for parts in generation.parts(call.receive):
        frames = b"".join(choices[part.index].chunks(part, made) for part in parts)
        if said := generation.spoken(frames):
            yield said
    if asked.sampled.include_usage:
        yield made.usage(usage(generation.answers), generation.timings)
    yield DONE
