"""An OpenAI-compatible server on one engine: the API, what keeps strangers out, and a page to talk with."""
