"""The report of made-up results: what it says, that it is the same again, and that a change is found."""

from __future__ import annotations

import json
import re
from dataclasses import replace
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
    assert "Empty where no answer of a run has such a text: d07-set-seed2." in page


def test_pairs_whose_bases_two_machines_made_are_marked(study: Study, tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        make_result(study, tmp_path, Run("d07-set", seed), 0.5)
        digest = {"digest": "of another machine"} if seed == 2 else {}
        base = {"name": "dial-0.7", "miniature": "a digest", "digest": "another"} | digest
        make_result(study, tmp_path, Run("d07-emo-r3", seed), 0.6, 0.1, base=base)
    results = Results(study, read_results(tmp_path))
    assert results.two_bases(["d07-emo-r3"], ["d07-set"]) == [2]
    assert results.two_bases(["d07-emo-r3"], ["d07-grpo"]) == [], "nothing to compare with"
    page = make_report(results, [])
    [told] = [line for line in page.splitlines() if line.startswith("| P1 | where")]
    assert " | 3 of 5 ‡1 | " in told
    [contrast] = [one for one in study.contrasts if one.name == "P1"]
    one, two, three = results.differences(contrast).values()
    assert f"| P1 | {one:+.1f} | {two:+.1f}‡ | {three:+.1f} |" in page
    estimate = results.contrast(contrast.plus, contrast.minus, contrast.measure)
    assert estimate is not None and estimate.value == pytest.approx((one + two + three) / 3)
    assert re.search(r"^\| EMO-R3 \|.*\| 3 ‡1 \|$", page, re.MULTILINE), "the table of differences"


def test_errors_of_writing_and_of_seeing_are_apart(study: Study, tmp_path: Path) -> None:
    """Of six false texts the fixed judge denies four; the model says No to three of these and to one other."""
    path = make_result(study, tmp_path, Run("d07-set", 1), 0.5)
    facts = json.loads(path.read_text())
    shown = {"text": [1] * 10, "false": [1] * 6 + [0] * 4, "confirmed": [1, 1] + [0] * 8}
    shown["own_no"] = [1, 0, 1, 1, 1, 0, 0, 0, 0, 0]
    for told in facts["tests"].values():
        told["items"] |= {name: pack(values + [0] * (told["count"] - 10)) for name, values in shown.items()}
    path.write_text(json.dumps(facts))
    results = Results(study, read_results(tmp_path))
    found = {name: results.row(["d07-set"], name) for name in ("seeing", "writing", "no_to_seeing", "no_to_writing")}
    values = {name: None if estimate is None else estimate.value for name, estimate in found.items()}
    assert values == pytest.approx({"seeing": 20, "writing": 40, "no_to_seeing": 50, "no_to_writing": 75})


def test_a_base_that_does_not_keep_to_its_form_is_told(study: Study, tmp_path: Path) -> None:
    """The plan: below 0.95 it stands beside each comparison with arms that ask so."""
    for arm, form in (("m8-dspo", "grounded"), ("m8-dspo-form", "grounded"), ("m8-emo-r3", "set")):
        make_result(study, tmp_path, Run(arm, 1), 0.5, form_of_answers=form)
    look = make_result(study, tmp_path, Run("look-d0-grounded", 0), 0.5)
    told = "before training dial 0 (grounded) keeps to its form in "
    assert told not in make_report(Results(study, read_results(tmp_path)), [])
    facts = json.loads(look.read_text())
    facts["tests"]["miniature-8"]["values"]["well_formed"] = 0.912
    look.write_text(json.dumps(facts))
    page = make_report(Results(study, read_results(tmp_path)), [])
    assert f"- P9: {told}91.2 % of its answers" in page and f"- S22, S23, S24, S25: {told}" in page


def test_seconds_are_of_some_seeds_alone(study: Study, tmp_path: Path) -> None:
    for seed in (1, 2, 3, 4):
        path = make_result(study, tmp_path, Run("m8-grpo", seed), 0.5)
        facts = json.loads(path.read_text())
        facts["training"]["update_seconds"] = float(seed)
        path.write_text(json.dumps(facts))
    results = Results(study, read_results(tmp_path))
    estimate = results.row(["m8-grpo"], "update_seconds", seeds=(3, 4, 5))
    assert estimate is not None and (estimate.value, estimate.seeds) == (3.5, 2)
    assert results.row(["m8-grpo"], "update_seconds", seeds=(5,)) is None
    page = make_report(results, [])
    [row] = [one for one in page.partition("### What it costs")[2].splitlines() if one.startswith("| GRPO |")]
    assert "| 3.50 ± " in row and row.endswith("| 2 of 3 |")


def test_one_number_of_one_system_has_no_interval(study: Study, tmp_path: Path) -> None:
    make_result(study, tmp_path, Run("vanilla", 0), 0.5)
    page = make_report(Results(study, read_results(tmp_path)), [])
    [row] = [one for one in page.partition("### Form,")[2].splitlines() if one.startswith("| vanilla |")]
    assert row.startswith("| vanilla | 99.0 |") and "±" not in row


def test_what_a_figure_has_no_number_for_is_told(study: Study, made: Path) -> None:
    results = Results(study, read_results(made))
    by_name = {one.name: one for one in study.figures}
    assert "placebo" in figures.left_out(results, by_name["parts"])
    assert "SET" not in figures.left_out(results, by_name["parts"])
    assert "GRPO (accuracy)" in figures.left_out(results, by_name["curves"])
    page = make_report(results, ["parts"])
    assert "*Which part: false texts and accuracy. Not there, as there is no number: consistency alone; " in page


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
    study = replace(study, figures=[])  # each check draws them again
    write_report(study, made)
    assert [path.name for path in (made / "figures").iterdir()] == ["verdicts.svg"], "of others nothing stays"
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
