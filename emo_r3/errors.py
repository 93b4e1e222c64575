"""The one family of errors that this package raises on purpose."""

from __future__ import annotations


class EmoR3Error(Exception):
    """Base of every error meant for the person at the keyboard: what was given, what is wrong, what to do."""


class LabelError(EmoR3Error, ValueError):
    """A label or a label list that can't be used."""


class PromptError(EmoR3Error, ValueError):
    """A prompt file or a prompt request that can't be used."""


class ImageError(EmoR3Error):
    """An image that is missing, unreadable, too large or not an image."""


class CheckpointError(EmoR3Error):
    """A model folder or repository that can't be loaded safely."""
