"""The same mathematics in C: matmuls with stored weights, and a decoding step as one call; AVX-512, AVX2 or plain C."""
