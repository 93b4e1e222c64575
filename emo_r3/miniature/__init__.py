"""A world of small drawings and a vision-language model of it: everything the toolkit does, on a laptop, offline."""
