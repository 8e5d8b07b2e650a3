"""What every program needs and no Llama explains: files, memory, the machine's limits, progress, command lines."""
