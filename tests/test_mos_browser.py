"""The rating page in a real browser, by clicks and by keys, on screens of several densities.

Skipped where there is no browser: see tests/chromium.py.
"""

import base64
import io
import json

import numpy as np
import pytest
from chromium import LEFT, RIGHT, Page, browser, webdriver
from PIL import Image
from selenium.webdriver.support.ui import WebDriverWait
from skimage import data as photographs
from test_mos import data_of, versions_of

from tools import mos
from utils import write_image

GOOD = {"nearest": 1, "bicubic": 2, "SRGAN": 4, "HR": 5}


class Rater(Page):
    """A person at the page: reads what is on the screen, clicks, types."""

    def wait(self):
        """Until an image or the last page is there."""
        self.run("""
          const seen = () => picture.checkVisibility({visibilityProperty: true})
                             || end.checkVisibility();
          return new Promise(done => {
            const look = () => seen() ? done() : setTimeout(look, 5);
            look();
          });
        """)

    def start(self, name="Anna"):
        self.find("rater").send_keys(name)
        self.click("start").wait()
        return self

    def press(self, *keys):
        for key in keys:
            self.driver.find_element("tag name", "body").send_keys(key)
            self.wait()

    def rate_by_click(self, score):
        self.driver.find_elements("css selector", "#scores button[value]")[score - 1].click()
        self.wait()

    def pressed(self):
        """The scores that are marked as given to the image on the screen."""
        return [
            int(b.get_attribute("value"))
            for b in self.driver.find_elements("css selector", "#scores [aria-pressed=true]")
        ]

    def shown(self):
        """(code of the image on the screen, its PNG)."""
        return self.run("return order[position]"), base64.b64decode(
            self.find("picture").get_attribute("src").split(",")[1]
        )


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("browser")) as driver:
        yield driver


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Two images, one wide and one high, of four methods."""
    folder = tmp_path_factory.mktemp("results") / "Set2"
    crops = {
        "wide": photographs.astronaut()[:80, 100:220],
        "high": photographs.coffee()[100:220, 200:268],
    }
    noise = np.random.default_rng(0)
    for image, hr in crops.items():
        write_image(folder / "HR" / f"{image}.png", np.ascontiguousarray(hr))
        for method in ("bicubic", "SRGAN"):  # noise: every pixel that is shifted or resampled shows
            write_image(
                folder / method / f"{image}.png", noise.integers(0, 256, hr.shape, dtype=np.uint8)
            )
    return quick(mos.make_page(folder, folder.parent / "rating.html"))


def quick(page):
    """The page without the rest for the eyes between two images."""
    text = page.read_text(encoding="utf-8")
    assert text.count("PAUSE = 250") == 1
    page.write_text(text.replace("PAUSE = 250", "PAUSE = 10"), encoding="utf-8")
    return page


@pytest.fixture
def rater(driver, page):
    rater = Rater(driver).open(page)
    rater.run("localStorage.clear()")
    driver.refresh()
    yield rater
    errors = [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    assert not errors


def finished_download(rater):
    for file in rater.driver.downloads.iterdir():
        file.unlink()
    rater.click("download")

    def complete_file(_):  # the browser begins with an empty file
        files = rater.driver.downloads.glob("*.json")
        return next((file for file in files if file.read_bytes().endswith(b"}")), None)

    return WebDriverWait(rater.driver, 30, poll_frequency=0.02).until(complete_file)


def rate_all(rater, page, opinion=GOOD):
    versions = versions_of(data_of(page))
    while not rater.sees("end"):
        rater.press(str(opinion[versions[rater.shown()[0]][0]]))


# --- rating --------------------------------------------------------------------------------------


def test_a_whole_rating_by_clicks_is_scored(rater, page):
    data = data_of(page)
    versions = versions_of(data)
    assert not rater.find("start").is_enabled()  # who is it?
    rater.start("王 Anna")
    for k in range(8):
        assert rater.find("count").text == f"{k + 1} / 8"
        code, png = rater.shown()
        assert base64.b64encode(png).decode() == data["images"][code]
        rater.rate_by_click(GOOD[versions[code][0]])
    assert rater.sees("end") and not rater.sees("stage")
    file = finished_download(rater)
    assert file.name == f"rating-王_Anna-{data['page'][:6]}.json"
    assert rater.find("result").get_attribute("value") == file.read_text(encoding="utf-8")
    scores = mos.score([file])
    assert scores.table["MOS"].to_dict() == GOOD
    assert (scores.name, scores.raters, scores.refused) == ("Set2", 1, {})


def test_a_whole_rating_by_keys_with_going_back_and_a_reload(rater, page):
    versions = versions_of(data_of(page))
    rater.start()
    first = rater.shown()
    rater.press("1", "2", "3")
    rater.press("6", "a", RIGHT)  # no scores; nothing rated yet to go forward to
    assert rater.find("count").text == "4 / 8" and rater.pressed() == []
    rater.press(LEFT)
    assert rater.find("count").text == "3 / 8" and rater.pressed() == [3]
    rater.press("5")
    assert rater.find("count").text == "4 / 8"
    rater.press(LEFT, LEFT)
    assert rater.find("count").text == "2 / 8" and rater.pressed() == [2]
    rater.click("back").wait()
    assert rater.pressed() == [1] and rater.shown() == first
    rater.press(RIGHT, RIGHT, RIGHT)
    assert rater.find("count").text == "4 / 8"
    fourth = rater.shown()

    rater.driver.refresh()
    assert (
        rater.find("start").text == "Continue (3 of 8 done)"
        and not rater.find("rater").is_enabled()
    )
    rater.click("start").wait()
    assert rater.find("count").text == "4 / 8" and rater.shown() == fourth
    rater.press("4", "4", "4", "4", "4")
    assert rater.sees("end")
    scores = dict(json.loads(finished_download(rater).read_text(encoding="utf-8"))["scores"])
    assert list(scores.values()) == [1, 2, 5, 4, 4, 4, 4, 4] and scores.keys() == versions.keys()

    rater.driver.refresh()  # all is rated: straight to the download, and back from there
    assert rater.sees("end")
    rater.click("review").wait()
    assert rater.find("count").text == "8 / 8"
    rater.press("2")
    scores = dict(json.loads(finished_download(rater).read_text(encoding="utf-8"))["scores"])
    assert list(scores.values()) == [1, 2, 5, 4, 4, 4, 4, 2]


def test_double_clicks_and_held_keys_rate_once(rater):
    rater.start()
    rater.run("for (let i = 0; i < 3; i++) document.querySelector('#scores [value=\"4\"]').click()")
    rater.wait()
    assert rater.find("count").text == "2 / 8"
    for repeat in ("false", "true"):
        rater.run(
            f"document.dispatchEvent(new KeyboardEvent('keydown', {{key: '4', repeat: {repeat}}}))"
        )
        rater.wait()
        assert rater.find("count").text == "3 / 8"


def test_the_order_is_random_and_follows_from_the_stored_seed(rater, page):
    def shuffled(items, seed):  # the page's rule once more: Fisher-Yates, xorshift32 with 13, 17, 5
        x, order = seed, list(items)
        for i in range(len(order) - 1, 0, -1):
            x ^= x << 13 & 0xFFFFFFFF
            x ^= x >> 17
            x ^= x << 5 & 0xFFFFFFFF
            j = x % (i + 1)
            order[i], order[j] = order[j], order[i]
        return order

    codes, orders = sorted(versions_of(data_of(page))), set()
    for _ in range(3):
        rater.run("localStorage.clear()")
        rater.driver.refresh()
        rater.start()
        rate_all(rater, page)
        result = json.loads(rater.find("result").get_attribute("value"))
        assert [code for code, _ in result["scores"]] == shuffled(codes, result["seed"])
        orders.add(tuple(code for code, _ in result["scores"]))
    assert len(orders) == 3
    seeds = np.random.default_rng(0).integers(1, 2**32, 4000).tolist()
    first = [codes.index(shuffled(codes, seed)[0]) for seed in seeds]
    assert (
        min(np.bincount(first)) > 420 and max(np.bincount(first)) < 580
    )  # 500 each: every image is as often the first


def test_the_next_rater_starts_afresh_after_asking(rater, page):
    rater.start("Anna")
    rate_all(rater, page)
    first = json.loads(rater.find("result").get_attribute("value"))
    rater.click("next")
    rater.driver.switch_to.alert.dismiss()
    assert rater.sees("end")
    rater.click("next")
    rater.driver.switch_to.alert.accept()
    assert rater.sees("intro") and rater.find("rater").get_attribute("value") == ""
    rater.start("Bob")
    assert rater.find("count").text == "1 / 8" and rater.pressed() == []
    rate_all(rater, page)
    second = json.loads(rater.find("result").get_attribute("value"))
    assert second["rater"] == "Bob" and second["seed"] != first["seed"]


def test_another_set_of_images_has_its_own_memory(rater, tmp_path):
    rater.start("Anna")
    rater.press("3")
    folder = tmp_path / "Other"
    for method in ("HR", "SRGAN"):
        write_image(folder / method / "a.png", np.full((16, 16, 3), 90, np.uint8))
    rater.open(mos.make_page(folder, tmp_path / "other.html"))
    assert rater.find("start").text == "Start" and rater.find("rater").get_attribute("value") == ""


def test_damaged_memory_is_a_fresh_start(rater):
    for content in ["{", "null", "7", '{"language": "xx"}', '{"language": "en", "seed": "x"}']:
        rater.run("localStorage.setItem(STORE, arguments[0])", content)
        rater.driver.refresh()
        assert rater.find("start").text == "Start" and rater.sees("intro"), content


def test_markup_in_a_name_is_dropped_and_never_run(rater, page):
    rater.start("<img src=x onerror=alert(1)> Bob O'Neill")
    rate_all(rater, page)
    file = finished_download(rater)
    assert mos.score([file]).raters == 1
    assert (
        json.loads(file.read_text(encoding="utf-8"))["rater"]
        == "img srcx onerroralert1 Bob O'Neill"
    )


# --- what the rater sees -------------------------------------------------------------------------


def test_pixels_read_back_from_a_canvas_are_those_of_the_png(rater, page):
    read = """
      const [code, done] = arguments, image = new Image();
      image.onload = () => {
        const size = {width: image.naturalWidth, height: image.naturalHeight};
        const canvas = Object.assign(document.createElement("canvas"), size);
        const context = canvas.getContext("2d");
        context.drawImage(image, 0, 0);
        const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
        done([canvas.height, canvas.width, [...pixels]]);
      };
      image.src = "data:image/png;base64," + data.images[code];
    """
    for code, (method, image) in versions_of(data_of(page)).items():
        height, width, values = rater.driver.execute_async_script(read, code)
        pixels = np.array(values, np.uint8).reshape(height, width, 4)
        if method != "nearest":
            expected = np.array(Image.open(page.parent / "Set2" / method / f"{image}.png"))
            assert np.array_equal(pixels[..., :3], expected)
        assert (pixels[..., 3] == 255).all()


def shows_every_pixel(rater, zoom):
    """Rate three images in windows of three sizes: each pixel takes zoom x zoom of the screen."""
    rater.run("localStorage.clear()")
    rater.driver.set_window_size(901, 1200)
    rater.driver.refresh()
    rater.driver.find_elements("css selector", "#sizes button")[zoom - 1].click()
    rater.start()
    for width, height in [(901, 1200), (902, 1201), (903, 1203)]:  # free space in halves, too
        rater.driver.set_window_size(width, height)
        rater.press("3")
        left, top, ratio = rater.run(
            "const r = picture.getBoundingClientRect(); return [r.left, r.top, devicePixelRatio]"
        )
        expected = (
            np.array(Image.open(io.BytesIO(rater.shown()[1])))
            .repeat(zoom, axis=0)
            .repeat(zoom, axis=1)
        )
        top, left = round(top * ratio), round(left * ratio)
        screen = rater.screenshot()[top : top + expected.shape[0], left : left + expected.shape[1]]
        assert np.array_equal(screen, expected)
    assert json.loads(rater.run("return result()"))["zoom"] == zoom


@pytest.mark.parametrize("ratio", [1.25, 2.625])
def test_each_pixel_is_shown_on_whole_pixels_of_a_fine_screen(tmp_path, page, ratio):
    with browser(tmp_path, f"force-device-scale-factor={ratio}") as driver:
        driver.get(page.as_uri())
        for zoom in (1, 2):
            shows_every_pixel(Rater(driver), zoom)


@pytest.mark.parametrize("ratio", [1, 2])
def test_each_pixel_is_shown_on_whole_pixels_of_an_emulated_screen(rater, page, ratio):
    rater.open(page, 401, 617, ratio)
    for zoom in (1, 3):
        shows_every_pixel(rater, zoom)


def test_an_image_larger_than_the_screen_is_scrolled_and_dragged_not_scaled(rater, tmp_path):
    hr = np.random.default_rng(1).integers(0, 256, (460, 500, 3), dtype=np.uint8)
    for method in ("HR", "SRGAN"):
        write_image(tmp_path / "Large" / method / "a.png", hr)
    rater.open(mos.make_page(tmp_path / "Large", tmp_path / "large.html"), 300, 400)
    rater.start()
    expected = np.array(Image.open(io.BytesIO(rater.shown()[1])))
    seen = rater.run("return [stage.scrollWidth, stage.scrollHeight]")
    assert seen == [500, 460]

    def visible():
        x, y, width, height = rater.run(
            "return [stage.scrollLeft, stage.scrollTop, stage.clientWidth, stage.clientHeight]"
        )
        return (
            x,
            y,
            rater.screenshot()[48 : 48 + height, :width],
            expected[y : y + height, x : x + width],
        )

    x, y, screen, part = visible()
    assert x > 80 and y > 60 and np.array_equal(screen, part)  # begins in the middle
    drag = (
        webdriver.ActionChains(rater.driver, duration=0)
        .move_to_element(rater.find("stage"))
        .click_and_hold()
    )
    drag.move_by_offset(-60, -40).release().perform()
    moved_x, moved_y, screen, part = visible()
    assert (moved_x, moved_y) == (x + 60, y + 40) and np.array_equal(screen, part)
    for corner in ("0, 0", "9999, 9999"):
        rater.run(f"stage.scrollTo({corner})")
        *_, screen, part = visible()
        assert np.array_equal(screen, part)


def test_turning_the_phone_keeps_the_image_in_the_middle(rater, page):
    rater.open(page, 360, 640, 2, touch=True).start()
    for width, height in [(640, 360), (360, 640)]:
        screen = {"width": width, "height": height, "deviceScaleFactor": 2, "mobile": True}
        rater.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        rater.run(
            "return new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )
        box = rater.run(
            "const r = picture.getBoundingClientRect();return [r.left + r.right, stage.clientWidth]"
        )
        assert box[0] == pytest.approx(box[1], abs=1.1)


@pytest.mark.parametrize("width", [320, 390, 900])
def test_nothing_overflows_and_touch_targets_are_large(rater, page, width):
    rater.open(page, width, 640, 2, touch=True)
    for _ in range(2):
        assert rater.run(
            "return intro.scrollWidth <= intro.clientWidth"
            "       && document.body.scrollWidth <= innerWidth"
        )
        rater.click("language")
    rater.start()
    buttons = rater.driver.find_elements("css selector", "#scores button")
    assert len(buttons) == 6
    for button in buttons:
        box = button.rect
        assert box["height"] >= 44 and box["width"] >= 40 and box["x"] + box["width"] <= width
    spans = "[...document.querySelectorAll('#scores span')]"
    assert rater.run(
        f"return {spans}.every(span => span.scrollWidth <= span.clientWidth)"
    )  # "excellent" fits in


def test_calibration_shows_nearest_neighbour_as_1_and_the_original_as_5(rater):
    captions = [c.text for c in rater.driver.find_elements("css selector", "figcaption")]
    assert captions == ["1 bad", "5 excellent"]
    sources = rater.run(
        "const figures = [...document.querySelectorAll('figure')];"
        "return figures.map(f => [...f.querySelectorAll('img')].map(i => i.src))"
    )
    worst, best = (
        [np.array(Image.open(io.BytesIO(base64.b64decode(s.split(",")[1])))) for s in side]
        for side in sources
    )
    assert np.array_equal(best[0], photographs.astronaut()[20:200, 100:340])
    for low, high in zip(worst, best, strict=True):
        assert low.shape == high.shape
        assert np.array_equal(low, low[::4, ::4].repeat(4, axis=0).repeat(4, axis=1))
        assert abs(low.mean() - high.mean()) < 1 < abs(low.astype(int) - high).mean()


def test_english_and_chinese(rater):
    english = rater.find("intro").text
    assert (
        "Give each a score" in english and rater.run("return document.documentElement.lang") == "en"
    )
    rater.click("language")
    chinese = rater.find("intro").text
    assert "打分" in chinese and "Give each" not in chinese
    rater.driver.refresh()
    assert rater.find("intro").text == chinese  # remembered
    rater.start()
    assert rater.driver.find_element("css selector", "#scores [value='5']").text.split() == [
        "5",
        "优",
    ]
    keys = rater.run("return Object.values(TEXTS).map(t => Object.keys(t).join())")
    assert keys[0] == keys[1]
    rater.run(
        "localStorage.clear();"
        "Object.defineProperty(navigator, 'language', {value: 'zh-TW'}); state = fresh()"
    )
    assert rater.run("return state.language") == "zh"


def test_nothing_on_the_page_names_a_method_and_nothing_is_fetched(rater, page):
    rater.start()
    for _ in range(3):
        visible = rater.run(r"""
          const copy = document.documentElement.cloneNode(true);
          copy.querySelectorAll('script').forEach(script => script.remove());
          return copy.outerHTML.replace(/base64,[^"]*/g, '');
        """)
        for name in ["SRGAN", "bicubic", "nearest", "Set2", "wide", "high.png"]:
            assert name.lower() not in visible.lower()
        rater.press("3")
    fetched = rater.run("return performance.getEntriesByType('resource').map(e => e.name)")
    assert all(name.startswith("data:") for name in fetched)


@pytest.mark.parametrize(("width", "height"), [(360, 640), (640, 360), (900, 700)])
def test_what_lies_ahead_and_the_start_are_seen_without_scrolling(rater, page, width, height):
    rater.open(page, width, height, 2, touch=True)
    for text, nameless in [("8 images, about 1 minute.", "Enter a name"), ("8 张", "请先填写姓名")]:
        assert text in rater.find("amount").text and nameless in rater.find("amount").text
        assert not rater.find("start").is_enabled()
        for name in ("rater", "start", "amount"):
            top, bottom = rater.run(
                f"const box = document.getElementById('{name}').getBoundingClientRect();"
                "return [box.top, box.bottom]"
            )
            assert 0 < top < bottom <= height
        rater.click("language")
    rater.find("rater").send_keys("Anna")
    assert rater.find("start").is_enabled()
    assert rater.find("amount").text == "8 images, about 1 minute."
    rater.start("").press("3", "3", "3", LEFT, LEFT, LEFT)
    rater.click("back")
    assert rater.find("amount").text == "5 images, about 1 minute."


def test_minutes_are_those_of_all_images(rater):
    minutes = "return TEXTS.en.amount(35, Math.ceil(35 * SECONDS / 60))"
    assert rater.run(minutes) == "35 images, about 4 minutes."


@pytest.mark.parametrize(("ratio", "zoom"), [(1, 1), (1.25, 1), (2, 2), (2.625, 3), (5, 4)])
def test_the_size_begins_as_images_usually_are_on_this_screen(rater, page, ratio, zoom):
    rater.open(page, 390, 700, ratio)
    rater.run("localStorage.clear()")
    rater.driver.refresh()
    pressed = rater.driver.find_elements("css selector", "#sizes [aria-pressed=true]")
    assert [button.text for button in pressed] == [f"{zoom}×"]
    rater.start()
    width = rater.run("return picture.getBoundingClientRect().width / picture.naturalWidth")
    assert width == pytest.approx(zoom / ratio, abs=0.01)


def test_storage_that_is_full_is_said_on_the_image_while_it_is(rater, page):
    rater.open(page, 360, 640).start()
    assert not rater.sees("forgetful")
    rater.run("""
      window.setItem = Storage.prototype.setItem;
      Storage.prototype.setItem = () => { throw new DOMException('', 'QuotaExceededError'); };
    """)
    rater.press("3")
    assert rater.sees("forgetful") and rater.sees("stage")
    assert "full" in rater.find("forgetful").text
    rater.click("language")  # which needs other room: the image stays in the middle
    middles = rater.run("""
      const middle = e => e.getBoundingClientRect().top + e.getBoundingClientRect().bottom;
      const frame = () => new Promise(done => requestAnimationFrame(done));
      return frame().then(frame).then(() => [middle(picture), middle(stage)]);
    """)
    assert middles[0] == pytest.approx(middles[1], abs=1.1)
    rater.run("Storage.prototype.setItem = window.setItem")
    rater.press("3")
    assert not rater.sees("forgetful")
    assert rater.run("return Object.keys(JSON.parse(localStorage[STORE]).scores).length") == 2


def test_a_browser_that_keeps_nothing_says_so_and_still_works(rater, page):
    refuse = """
      const get = () => { throw new DOMException('denied', 'SecurityError'); };
      Object.defineProperty(window, 'localStorage', {get});
    """
    script = rater.driver.execute_cdp_cmd(
        "Page.addScriptToEvaluateOnNewDocument", {"source": refuse}
    )
    try:
        rater.driver.refresh()
        assert rater.sees("forgetful")
        rater.start()
        rate_all(rater, page)
        assert mos.score([finished_download(rater)]).raters == 1
    finally:
        rater.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)
        rater.open(page)
