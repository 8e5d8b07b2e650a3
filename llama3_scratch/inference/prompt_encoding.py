"""From what is asked to the model's tokens: a user's message where the model chats, else the text itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llama3_scratch.errors import UsageError
from llama3_scratch.inference.choices import PromptChoice

if TYPE_CHECKING:
    from llama3_scratch.text.tokenizer import Tokenizer


def encode_prompt(asked: str | list[dict[str, Any]], tokenizer: Tokenizer, choice: PromptChoice) -> list[int]:
    """The tokens of a text, or of a chat's messages so far."""
    from llama3_scratch.text.dialog import encode_dialog

    if choice.without_chat_format or tokenizer.chat_format is None:
        if choice.system is not None:
            raise UsageError("a system message goes with a chat, not with a base model or `raw=True`; leave it out")
        if not isinstance(asked, str):
            raise UsageError("messages go with a chat, not with a base model or `raw=True`; give the text as a prompt")
        special = set(tokenizer.special_tokens) if choice.raw_special else set()
        ids = tokenizer.encode(asked, bos=tokenizer.add_bos, eos=False, allowed_special=special)
        if not ids and tokenizer.bos_id is not None:
            ids = [tokenizer.bos_id]
        return ids
    messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
    if choice.system is not None and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": choice.system}, *messages]
    return encode_dialog(messages, tokenizer, date=choice.date)
