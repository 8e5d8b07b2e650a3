"""How fast and small a model runs: tokens/s and memory, beside llama.cpp, transformers and the machine's limits."""
