"""The doors: Meta's, Hugging Face's, GGUF and llama2.c files. Empty, so that a torch-free part stays torch-free."""
