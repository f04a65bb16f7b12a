"""What is asked of an engine: prompts of exact length and the number of tokens each must produce."""
