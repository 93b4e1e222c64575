"""From images to results: the pipeline on a model of its own or on a server."""
