"""The demo's layer of what the label hangs on."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from tiny_models import tiny_checkpoint

from emo_r3 import EmoR3Pipeline
from emo_r3.demo import html
from emo_r3.demo.uploads import Answers, Uploads
from emo_r3.forms import FORMS
from emo_r3.results import EmotionResult, Evidence, EvidenceMap

MAP = EvidenceMap(((0.0, 0.4), (0.0, 0.1)), 0.875, (0.0, 0.0, 1.0, 1.0), (80, 60))


def test_the_layer_is_an_image_of_its_own_that_can_be_taken_off() -> None:
    result = EmotionResult("a.png", label="awe", evidence_map=MAP)
    card = html.evidence_card(result, Image.new("RGB", (40, 30)))
    found = [Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall('base64,([^"]+)', card)]
    assert [(image.mode, image.size) for image in found] == [("RGB", (40, 30)), ("RGBA", (40, 30))]
    assert 'alt="Strongest in row 1 of 2, column 2 of 2"' in card
    assert '<label><input type="checkbox" checked> Show the layer</label>' in card and "40% at most" in card
    assert html.evidence_card(EmotionResult("a.png", label="awe"), None) == ""
    style = (Path(html.__file__).parent / "demo.css").read_text(encoding="utf-8")
    assert ".evidence:has(input:not(:checked)) .layer { visibility: hidden; }" in style


@pytest.mark.slow
def test_an_upload_comes_back_with_its_map_if_it_was_asked_for(tmp_path: Path) -> None:
    answers = Answers(EmoR3Pipeline.from_pretrained(tiny_checkpoint("qwen3_vl")), Uploads(tmp_path, tmp_path))
    for explain in (True, False):
        path = tmp_path / "a.png"
        Image.effect_noise((900, 300), 60).convert("RGB").save(path)
        upload = type("Upload", (), {"path": str(path), "orig_name": "a.png"})
        *_, (last, copy) = answers.one_explained(upload, "webemo-2", False, explain)
        assert (last.result.evidence_map is not None) == explain
        assert copy.size == (480, 160) if explain else copy is None


def test_the_region_of_a_grounded_answer_is_a_frame_on_the_image() -> None:
    evidence = Evidence("A dog.", (80, 60), (20.0, 15.0, 60.0, 45.0))
    result = EmotionResult("a.png", label="awe", evidence=evidence, emotions=("awe", "<b>"))
    card = html.evidence_card(result, Image.new("RGB", (40, 30)))
    assert 'style="left: 25.00%; top: 25.00%; width: 50.00%; height: 50.00%"' in card
    assert "25% of the image" in card and "What the answer points at" in card and "Show the layer" not in card
    assert html.evidence_card(EmotionResult("a.png", label="awe", evidence=Evidence("A dog.", (80, 60))), None) == ""
    both = html.evidence_card(replace(result, evidence_map=MAP), Image.new("RGB", (40, 30)))
    assert "Show the layer" in both and "Of what the label hangs on, 25% lies in it" in both
    step = html.step_card(FORMS["grounded"].sections[2], "Calm.", emotions=result.emotions)
    assert "awe · &lt;b&gt;" in step
