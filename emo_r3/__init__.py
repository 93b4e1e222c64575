"""Explainable emotion recognition: an image goes in, structured emotional reasoning comes out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .utils import loaded_on_use

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .errors import CheckpointError, EmoR3Error, ImageError, LabelError, PromptError
    from .inference.pipeline import EmoR3Pipeline
    from .labels import LABEL_SETS, LabelSet, normalize_label, resolve_labels
    from .lexicon import AFFECT, Affect, expected_affect, load_lexicon
    from .parsing import PROBLEMS, ParsedCompletion, parse_completion, render_completion
    from .prompts import Prompts, load_prompts
    from .results import EmotionResult

# Loaded on first use: `import emo_r3` must not wait for torch and transformers.
_MODULE_OF = {
    "AFFECT": "lexicon",
    "LABEL_SETS": "labels",
    "PROBLEMS": "parsing",
    "Affect": "lexicon",
    "CheckpointError": "errors",
    "EmoR3Error": "errors",
    "EmoR3Pipeline": "inference.pipeline",
    "EmotionResult": "results",
    "ImageError": "errors",
    "LabelError": "errors",
    "LabelSet": "labels",
    "ParsedCompletion": "parsing",
    "PromptError": "errors",
    "Prompts": "prompts",
    "expected_affect": "lexicon",
    "load_lexicon": "lexicon",
    "load_prompts": "prompts",
    "normalize_label": "labels",
    "parse_completion": "parsing",
    "render_completion": "parsing",
    "resolve_labels": "labels",
}

__all__ = [
    "AFFECT",
    "LABEL_SETS",
    "PROBLEMS",
    "Affect",
    "CheckpointError",
    "EmoR3Error",
    "EmoR3Pipeline",
    "EmotionResult",
    "ImageError",
    "LabelError",
    "LabelSet",
    "ParsedCompletion",
    "PromptError",
    "Prompts",
    "__version__",
    "expected_affect",
    "load_lexicon",
    "load_prompts",
    "normalize_label",
    "parse_completion",
    "render_completion",
    "resolve_labels",
]


__getattr__ = loaded_on_use(__name__, _MODULE_OF)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
