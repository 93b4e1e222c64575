"""The report of made-up results: what it says, that it is the same again, and that a change is found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_results import make_result, make_results

from emo_r3.study import figures, report
from emo_r3.study.arms import Run, Study, StudyError, load_study
from emo_r3.study.packing import pack
from emo_r3.study.report import check_report, make_report, write_report
from emo_r3.study.results import Results, read_results

STUDY = Path(__file__).parents[2] / "recipes/study.yaml"
RATES = {
    "d07-base": (0.5, 0.3),
    "d07-set": (0.7, 0.3),
    "d07-emo-r3": (0.7, 0.02),
    "m8-set": (0.7, 0.05),
    "m8-grpo": (0.7, 0.05),
    "m6-grpo": (0.7, 0.05),
    "vanilla": (0.3, 0.0),
    "look-d0-set": (0.5, 0.05),
    "tune-set-3e-05": (0.5, 0.1),
    "tune-set-0.0001": (0.6, 0.1),
    "tune-set-0.0003": (0.4, 0.1),
}


@pytest.fixture(scope="module")
def study() -> Study:
    return load_study(STUDY)


@pytest.fixture(scope="module")
def made(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("study")
    make_results(study, output, RATES)
    return output


def test_the_report_says_what_its_results_say(study: Study, made: Path) -> None:
    results = Results(study, read_results(made))
    told = {one.name: (estimate, text) for one, estimate, _, text in results.verdicts()}
    assert told["P1"][1] == "supported" and told["P1"][0] is not None and told["P1"][0].value < -20
    assert told["P8"][1] == "supported", "an untrained arm has no seeds, and its partner's domain"
    assert told["P2"] == (None, "not run yet")
    page = make_report(results, ["verdicts"])
    estimate = results.row(["d07-set"], "A_I")
    assert estimate is not None and f"| SET | {estimate.value:.2f} ± {estimate.smallest_told():.2f} |" in page
    assert "Not run yet: " in page and "DSPO" in page.split("Not run yet: ")[1].splitlines()[0]
    assert "| set | 51.0 | **61.0** | 41.0 |" in page, "what was tuned"
    assert "one beyond it may be better" not in page
    assert "figures/verdicts.svg" in page and "seconds.svg" not in page
    assert "| dial 0 (set) | 99.0 | " in page and "| dial 0 (think) | not run yet |" in page
    assert "emo-r3 study recipes/study.yaml" in page
    assert str(made) not in page and "/home" not in page


def test_a_run_without_any_text_is_told(study: Study, tmp_path: Path) -> None:
    """It is no run that is missing, nor is its seed left out."""
    for arm in ("d07-emo-r3", "d07-set"):
        for seed in (1, 2, 3):
            make_result(study, tmp_path, Run(arm, seed), 0.5, 0.1)
    path = tmp_path / "runs/d07-set-seed2.json"
    facts = json.loads(path.read_text())
    for told in facts["tests"].values():
        told["items"] |= dict.fromkeys(("text", "false", "named", "found"), pack([0] * told["count"]))
    path.write_text(json.dumps(facts))
    results = Results(study, read_results(tmp_path))
    told = {one.name: (estimate, text) for one, estimate, _, text in results.verdicts()}
    assert told["P1"] == (None, "can't tell") and told["P3"] == (None, "not run yet")
    page = make_report(results, [])
    assert "| false texts | no value in d07-set-seed2 |  |  |  | 5 |  | **can't tell** |" in page
    assert "Empty where no answer of a run has the text: d07-set-seed2." in page


def test_domains_are_of_the_training(study: Study, tmp_path: Path) -> None:
    """A^I and A^O of two trainings by hand: cells of one value each."""
    for run, rights in (
        (Run("m8-grpo", 1), {"miniature-8": 1.0, "miniature-6": 0.0, "miniature-7": 0.0}),
        (Run("m6-grpo", 1), {"miniature-8": 0.0, "miniature-6": 1.0, "miniature-7": 1.0}),
    ):
        path = make_result(study, tmp_path, run, 0.5)
        facts = json.loads(path.read_text())
        for name, right in rights.items():
            facts["tests"][name]["items"]["correct"] = pack([int(right)] * facts["tests"][name]["count"])
        path.write_text(json.dumps(facts))
    results = Results(study, read_results(tmp_path))
    found = {}
    for name in ("A_I", "A_O", "A"):
        estimate = results.row(["m8-grpo", "m6-grpo"], name)
        assert estimate is not None and estimate.seeds == 1
        found[name] = estimate.value
    assert found == pytest.approx({"A_I": 100, "A_O": 25, "A": 50})


def test_intervals_of_shares_end_where_shares_do(study: Study, tmp_path: Path) -> None:
    for seed, right in ((1, 0.95), (2, 0.6)):
        make_result(study, tmp_path, Run("d07-set", seed), right)
    results = Results(study, read_results(tmp_path))
    estimate = results.row(["d07-set"], "A")
    assert estimate is not None and estimate.interval()[1] > 100
    [shown] = [one for one in study.figures if one.name == "parts"]
    false_texts, accuracy = figures._shown(results, shown)["SET"]
    assert accuracy == (pytest.approx(max(0.0, estimate.interval()[0])), estimate.value, 100.0)
    assert 0 <= false_texts[0] <= false_texts[1] <= false_texts[2] <= 100


@pytest.mark.slow
def test_the_check_finds_any_change(study: Study, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (figures, report):
        monkeypatch.setattr(module, "KINDS", ("svg",))  # the other takes as long again
    assert "Contrasts: " in write_report(study, made)
    first = {path.name: path.read_bytes() for path in (made / "figures").iterdir()}
    assert {"verdicts.svg", "false-texts-by-dial.svg", "gain-and-cost.svg", "curves.svg", "seconds.svg"} <= set(first)
    check_report(study, made)
    page = made / "report.md"
    text = page.read_text()
    page.write_text(text.replace("supported", "refuted", 1))
    with pytest.raises(StudyError, match=r"report\.md differs .*line \d+"):
        check_report(study, made)
    page.write_text(text)
    figure = made / "figures/verdicts.svg"
    figure.write_bytes(first["verdicts.svg"].replace(b"stroke", b"Stroke", 1))
    with pytest.raises(StudyError, match=r"verdicts\.svg differs"):
        check_report(study, made)
    figure.unlink()
    with pytest.raises(StudyError, match="isn't there"):
        check_report(study, made)


def test_results_that_do_not_belong_together(study: Study, tmp_path: Path) -> None:
    make_result(study, tmp_path, Run("d07-set", 1), 0.7)
    make_result(study, tmp_path, Run("d07-set", 2), 0.7, identity="another")
    with pytest.raises(StudyError, match="different recipes or sizes"):
        Results(study, read_results(tmp_path))
    base = {"name": "dial-0.7", "miniature": "another", "digest": ""}
    make_result(study, tmp_path, Run("d07-set", 2), 0.7, base=base)
    with pytest.raises(StudyError, match="different miniatures"):
        Results(study, read_results(tmp_path))


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"form": 99}', '{"form": 1, "arm": "other", "seed": 1}'])
def test_a_file_that_is_no_result(tmp_path: Path, text: str) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/one-seed1.json").write_text(text)
    with pytest.raises(StudyError, match=r"one-seed1\.json is no result"):
        read_results(tmp_path)


def test_a_run_that_failed_is_told(study: Study, tmp_path: Path) -> None:
    make_result(study, tmp_path, Run("d07-set", 1), 0.7)
    make_result(study, tmp_path, Run("d07-set", 2), 0.7, failed="the loss of step 3 is not finite")
    page = make_report(Results(study, read_results(tmp_path)), [])
    assert "d07-set-seed2 failed: the loss of step 3 is not finite" in page and "1 failed" in page
    assert "| 1 of 5 |" in page


def test_what_was_tuned_where_a_try_failed_and_the_best_is_the_last(study: Study, tmp_path: Path) -> None:
    seed = study.tuning.seed
    one, two, three = (arm.name for arm in study.tries("set"))
    make_result(study, tmp_path, Run(one, seed), 0.4)
    make_result(study, tmp_path, Run(two, seed), 0.5, failed="the loss of step 3 is not finite")
    page = make_report(Results(study, read_results(tmp_path)), [])
    assert "| set | 40.0 | failed | not run yet |" in page, "nothing is the best before all are there"
    make_result(study, tmp_path, Run(three, seed), 0.6)
    page = make_report(Results(study, read_results(tmp_path)), [])
    assert "| set | 40.0 | failed | **60.0** |" in page
    assert "For set the best is the smallest or the largest that was tried" in page


@pytest.mark.slow
def test_the_shipped_report_is_what_its_results_say(study: Study) -> None:
    output = STUDY.parents[1] / "docs/study"
    if not (output / "report.md").exists():
        pytest.skip("the study hasn't begun")
    check_report(study, output)


def test_without_results_there_is_no_report(study: Study, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="no results yet"):
        write_report(study, tmp_path)
