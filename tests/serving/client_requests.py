"""Requests with the fields that Open WebUI and Continue send, in the order in which they come; the texts are ours."""

from __future__ import annotations

from typing import Any

HISTORY = "<chat_history>\nUSER: hi\nASSISTANT: Hello!\n</chat_history>"


def _task(text: str, **more: Any) -> tuple[str, dict[str, Any]]:
    messages = [{"role": "user", "content": f"### Task:\n{text}\n### Output:\nJSON\n### Chat History:\n{HISTORY}"}]
    return "/v1/chat/completions", {"model": "tiny", "messages": messages, "stream": False, **more}


# A chat that streams; then, at once, the title, the tags and the follow-ups.
OPEN_WEBUI: list[tuple[str, dict[str, Any]]] = [
    (
        "/v1/chat/completions",
        {
            "stream": True,
            "model": "tiny",
            "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}],
            "stream_options": {"include_usage": True},
            "params": {},
            "temperature": 0.8,
            "top_k": 40,
            "min_p": 0.05,
            "repeat_penalty": 1.1,
            "seed": 42,
            "stop": ["\nUser:"],
        },
    ),
    _task("Generate a concise title with an emoji.", max_completion_tokens=1000),
    _task("Generate 1-3 broad tags."),
    _task("Suggest 3-5 follow-up questions."),
]
# What it looks for when a connection is added, and what a server that isn't Ollama answers.
OPEN_WEBUI_PROBES = [("/v1/models", 200), ("/models", 200), ("/api/version", 404), ("/api/tags", 404)]

CONTINUE: list[tuple[str, dict[str, Any]]] = [
    (
        "/v1/chat/completions",
        {
            "messages": [
                {"role": "system", "content": "Your output is used in an editor.\n"},
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "```main.py\n\n```\n"}, {"type": "text", "text": "x"}],
                },
            ],
            "model": "tiny",
            "max_tokens": 4096,
            "temperature": 0.2,
            "stream": True,
        },
    ),
    (
        "/v1/completions",
        {
            "prompt": "<fim_prefix>def add(a, b):\n    <fim_suffix>\n<fim_middle>",
            "model": "storyteller",
            "max_tokens": 64,
            "temperature": 0.01,
            "top_p": None,
            "frequency_penalty": None,
            "presence_penalty": None,
            "stop": [
                *("<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<|endoftext|>", "<file_sep>", "<repo_name>"),
                *("\n\n", "\r\n\r\n", "/src/", "#- coding: utf-8", "```", "\ndef", "\nclass", '\n"""#', "t.", "\nt"),
            ],
            "stream": True,
        },
    ),
]
