"""Text ↔ tokens ↔ chats: the tokenizer, byte-pair encoding, chat formats and templates."""
