"""Original distribution in, Hub data set out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import ModuleType

from ..errors import DataError
from . import emoset, emotion6, webemo
from .archive import open_raw
from .build import PIXEL_BUDGET, select, write
from .report import Report
from .sampling import Size

DATASETS: dict[str, ModuleType] = {"emoset": emoset, "emotion6": emotion6, "webemo": webemo}


def prepare(
    dataset: str,
    raw: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    index: str | os.PathLike[str] | None = None,
    sizes: Mapping[str, Size] | None = None,
    seed: int = 0,
    pixel_budget: int = PIXEL_BUDGET,
    strict: bool = False,
) -> Report:
    """
    Reads an original distribution, verifies it, draws the subset and writes it.

    Args:
        dataset (`str`): `"emoset"`, `"emotion6"` or `"webemo"`.
        raw (`str` or `os.PathLike`): folder or zip of the originals.
        output (`str` or `os.PathLike`, *optional*): folder for the data set with images.
        index (`str` or `os.PathLike`, *optional*): folder for the public index, which has no images.
        sizes (`dict`, *optional*): rows of `"test"` and `"train"`, each a number or numbers by label. Where there are
            fewer it is an error; of the published sizes, which are the default, as many as there are get drawn.
        seed (`int`, *optional*, defaults to 0): see [`select`].
        pixel_budget (`int`, *optional*, defaults to 4194304): see [`select`].
        strict (`bool`, *optional*, defaults to `False`): see [`select`].

    Raises:
        DataError: the originals are not in a known layout, or too few, or, if strict, not perfect; or the output
            can't be written.

    Example:

    ```python
    >>> prepare("emotion6", "Emotion6.zip", "emotion6").rows["test"]["joy"]
    99
    ```
    """
    if output is None and index is None:
        raise DataError("nothing to write; give --output for the data set, --index for its public index, or both")
    module, given = DATASETS[dataset], sizes or {}
    with open_raw(raw) as originals:
        records, findings = module.read(originals)
        published = emotion6.sizes(len(records["train"])) if module is emotion6 else module.SIZES
        selection = select(
            records,
            module.SPEC,
            sizes={**published, **given},
            seed=seed,
            pixel_budget=pixel_budget,
            strict=strict,
            shrink=published.keys() - given.keys(),
            findings=findings,
        )
        for folder, with_pixels in ((output, True), (index, False)):
            if folder is not None:
                write(selection, folder, with_pixels=with_pixels)
    return selection.report
