"""The contact sheet: what is on it, in which order, and that nothing that it shows can do anything."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from emo_r3.cli.main import main
from emo_r3.contact_sheet import check_report, write_report
from emo_r3.errors import EmoR3Error
from emo_r3.formats import read_rows, write_rows
from emo_r3.results import EmotionResult

STEPS = {"step1": "a wolf", "step2": "it frightens", "step3": "negative, excited"}
EVIL = '"><script>alert(1)</script><img src=x onerror=alert(1)>'


def row(image: Path | str, fear: float = 0.9, **facts: Any) -> dict[str, Any]:
    shares = {"joy": (1 - fear) / 2, "awe": (1 - fear) / 2, "fear": fear}
    label = max(shares, key=lambda name: shares[name])
    result = EmotionResult(str(image), label, shares, STEPS, valence=2.5, arousal=7.0, model="/home/me/models/mine")
    return {**result.to_dict(), **facts}


def photo(path: Path, colour: str = "navy", size: tuple[int, int] = (800, 600)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    Image.new("RGB", size, colour).save(path, exif=exif)
    return path


@pytest.fixture
def rows(tmp_path: Path) -> list[dict[str, Any]]:
    """A sure one, two doubtful ones as confident as each other, one without a label, one that was not read."""
    found = [
        row(photo(tmp_path / "photos/sure.jpg", "navy"), 0.9),
        row(photo(tmp_path / "photos/even.jpg", "green"), 0.5, probabilities={"fear": 0.5, "joy": 0.25, "awe": 0.25}),
        row(photo(tmp_path / "photos/halves.jpg", "red"), 0.5, probabilities={"fear": 0.5, "joy": 0.5, "awe": 0.0}),
        row(photo(tmp_path / "photos/deep/none.jpg", "white"), 0.9, label=None, problems=["not-closed"]),
        {**EmotionResult("photos/bad.jpg", error="bad.jpg: damaged").to_dict(), "image": "photos/bad.jpg"},
    ]
    return found


def test_the_most_doubtful_come_first_and_what_was_not_read_last(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    write_report(rows, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    files = re.findall(r'<p class="file">([^<]*)</p>', text)
    assert files == ["deep/none.jpg", "even.jpg", "halves.jpg", "sure.jpg", "bad.jpg"]
    assert "bad.jpg: damaged" in text and "no label" in text and "<dd>a wolf</dd>" in text
    assert "models/mine" not in text and "Read by mine." in text and str(tmp_path) not in text


def test_thumbnails_are_small_and_tell_nothing_of_where_they_were_taken(
    rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    write_report(rows, tmp_path / "report.html")
    found = re.findall(r'src="data:image/jpeg;base64,([^"]*)"', (tmp_path / "report.html").read_text())
    assert len(found) == 4
    for data in map(base64.b64decode, found):
        image = Image.open(io.BytesIO(data))
        assert image.size == (320, 240) and not image.getexif() and b"taken at home" not in data


def test_a_thumbnail_is_upright(tmp_path: Path) -> None:
    from emo_r3.images.loading import load_thumbnail

    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (1600, 1200), "navy").save(turned, exif=exif)
    assert load_thumbnail(turned, 100).size == (75, 100)


def test_nothing_that_is_shown_can_do_anything(tmp_path: Path) -> None:
    image = photo(tmp_path / "photos" / "a'&<b>\";javascript:x.jpg")
    facts = {"steps": {"step1": EVIL, EVIL: "x"}, "notes": [EVIL], "problems": [EVIL], "model": EVIL}
    evil = row(image, label=EVIL, probabilities={EVIL: 0.6, "joy": 0.4}, **facts)
    bad = row("b.jpg", error=EVIL, label=None)
    write_report([evil, bad, row("http://example.org/p.jpg?key=secret")], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in text and "<img src=x" not in text and "secret" not in text
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy and policy.startswith("default-src 'none'; img-src data:;")
    tags: list[tuple[str, dict[str, str | None]]] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.append((tag, dict(attributes)))  # type: ignore[method-assign]
    parser.feed(text)
    assert not {tag for tag, _ in tags} & {"script", "iframe", "object", "link", "base"}
    assert not [name for _, names in tags for name in names if name == "style" or name.startswith("on")]
    targets = [names[name] or "" for _, names in tags for name in ("src", "href") if name in names]
    assert len(targets) == 2 and targets[0].startswith("./photos/") and targets[1].startswith("data:image/jpeg;")


def test_a_report_elsewhere_has_no_paths_of_this_machine(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write_report(rows, tmp_path / "out/report.html")
    text = (tmp_path / "out/report.html").read_text()
    assert "href=" not in text and str(tmp_path) not in text


@pytest.mark.parametrize("style", ["jsonl", "json"])
def test_a_report_of_a_file_of_results(rows: list[dict[str, Any]], style: str, tmp_path: Path) -> None:
    """Also of one whose run was interrupted while it wrote a line."""
    results = tmp_path / "rows"
    with results.open("w", encoding="utf-8") as stream:
        write_rows(rows, stream, style, ())
        if style == "jsonl":
            stream.write('{"image": "half.jpg", "lab')
    assert [one["image"] for one in read_rows(results)] == [one["image"] for one in rows]
    for _ in range(2):  # the second time it is ours
        assert main(["report", str(results), "--output", str(tmp_path / "report.html")]) == 0
    assert (tmp_path / "report.html").read_text().count('<li class="tile') == 5


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "holds no rows"),
        ("notes\n", "line 1 is not a row"),
        ('{"image": 3}\n', "line 1 is not a row"),
        ('{"image": "a.jpg", "probabilities": {"joy": NaN}}\n', "a.jpg: not a row"),
        ('{"image": "a.jpg", "steps": [1]}\n', "a.jpg: not a row"),
        ('{"a":' * 100_000 + "\n", "line 1 is not a row"),
    ],
)
def test_another_file_is_one_line(content: str, says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "rows").write_text(content)
    assert main(["report", str(tmp_path / "rows"), "--output", str(tmp_path / "report.html")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("emo-r3: ") and says in err and err.count("\n") == 1
    assert not (tmp_path / "report.html").exists()


def test_a_page_of_somebody_else_is_not_written_over(
    rows: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "report.html").write_text("<h1>Mine</h1>")
    with pytest.raises(EmoR3Error, match=r"the report .*report.html is there, and no report of emo-r3"):
        write_report(rows, tmp_path / "report.html")
    with pytest.raises(EmoR3Error, match="is a folder"):
        check_report(tmp_path)
    (tmp_path / "rows").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for words in (["report", str(tmp_path / "rows"), "--output"], ["predict", __file__, "--report"]):
        assert main([*words, str(tmp_path / "report.html")]) == 2
        assert f"emo-r3: {words[-1]} {tmp_path / 'report.html'} is there" in capsys.readouterr().err
    assert (tmp_path / "report.html").read_text() == "<h1>Mine</h1>"


# In the browser


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"viewport": {"width": 320, "height": 700}, "has_touch": True}, {"color_scheme": "dark"}],
    ids=["light", "phone", "dark"],
)
def test_it_is_looked_through_without_scripts(
    rows: list[dict[str, Any]], options: dict[str, Any], browser: Any, tmp_path: Path
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    expect = pytest.importorskip("playwright.sync_api").expect  # waits: what is off the screen has no text yet
    write_report(rows, tmp_path / "report.html")
    wrong: list[str] = []
    page = browser.new_page(**options)
    page.on("console", lambda message: wrong.append(message.text))
    page.on("request", lambda request: request.url.startswith(("file:", "data:")) or wrong.append(request.url))
    page.goto((tmp_path / "report.html").as_uri())
    tiles = page.locator(".tile:visible")
    expect(tiles).to_have_count(5)
    expect(page.locator("img").first).to_have_js_property("naturalWidth", 320)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is cut off on a phone"
    page.keyboard.press("Tab")  # to the choices, of which the first is checked
    page.keyboard.press("ArrowRight")
    assert page.locator(":checked + label").inner_text().split() == ["fear", "3"]
    expect(tiles).to_have_count(3)
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("dd:visible", has_text="it frightens")).to_have_count(1)
    page.locator("label", has_text="not read").click()
    expect(tiles).to_have_count(1)
    expect(tiles).to_contain_text("damaged", use_inner_text=True)
    page.locator("label", has_text="all").first.click()
    page.locator("summary").nth(1).click()
    found = axe.Axe().run(page).response["violations"]
    assert [(item["id"], item["nodes"][0]["html"][:200]) for item in found] == []
    assert not wrong
    page.close()
