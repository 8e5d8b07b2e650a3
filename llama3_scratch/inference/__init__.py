"""From logits to answers: how the next token is chosen, the token loop, speculative decoding, conversations."""
