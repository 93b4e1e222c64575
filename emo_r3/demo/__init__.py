"""The demo: a page in the browser with an API under it."""
