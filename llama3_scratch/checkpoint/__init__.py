"""Files ↔ params: Meta's `.pth`, Hugging Face's safetensors, GGUF and its blocks, llama2.c, PEFT's adapters."""
