"""The demo as a person sees it, in Debian's Chromium: `apt-get install chromium-headless-shell`."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from served import SAMPLES, Server, copied_miniature, serve, serve_slowly
from test_shared import FACTS, packed

from emo_r3 import EmoR3Pipeline
from emo_r3.cli.main import main
from emo_r3.demo.shared import KEY

pytestmark = pytest.mark.slow
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
expect = playwright.expect  # waits: the page draws what comes when it can
expect.set_options(timeout=30_000)

PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "has_touch": True}
DARK = {"viewport": {"width": 1200, "height": 900}, "color_scheme": "dark"}
# Writes down each state of the three cards, when it changes.
WATCH = """() => {
    window.seen = [];
    const cards = ["step1", "step2", "step3"].map((name) => document.getElementById(name));
    new MutationObserver(() => {
        window.seen.push(cards.map((card) => [card.querySelector(".card")?.classList[2], card.innerText]));
    }).observe(document.body, {childList: true, subtree: true, characterData: true});
}"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from serve(partial(main, ["demo"]), tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def context(browser: Any) -> Any:
    """What pages without options of their own share: the browser fetches and compiles the page's scripts once."""
    return browser.new_context()


@pytest.fixture
def visit(browser: Any, context: Any, server: Server) -> Iterator[Any]:
    """Opens the page; afterwards there must have been no request to elsewhere and no error in the console."""
    pages, wrong = [], []

    def note(request: Any, at: Server) -> None:
        if not request.url.startswith((at.url, "data:", "blob:")):
            wrong.append(request.url)

    def opened(query: str = "", at: Server = server, **options: Any) -> Any:
        page = browser.new_page(**options) if options else context.new_page()
        pages.append(page)
        page.on("request", lambda request: note(request, at))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(at.url + query)
        page.wait_for_selector("#read")
        return page

    yield opened
    for page in pages:
        page.close()
    assert not wrong


def give(page: Any, path: Path) -> None:
    """Uploads an image and waits for its preview."""
    page.set_input_files("#image input[type=file]", path)
    page.wait_for_selector(f"#image img[src*='{path.name}']")


def remove(page: Any) -> None:
    """Takes the image away."""
    page.get_by_role("button", name="Clear").or_(page.get_by_label("Remove Image")).first.click()
    page.wait_for_selector("#image img", state="detached")


def pick(page: Any, number: int) -> None:
    """Clicks an example, which is read at once."""
    page.locator(".examples button").nth(number - 1).click()
    page.wait_for_selector(f"#image img[src*='example-{number}']")


def read(page: Any) -> None:
    """Presses the button and waits for the answer."""
    page.click("#read")
    page.wait_for_selector("#charts .plane")


def violations(page: Any) -> list[str]:
    """What axe-core finds serious or critical."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    found = axe.Axe().run(page).response["violations"]
    return [
        f"{item['id']}: {node['html'][:200]}"
        for item in found
        if item["impact"] in ("serious", "critical")
        for node in item["nodes"]
    ]


def test_an_image_is_read_in_three_steps_one_after_another(visit: Any) -> None:
    page = visit("?labels=emoset&check=1")
    give(page, SAMPLES[3])
    page.evaluate(WATCH)
    read(page)
    seen = page.evaluate("window.seen")
    states = [[state for state, _ in cards] for cards in seen]
    begun = [next(at for at, cards in enumerate(states) if cards[step] == "writing") for step in range(3)]
    assert begun == sorted(begun) and len(set(begun)) == 3, "one after another"
    assert states[begun[1]] == ["written", "writing", "waiting"]
    for step in range(3):
        texts = {cards[step][1] for cards in seen if cards[step][0] == "writing"}
        assert len(texts) > 2, "each grows"
        final = seen[-1][step][1].splitlines()[-1]
        assert any(final.startswith(text.splitlines()[-1][:9]) for text in texts)
    expect(page.locator("#charts .bars li")).to_have_count(8)
    shares = page.locator("#charts .bars .share").all_inner_texts()
    label = page.locator("#answer .label").inner_text()
    assert page.locator("#charts .bars .name").first.inner_text() == label and shares[0].endswith("%")
    assert "Valence" in page.locator("#charts svg").get_attribute("aria-label")
    assert page.locator("#charts svg .point").bounding_box()["width"] > 5, "the point can be seen"
    expect(page.locator("#answer")).to_contain_text("confidence")
    expect(page.locator("#check")).to_contain_text("Consistency")
    page.get_by_role("status").get_by_text(f"The answer: {label}.").first.wait_for()
    assert "miniature" in page.locator(".model").inner_text()
    opened_by_others(page, visit, label)


def opened_by_others(page: Any, visit: Any, label: str) -> None:
    """The link to the answer that stands on the page is copied, and opened; so is a hostile one."""
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click("a.share")
    page.get_by_text("Copied.").wait_for()
    link = page.evaluate("navigator.clipboard.readText()")
    assert link.startswith(page.url.split("?")[0] + KEY)
    other = visit(link.removeprefix(page.url.split("?")[0]))
    other.get_by_text("A shared result; the image is not part of it.").wait_for()
    other.wait_for_selector("#charts .plane")
    expect(other.locator("#answer .label")).to_have_text(label)
    expect(other.locator("#step1")).to_have_text(page.locator("#step1").text_content())
    expect(other.locator("#image img")).to_have_count(0)
    evil = '"><img src=x class=evil><b class=evil>'
    other.goto(page.url.split("?")[0] + packed(FACTS | {"model": evil, "labels": evil, "steps": {"step1": evil}}))
    other.get_by_text("the model that runs here is another, miniature").wait_for()  # the page opens it by itself
    expect(other.locator("#step1")).to_contain_text("<img")
    assert other.locator(".evil").count() == 0
    other.goto(page.url.split("?")[0] + KEY + "AAAA")
    other.get_by_text("this link to a result is damaged").wait_for()


def test_settings_travel_in_the_link(visit: Any) -> None:
    page = visit("?labels=awe,fear&check=1")
    page.get_by_role("button", name="Settings").first.click()
    expect(page.get_by_label("My own labels")).to_have_value("awe, fear")
    expect(page.get_by_label("Self-check")).to_be_checked()
    page.get_by_label("emotion6").check()
    link = page.get_by_label("Link to these settings")
    expect(link).to_have_value(f"{page.url.split('?')[0]}?labels=emotion6&check=1")
    again = visit(link.input_value().split("/")[-1])
    give(again, SAMPLES[0])
    read(again)
    expect(again.locator("#charts .bars li")).to_have_count(6)
    expect(page.get_by_label("My own labels")).to_be_hidden()
    page.get_by_role("radio", name="my own").check()
    page.get_by_label("My own labels").wait_for()
    wrong = visit("?labels=nothing")
    wrong.get_by_text("no label set is called").wait_for()
    wrong.get_by_role("button", name="Settings").first.click()
    expect(wrong.get_by_label("emoset")).to_be_checked()


def test_one_asks_again_although_the_upload_is_deleted(visit: Any, server: Server) -> None:
    page = visit()
    give(page, SAMPLES[4])
    for labels, count in (("webemo-25", 25), ("webemo-2", 2)):
        if not page.get_by_label(labels, exact=False).first.is_visible():
            page.get_by_role("button", name="Settings").first.click()
        page.get_by_role("radio", name=labels).last.check()
        page.click("#read")
        expect(page.locator("#charts .bars li")).to_have_count(count, timeout=60_000)
        page.wait_for_timeout(1000)  # what is changed before the run has quite ended cancels it

    def uploads() -> list[Path]:
        return [path for path in server.folder.rglob("*.png") if path.parent.name != "examples"]

    for _ in range(100):
        if uploads():
            page.wait_for_timeout(100)
    assert not uploads()


def test_examples_and_dots_by_keyboard(visit: Any) -> None:
    page = visit()
    page.wait_for_selector("#charts .plane")

    def reach(element: Any) -> None:
        for _ in range(40):
            page.keyboard.press("Tab")
            if element.evaluate("element => element === document.activeElement"):
                return
        raise AssertionError("not reached")

    reach(page.locator(".examples button").nth(1))
    page.keyboard.press("Enter")
    page.wait_for_selector("#image img[src*='example-2']")
    page.wait_for_selector(".answer.reading")
    page.wait_for_selector("#charts .plane")
    expect(page.locator("#answer .label")).not_to_have_text("reading ...")
    reach(page.locator("summary"))
    page.keyboard.press("Enter")
    expect(page.locator(".rest .bars")).to_be_visible()
    spot = page.locator(".spot:not(.named)").first
    name = spot.locator("text")
    expect(name).to_be_hidden()
    reach(spot)
    expect(name).to_be_visible()
    assert spot.get_attribute("aria-label").startswith(name.text_content())
    page.locator("h1").click()
    expect(name).to_be_hidden()
    spot.locator(".reach").hover(force=True)
    expect(page.locator(".spot text:visible"), "of one dot at a time").to_have_count(1)


def test_what_is_no_image_is_told_in_words(visit: Any, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(SAMPLES[0].read_bytes()[:400])
    page = visit()
    page.wait_for_selector("#charts .plane")
    remove(page)
    page.click("#read")
    page.get_by_text("no image yet").wait_for()
    give(page, broken)
    page.click("#read")
    page.get_by_text("broken.png: damaged or cut short").wait_for()
    expect(page.locator(".step.waiting")).to_have_count(3)
    large = tmp_path / "large.png"
    large.write_bytes(bytes(30 * 2**20))
    remove(page)
    page.set_input_files("#image input[type=file]", large)
    page.get_by_text("exceed the maximum allowed size").first.wait_for()


def test_several_images_give_a_gallery_and_a_table_to_download(visit: Any, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(SAMPLES[0].read_bytes()[:400])
    page = visit()
    page.get_by_role("tab", name="Several images").click()
    page.set_input_files("#images input[type=file]", [*SAMPLES[:3], broken])
    page.get_by_label("broken.png").wait_for()
    page.click("#read-many")
    page.wait_for_selector("#downloads a")
    expect(page.locator(".gallery img")).to_have_count(3)
    expect(page.locator("#gallery tbody tr")).to_have_count(4)
    expect(page.locator("#gallery tbody tr").last).to_contain_text("damaged")
    for style in ("csv", "json"):
        with page.expect_download() as waiting:
            page.click(f"#downloads a[download$={style}]")
        waiting.value.save_as(tmp_path / f"table.{style}")
    with (tmp_path / "table.csv").open(encoding="utf-8-sig") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["image"] for row in rows] == [*(path.name for path in SAMPLES[:3]), "broken.png"]
    assert rows[0]["step1"] and rows[3]["error"]
    assert violations(page) == []


@pytest.mark.parametrize("options", [{}, PHONE, DARK], ids=["light", "phone", "dark"])
def test_it_opens_with_an_answer_and_axe_finds_nothing_serious(visit: Any, options: dict[str, Any]) -> None:
    page = visit(**options)
    page.wait_for_selector("#charts .plane")
    assert violations(page) == [], "when it opens, with an answer"
    height = page.viewport_size["height"]
    for what in ("#image img", "#answer .label", "#answer strong"):
        box = page.locator(what).first.bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= height, f"{what} is seen without scrolling"
    page.get_by_role("button", name="Settings").first.click()
    page.get_by_label("Self-check").check()
    page.wait_for_selector("#charts .plane", state="detached")
    give(page, SAMPLES[5])
    page.get_by_label("Show what the label hangs on").check()
    read(page)
    layer = page.locator("#evidence img.layer")
    expect(layer).to_be_visible()
    page.get_by_label("Show the layer").uncheck()
    expect(layer).to_be_hidden()
    page.wait_for_timeout(500)  # the accordion unfolds: colours are mixed while it does
    assert violations(page) == [], "with another answer"
    for width in (None, 320) if options is PHONE else (None,):
        if width:
            page.set_viewport_size({"width": width, "height": 640})
            assert violations(page) == []
        sides = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        assert sides[0] <= sides[1], "nothing to scroll sideways"
        buttons = page.locator("#read, #own-image")
        assert buttons.evaluate_all("all => all.every((one) => one.scrollWidth <= one.clientWidth)"), "nothing is cut"


# What changes while others wait or an answer is written


@pytest.fixture(scope="module")
def slow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from serve(serve_slowly, tmp_path_factory.mktemp("slow"))


def expect_blank(page: Any, words: str = "Nothing is read yet") -> None:
    """Nothing is told of any answer."""
    written = page.locator(".step.written, .step.writing, #answer section, #charts section, #check section")
    expect(written).to_have_count(0)
    expect(page.locator(".prose.status").nth(1)).to_contain_text(words)


# A link with other settings, as the slow model would be at its first answer for long.
SLOW = "?labels=emotion6"


def test_the_place_in_the_queue_is_shown(visit: Any, slow_server: Server) -> None:
    first, second, third = (visit(SLOW, at=slow_server) for _ in range(3))
    expect_blank(first)  # no answer to what the link doesn't ask
    pick(first, 2)
    first.wait_for_selector(".step.writing")
    pick(second, 2)
    second.get_by_text("queue: 1/1").wait_for()
    pick(third, 2)
    place = third.get_by_text("queue: 2/2")
    place.wait_for()
    assert place.bounding_box()["height"] > 10
    expect(third.get_by_text("Nothing is read yet").first).to_be_hidden()
    assert violations(third) == []
    expect(first.locator(".status").get_by_text("queue:")).to_have_count(0)
    third.click("#stop")  # who stops leaves the queue
    second.wait_for_selector("#charts .plane", timeout=90_000)
    third.wait_for_timeout(1500)
    expect_blank(third, "Stopped")


def test_what_is_written_ends_with_another_example_or_label_list_or_stop(visit: Any, slow_server: Server) -> None:
    page = visit(SLOW, at=slow_server)
    pick(page, 1)
    page.wait_for_selector("#step2 .step.writing")
    expect(page.locator("#answer")).to_have_text("reading ...")
    old = page.locator("#step1 p").inner_text()
    pick(page, 2)
    page.wait_for_selector("#step1 .step.waiting")
    page.evaluate(WATCH)
    page.wait_for_selector("#step2 .step.writing")
    assert not any(old in text for cards in page.evaluate("window.seen") for _, text in cards), (
        "nothing of the old run"
    )
    page.get_by_role("button", name="Settings").first.click()
    page.get_by_role("radio", name="webemo-2 (2)").check()
    page.wait_for_selector("#step1 .step.waiting")
    page.wait_for_timeout(2000)
    expect_blank(page)
    page.click("#read")
    page.wait_for_selector("#step1 .step.writing")
    page.click("#stop")
    page.get_by_text("Stopped: there is no answer.").wait_for()
    page.wait_for_timeout(2000)
    expect_blank(page, "Stopped")
    expect(page.locator("#stop")).to_be_hidden()
    page.click("#read")
    expect(page.locator("#charts .bars li")).to_have_count(2, timeout=90_000)
    assert "Traceback" not in slow_server.log.read_text()


def test_read_is_heard_while_an_old_run_is_being_ended(visit: Any, slow_server: Server) -> None:
    """It was pressed in the moment after the labels were changed, or after a stop, and nothing happened."""
    page = visit(SLOW, at=slow_server)
    page.get_by_role("button", name="Settings").first.click()
    pick(page, 1)
    page.wait_for_selector("#step2 .step.writing")
    # In one script, so that the page hears the click before the change.
    both = "radio => { radio.click(); document.getElementById('read').click(); }"
    page.get_by_role("radio", name="webemo-2 (2)").evaluate(both)
    expect(page.locator("#charts .bars li")).to_have_count(2, timeout=60_000)
    pick(page, 2)
    page.wait_for_selector("#step1 .step.writing")
    page.evaluate("for (const name of ['stop', 'read']) document.getElementById(name).click()")
    expect(page.locator("#charts .bars li")).to_have_count(2, timeout=60_000)


def test_no_answer_stands_beside_another_image(visit: Any) -> None:
    page = visit()
    give(page, SAMPLES[0])
    read(page)
    remove(page)
    page.wait_for_selector("#step1 .step.waiting")
    expect_blank(page)
    give(page, SAMPLES[1])
    read(page)
    page.get_by_role("button", name="Settings").first.click()
    page.get_by_label("Self-check").check()
    page.wait_for_selector("#step1 .step.waiting")
    expect_blank(page)
    page.get_by_role("tab", name="Several images").click()
    page.set_input_files("#images input[type=file]", SAMPLES[:2])
    page.get_by_label(SAMPLES[1].name).wait_for()
    page.click("#read-many")
    page.wait_for_selector("#downloads a")
    page.get_by_label("emotion6").check()
    expect(page.locator("#gallery img")).to_have_count(0)
    expect(page.locator("#downloads a")).to_have_count(0)


@pytest.mark.parametrize("method", ["think", "direct"])
def test_the_page_follows_the_method(visit: Any, method: str, tmp_path: Path) -> None:
    folder = copied_miniature(tmp_path / "my-model", method)
    (tmp_path / "demo").mkdir()
    for server in serve(partial(main, ["demo", "--model", str(folder)]), tmp_path / "demo"):
        page = visit("?check=1", at=server)
        text = page.locator(".prose.top").inner_text()
        assert "my-model" in text and str(folder) not in page.content() and "three steps" not in text
        page.get_by_role("button", name="Settings").first.click()
        page.get_by_label("emoset").wait_for()  # the settings unfold
        expect(page.get_by_label("Self-check")).to_have_count(int(method == "think"))
        expect(page.locator(".step")).to_have_count(int(method == "think"))
        give(page, SAMPLES[0])
        read(page)
        expect(page.locator("#charts .bars li")).to_have_count(8)
        if method == "think":
            expect(page.locator("#think .step.written p")).to_have_text(re.compile(".{6}"))
            expect(page.locator("#check")).to_contain_text("its reasoning")
        page.wait_for_timeout(500)
        assert violations(page) == []
        page.close()


def test_a_grounded_answer_has_its_region_on_the_image(visit: Any, tmp_path: Path) -> None:
    """The frame lies on the image as a person sees it, where the answer says; with the map, they are compared."""
    folder = copied_miniature(tmp_path / "my-model", "grounded")
    (tmp_path / "demo").mkdir()
    for server in serve(partial(main, ["demo", "--model", str(folder)]), tmp_path / "demo"):
        page = visit(at=server)
        expect(page.locator(".step")).to_have_count(3)
        give(page, SAMPLES[5])
        page.get_by_role("button", name="Settings").first.click()
        page.get_by_label("Show what the label hangs on").check()
        read(page)
        page.wait_for_selector("#evidence .region")
        image, frame = (page.locator(f"#evidence {one}").first.bounding_box() for one in ("img", ".region"))
        expected = EmoR3Pipeline.from_pretrained(folder)(SAMPLES[5]).evidence
        assert expected is not None and expected.box is not None
        for side, (start, length) in enumerate((("x", "width"), ("y", "height"))):
            scale = image[length] / expected.size[side]
            assert frame[start] - image[start] == pytest.approx(expected.box[side] * scale, abs=1.5)
            assert frame[length] == pytest.approx((expected.box[side + 2] - expected.box[side]) * scale, abs=1.5)
        said = page.locator("#evidence").inner_text()
        assert "% of the image" in said and "lies in it" in said
        expect(page.locator("#step3 .step.written")).to_have_text(re.compile("( · .*){4}"))
        page.wait_for_timeout(500)
        assert violations(page) == []
        page.close()
