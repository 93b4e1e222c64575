"""What is done with a model's weights: loading, prefix caches, constrained decoding, reflection."""
