"""A model's own chat template, rendered as transformers renders it, in a process that can be stopped.

A template is a program in Jinja out of a model's files. It sees the messages with a mark inside every control token
that somebody typed; what it renders is then cut at the control tokens that it wrote itself, and the marks go.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.text.chat_template_process import MAX_SECONDS, PROCESS, REMEDY
from llama3_scratch.text.marks import control_pattern, longest_first, marked, texts_in, unmarked, unused_mark
from llama3_scratch.text.tokenizer import ChatTemplate, Tokenizer

Chat = Sequence[Mapping[str, Any]]

MAX_BYTES, MAX_CHARACTERS = 64_000, 1_000_000  # of a template, and of what a rendering adds to its messages


def encode_chat(
    messages: Chat,
    template: ChatTemplate,
    tokenizer: Tokenizer,
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    add_generation_prompt: bool = True,
    continue_last: bool = False,
    date: str | None = None,
) -> list[int]:
    """Ids of a chat as the template lays it out; BOS is only what the template writes.

    `tools` are its `tools`. `continue_last`: the ids end where the last message's content does, whatever the template
    writes behind it. `date` ("26 Jul 2024") is its `date_string`, and today for its `strftime_now`. UsageError in the
    template's own words where it takes no such chat, FileError where it isn't Jinja or goes beyond a limit.
    """
    if continue_last:
        content = messages[-1]["content"]
        end = unused_mark(" ".join([template.source, *texts_in(messages), *texts_in(tools)]))
        # The space tells whether the template strips contents, as in transformers (`continue_final_message`).
        messages = [*messages[:-1], {**messages[-1], "content": f"{content}{end} "}]
    (text,) = render([(messages, add_generation_prompt)], template, tokenizer, tools=tools, date=date)
    return (text.until(end) if continue_last else text).ids(tokenizer)


@dataclass(frozen=True)
class Rendered:
    """A rendered chat, in which every control token that a message held has the mark inside."""

    text: str
    mark: str

    def ids(self, tokenizer: Tokenizer) -> list[int]:
        """Control tokens that the template wrote as such, all else as text."""
        ids: list[int] = []
        done = 0
        for begin, end, id in [*self._control(tokenizer), (len(self.text), len(self.text), None)]:
            ids += tokenizer.encode(unmarked(self.text[done:begin], self.mark), bos=False, eos=False)
            ids += [] if id is None else [id]
            done = end
        return ids

    def find(self, ids: Collection[int], tokenizer: Tokenizer, start: int) -> int:
        """Where the first of these control tokens that the template wrote ends, from `start` on; -1 where none is."""
        ends = (end for begin, end, id in self._control(tokenizer) if begin >= start and id in ids)
        return next(ends, -1)

    def until(self, end: str) -> Rendered:
        """What stands before the character that ends a content, which is stripped where the template strips it."""
        begin = self.text.rfind(end)
        if begin < 0:
            raise UsageError(
                "the model's chat template doesn't show the last message as it stands, so it can't be continued; "
                "end the chat with a message of the user's"
            )
        kept = self.text[begin : begin + 2] == f"{end} "
        return self[:begin] if kept else Rendered(self.text[:begin].rstrip(), self.mark)

    def _control(self, tokenizer: Tokenizer) -> Iterator[tuple[int, int, int]]:
        """(begin, end, id) of each control token that the template wrote."""
        for found in control_pattern(tokenizer.special_tokens, self.mark, tokenizer.token_flags).finditer(self.text):
            assert found.lastindex
            yield found.start(), found.end(), tokenizer.special_tokens[found[found.lastindex]]

    def __getitem__(self, part: slice) -> Rendered:
        return Rendered(self.text[part], self.mark)


def render(
    chats: Sequence[tuple[Chat, bool]],
    template: ChatTemplate,
    tokenizer: Tokenizer,
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    date: str | None = None,
) -> list[Rendered]:
    """Several chats, each with whether the assistant's next message is opened; errors as of `encode_chat`."""
    if date is not None and "date_string" not in template.source and "strftime_now" not in template.source:
        raise UsageError("a date goes into a chat template that asks for one; this model's doesn't, leave it out")
    if tools and not shows_tools(template):
        raise UsageError(
            "the model's chat template has no place for tools; leave them out, or take the chat format chatml"
        )
    if (size := len(template.source.encode("utf-8", "replace"))) > MAX_BYTES:
        raise FileError(f"the model's chat template has {size} bytes, at most {MAX_BYTES} are rendered; {REMEDY}")
    said = [list(texts_in(messages)) for messages, _ in chats]
    described = list(texts_in(tools))
    mark = unused_mark(" ".join([template.source, *described, *(text for texts in said for text in texts)]))
    # Whatever the case, since a template may change it.
    typed = re.compile("|".join(map(re.escape, longest_first(tokenizer.special_tokens))) or "(?!)", re.IGNORECASE)
    request = {
        "template": template.source,
        "variables": dict(template.variables),
        "date": marked(date, mark, typed),
        "seconds": MAX_SECONDS,
        "tools": marked(list(tools), mark, typed) or None,
        "limit": MAX_CHARACTERS + sum(map(len, described)) + max(sum(map(len, texts)) for texts in said),
        "chats": [
            {"messages": [_seen(message, mark, typed) for message in messages], "add_generation_prompt": opened}
            for messages, opened in chats
        ],
    }
    return [Rendered(_text_of(answer), mark) for answer in PROCESS.ask(request)]


def shows_tools(template: ChatTemplate) -> bool:
    """Whether a template has a place for the tools that a chat comes with."""
    return re.search(r"\btools\b", template.source) is not None


def _text_of(answer: dict[str, str]) -> str:
    match answer:
        case {"text": text}:
            return text
        case {"raised": words}:
            raise UsageError(f"the model's chat template doesn't take this chat: {_words(words)}")
        case {"failed": words}:
            raise UsageError(
                f"the model's chat template fails on this chat: {_words(words)}; change the messages, or {REMEDY}"
            )
        case {"limit": "memory"}:
            raise FileError(f"the model's chat template takes more memory than the 512 MB it may; {REMEDY}")
        case {"limit": _}:
            raise FileError(
                f"the model's chat template makes more than {MAX_CHARACTERS} characters beyond the messages'; {REMEDY}"
            )
        case {"syntax": words}:
            raise FileError(f"the model's chat template isn't valid Jinja: {_words(words)}; {REMEDY}")
    words = _words(answer.get("refused", "nothing"))
    raise FileError(f"the model's chat template reaches for what it may not have: {words}; {REMEDY}")


def _words(text: str) -> str:
    """A template's own words, fit for one line of a terminal."""
    return "".join(c for c in " ".join(text.split())[:300] if c.isprintable()) or "without saying why"


def _seen(message: Mapping[str, Any], mark: str, typed: re.Pattern[str]) -> dict[str, Any]:
    """A message as the template sees it: tool calls in OpenAI's shape, what somebody typed with its marks."""
    seen: dict[str, Any] = {"role": message["role"]}
    for key in ("content", "name", "tool_call_id"):
        if message.get(key) is not None:
            seen[key] = marked(message[key], mark, typed)
    if message.get("tool_calls"):
        seen["tool_calls"] = [
            {
                **({"id": marked(call["id"], mark, typed)} if "id" in call else {}),
                "type": "function",
                "function": {key: marked(call[key], mark, typed) for key in ("name", "arguments")},
            }
            for call in message["tool_calls"]
        ]
    return seen
