"""How good a model is: perplexity, multiple choice, KL divergence from another model, a judge's marks."""
