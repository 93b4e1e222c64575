from pathlib import Path

import pytest

from emo_r3.data.archive import Finding
from emo_r3.data.report import Report
from emo_r3.errors import DataError

FINDINGS = [
    Finding("not-rgb", "d", "mode L"),
    *(Finding("empty", f"e{number}", "no bytes") for number in range(5)),
    Finding("missing", "m", "image/\x1b[2J.jpg"),
]
REPORT = Report(
    "toy", 3, 100, {"test": 2}, {"test": {"joy": 1000, "fear": 234}}, {"test": {"joy": 1, "fear": 1}}, FINDINGS, ["d"]
)


def test_the_report_for_people() -> None:
    assert list(REPORT.lines()) == [
        "found    test: 1,234",
        "defect   missing: 1 (listed, but not there)",
        "           'm: image/\\x1b[2J.jpg'",
        "defect   empty: 5 (a file of no bytes)",
        "           e0: no bytes",
        "           e1: no bytes",
        "           e2: no bytes",
        "           ... all of them are in report.json",
        "note     not-rgb: 1 (greyscale, palette or CMYK; turned into RGB when it is read)",
        "           d: mode L",
        "note     re-encoded: 1 images of more than 100 pixels",
        "rows     test: 2 (joy 1, fear 1)",
    ]


def test_saved_and_loaded(tmp_path: Path) -> None:
    REPORT.save(tmp_path)
    assert Report.load(tmp_path) == REPORT


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"findings": [{"kind": 1}]}', '{"findings": [], "other": 1}'])
def test_what_is_no_report(tmp_path: Path, text: str) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(DataError, match=r"no report\.json of emo-r3 prepare"):
        Report.load(tmp_path)


def test_only_defects_are_refused() -> None:
    with pytest.raises(DataError, match="--strict: 1 missing, 5 empty"):
        REPORT.refuse_defects()
    Report("toy", 0, 1, {}, {}, {}, FINDINGS[:1]).refuse_defects()
