"""`POST /v1/completions`: texts, or tokens, gone on with."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from typing import Any

from starlette.responses import JSONResponse, Response

from llama3_scratch.serving.answer import Part, TokenLogprob
from llama3_scratch.serving.answering import make_answers
from llama3_scratch.serving.endpoint import Call
from llama3_scratch.serving.errors import ApiError
from llama3_scratch.serving.generation import Generation
from llama3_scratch.serving.prompt_logprobs import prompt_logprobs
from llama3_scratch.serving.prompts import check_ids, text_tokens
from llama3_scratch.serving.requests import CompletionRequest, completion_request
from llama3_scratch.serving.responses import (
    DONE,
    Chunks,
    completion_logprobs,
    new_id,
    usage,
    usage_of,
    whole,
)
from llama3_scratch.serving.streaming import send_stream
from llama3_scratch.text.detokenizer import text_of


async def completions(call: Call) -> Response | None:
    service, began = call.service, time.perf_counter()
    asked = completion_request(await call.json())
    adapter, name = service.adapter(asked.sampled.model), asked.sampled.model or service.name
    n, salt = asked.sampled.n, call.caller.salt
    with service.place(n * len(asked.prompts)):
        prompts = [await text_tokens(service, prompt) for prompt in asked.prompts]
        for prompt in prompts:
            if not prompt:
                raise ApiError(400, "prompt: is empty, and this model has no token that begins a text", param="prompt")
            check_ids(service, prompt, "prompt")
            service.max_tokens(prompt, None)
        choices = [_Choice(index, asked.sampled.logprobs is not None) for index in range(n * len(prompts))]
        if asked.echo:
            for place, prompt in enumerate(prompts):
                echo, echoed = await _echo(call, asked, place, prompt, adapter)
                for choice in choices[place * n : (place + 1) * n]:
                    choice.echo, choice.echoed = echo, echoed
        if asked.sampled.max_tokens == 0:
            bodies = [choice.body("length") for choice in choices]
            used = usage_of(sum(map(len, prompts)), 0, 0)
            call.told.prompt_tokens = used["prompt_tokens"]
            return JSONResponse(whole(new_id("cmpl"), "text_completion", name, bodies, used))
        answers = make_answers(service, prompts, asked.sampled, adapter=adapter, salt=salt)
        async with Generation(service, answers, began, service.choice.max_seconds) as generation:
            if asked.sampled.stream:
                await send_stream(call.send, _frames(call, asked, generation, choices, name))
                done = None
            else:
                async for parts in generation.parts(call.receive):
                    for part in parts:
                        choices[part.index].take(part)
                bodies = [choice.body(choice.finish_reason) for choice in choices]
                done = JSONResponse(
                    whole(new_id("cmpl"), "text_completion", name, bodies, usage(answers), timings=generation.timings)
                )
            call.told.finished(answers, [choice.finish_reason or "" for choice in choices])
            return done


async def _echo(
    call: Call, asked: CompletionRequest, place: int, prompt: list[int], adapter: str | None
) -> tuple[str, list[TokenLogprob]]:
    """A prompt's text, and its tokens where their log-probabilities are asked for; without what we put before it."""
    tokenizer, added = call.service.tokenizer, 0
    if isinstance(asked.prompts[place], str) and prompt[0] == tokenizer.bos_id:
        added = 1
    echo = text_of(prompt[added:], tokenizer)
    if asked.sampled.logprobs is None:
        return echo, []
    found = await prompt_logprobs(call.service, prompt, asked.sampled.logprobs, adapter)
    return echo, found[added:]


class _Choice:
    """One answer on its way to the client."""

    def __init__(self, index: int, logprobs: bool) -> None:
        self.index = index
        self.echo = ""  # the prompt's text, where the answer begins with it
        self.echoed: list[TokenLogprob] = []
        self.finish_reason: str | None = None
        self._logprobs = logprobs
        self._text = ""
        self._tokens: list[TokenLogprob] = []
        self._offset = 0  # of the text that comes next in a stream

    def take(self, part: Part) -> None:
        self._text += part.text
        self._tokens += part.tokens
        self.finish_reason = part.finish_reason

    def body(self, finish_reason: str | None) -> dict[str, Any]:
        text = self.echo + self._text
        tokens = [*self.echoed, *self._tokens]
        logprobs = completion_logprobs(tokens, self._begin) if self._logprobs else None
        return {"index": self.index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}

    @property
    def _begin(self) -> int:
        """Where in the text the first token is that has a logprob."""
        return 0 if self.echoed else len(self.echo)

    def first_chunk(self, made: Chunks) -> bytes:
        """The prompt, where the answer begins with it."""
        if not self.echo:
            return b""
        logprobs = completion_logprobs(self.echoed, 0) if self._logprobs else None
        self._offset = len(self.echo)
        return made.choice(self.index, {"text": self.echo}, logprobs, None)

    def chunks(self, part: Part, made: Chunks) -> bytes:
        self.finish_reason = part.finish_reason
        logprobs = completion_logprobs(part.tokens, self._offset) if self._logprobs and part.tokens else None
        self._offset += len(part.text)
        if not part.text and not part.finish_reason:
            return b""
        return made.choice(self.index, {"text": part.text}, logprobs, part.finish_reason)


async def _frames(
    call: Call, asked: CompletionRequest, generation: Generation, choices: list[_Choice], name: str
) -> AsyncGenerator[bytes, None]:
    made = Chunks(new_id("cmpl"), "text_completion", name)
    if asked.echo:
        yield b"".join(choice.first_chunk(made) for choice in choices)
    async for parts in generation.parts(call.receive):
        frames = b"".join(choices[part.index].chunks(part, made) for part in parts)
        if said := generation.spoken(frames):
            yield said
    if asked.sampled.include_usage:
        yield made.usage(usage(generation.answers), generation.timings)
    yield DONE
