"""What trained models know: lm-eval tasks, perplexity, memory tasks."""
