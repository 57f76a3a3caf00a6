"""The comparison page in a real browser: pixels read back, keys, mouse, touch, phones, languages.

Skipped where there is no browser: see tests/chromium.py.
"""

import numpy as np
import pytest
from chromium import LEFT, RIGHT, Page, browser, decoded, webdriver
from selenium.webdriver.support.ui import WebDriverWait

from tools import compare
from utils import write_image

METHODS = ["bicubic", "SRGAN", "SRResNet", "HR"]
UP, DOWN, SPACE, SHIFT, TAB = "\ue013", "\ue015", " ", "\ue008", "\ue004"
SIZES = {"high": (200, 120), "wide": (120, 160)}
RANDOM = np.random.default_rng(0)
# Noise: every pixel that is shifted, resampled or of another method shows.
IMAGES = {
    image: {m: RANDOM.integers(0, 256, (*size, 3), dtype=np.uint8) for m in METHODS}
    for image, size in SIZES.items()
}


class Viewer(Page):
    """A person at the page: reads the canvas back, presses keys, drags."""

    def open(self, page, *screen, **options):
        super().open(page, *screen, **options)
        return self.wait()

    def wait(self):
        """Until the first image is there."""
        self.run("""
          return new Promise(done => {
            const look = () => document.body.inert ? setTimeout(look, 5) : done();
            look();
          });
        """)
        return self

    def canvas(self):
        return decoded(self.run("return canvas.toDataURL('image/png').split(',')[1]"))

    def press(self, *keys, shift=False):
        for key in keys:
            chain = webdriver.ActionChains(self.driver, duration=0)
            chain = chain.key_down(SHIFT) if shift else chain
            chain = chain.send_keys(key)
            (chain.key_up(SHIFT) if shift else chain).perform()
        return self

    def choose_image(self, number):
        self.run("return load(arguments[0])", number)
        return self

    def drag(self, name, dx, dy=0):
        mouse = webdriver.ActionChains(self.driver, duration=0)
        mouse.move_to_element(self.find(name)).click_and_hold().move_by_offset(dx, dy)
        mouse.release().perform()

    def touch(self, *points):
        """Put fingers down and move them along: each of `points` lists all fingers' (x, y)."""
        kinds = ["touchStart"] + ["touchMove"] * (len(points) - 1) + ["touchEnd"]
        for kind, fingers in zip(kinds, [*points, []], strict=True):
            fingers = [{"x": x, "y": y, "id": k} for k, (x, y) in enumerate(fingers)]
            arguments = {"type": kind, "touchPoints": fingers}
            self.driver.execute_cdp_cmd("Input.dispatchTouchEvent", arguments)

    def labels(self):
        return [e.text for e in self.driver.find_elements("class name", "label")]

    def pressed(self, group):
        return self.run(
            "return [...document.querySelectorAll(`#${arguments[0]} [aria-pressed=true]`)]"
            ".map(button => button.querySelector('.name, span').textContent)",
            group,
        )


def in_the_middle(image, height, width, zoom):
    """What a frame of height x width shows of an image at its beginning; what is free is black."""
    large = image.repeat(zoom, axis=0).repeat(zoom, axis=1)
    top, left = (
        int(np.floor((free - size) / 2 + 0.5))  # JavaScript's Math.round
        for free, size in zip((height, width), large.shape[:2], strict=True)
    )
    frame = np.zeros((height, width, 3), np.uint8)
    part = large[max(0, -top) :, max(0, -left) :][: height - max(0, top), : width - max(0, left)]
    rows, columns = part.shape[:2]
    frame[max(0, top) :, max(0, left) :][:rows, :columns] = part
    return frame


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("browser")) as driver:
        yield driver


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results") / "Set2"
    for image, versions in IMAGES.items():
        for method, array in versions.items():
            write_image(folder / method / f"{image}.png", array)
    return compare.write_page(folder, folder.parent / "compare.html")


@pytest.fixture
def viewer(driver, page):
    yield Viewer(driver).open(page)
    errors = [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    assert not errors


# --- pixels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [1, 2])
def test_every_methods_pixels_read_back_from_the_canvas_are_those_of_its_file(viewer, page, ratio):
    viewer.open(page, 901, 603, ratio)
    for number, image in enumerate(SIZES):
        viewer.choose_image(number)
        for zoom in (1, 3):
            viewer.run("zoom(arguments[0])", zoom)
            for key, method in enumerate(METHODS, start=1):
                viewer.press(str(key))
                seen = viewer.canvas()
                expected = in_the_middle(IMAGES[image][method], *seen.shape[:2], zoom * ratio)
                assert np.array_equal(seen, expected), (image, method, zoom)


@pytest.mark.parametrize(("ratio", "unit"), [(1.25, 1), (2.625, 3)])
def test_each_pixel_is_shown_on_whole_pixels_of_a_fine_screen(tmp_path, page, ratio, unit):
    with browser(tmp_path, f"force-device-scale-factor={ratio}") as driver:
        driver.get(page.as_uri())
        viewer = Viewer(driver).wait()
        for width, height in [(901, 640), (902, 641), (903, 643)]:
            driver.set_window_size(width, height)
            viewer.run("return new Promise(done => requestAnimationFrame(() => "
                       "requestAnimationFrame(done)))")  # fmt: skip
            viewer.press("1")
            viewer.run("labels.hidden = true; zoom(1); stage.blur()")
            top, left = viewer.run(
                "const box = canvas.getBoundingClientRect(); return [box.top, box.left]"
            )
            top, left = round(top * ratio), round(left * ratio)
            expected = in_the_middle(IMAGES["high"]["bicubic"], *viewer.canvas().shape[:2], unit)
            shown = expected.any(axis=2)
            screen = viewer.screenshot()[top:, left:][: shown.shape[0], : shown.shape[1]]
            assert np.array_equal(screen[shown], expected[shown])
        assert f"{unit} × {unit}" in viewer.find("scale").text


def test_side_by_side_shows_the_same_part_of_every_method(viewer):
    viewer.press("w", "+", "+", "+", "+")
    assert [label.split("\n")[0] for label in viewer.labels()] == METHODS
    tiles = viewer.run("return tiles")
    assert [METHODS[tile["method"]] for tile in tiles] == METHODS
    before = viewer.canvas()
    for tile in tiles:
        rows = slice(tile["top"], tile["top"] + tile["height"])
        columns = slice(tile["left"], tile["left"] + tile["width"])
        zoom, image = viewer.run("return state.zoom"), IMAGES["high"][METHODS[tile["method"]]]
        expected = in_the_middle(image, tile["height"], tile["width"], zoom)
        assert np.array_equal(before[rows, columns], expected)
    viewer.drag("stage", -20, -30)  # all move together
    after = viewer.canvas()
    for tile in tiles:
        rows = slice(tile["top"], tile["top"] + tile["height"] - 30)
        columns = slice(tile["left"], tile["left"] + tile["width"] - 20)
        moved_rows = slice(rows.start + 30, rows.stop + 30)
        moved_columns = slice(columns.start + 20, columns.stop + 20)
        assert np.array_equal(after[rows, columns], before[moved_rows, moved_columns])


def test_the_sides_of_the_slider_are_the_two_methods(viewer):
    viewer.press("2", "e")
    assert [label.split("\n")[0] for label in viewer.labels()] == ["SRGAN", "HR"]
    viewer.run("zoom(8)")
    height, width = viewer.canvas().shape[:2]
    left, right = (
        in_the_middle(IMAGES["high"][method], height, width, 8) for method in ("SRGAN", "HR")
    )

    def divider():
        seen = viewer.canvas()
        return next(
            (
                x
                for x in range(width + 1)
                if np.array_equal(seen[:, :x], left[:, :x])
                and np.array_equal(seen[:, x:], right[:, x:])
            ),
            None,
        )

    assert divider() == round(width / 2)
    viewer.drag("handle", -100)
    assert divider() == round(width / 2) - 100
    viewer.press(RIGHT, RIGHT, shift=True)
    assert divider() == round(width / 2) - 100 + round(0.04 * width)
    viewer.run("document.getElementById('handle').focus()")
    viewer.press(*40 * [LEFT])
    assert divider() == 0 and viewer.find("handle").get_attribute("aria-valuenow") == "0"
    viewer.drag("handle", width + 100)
    assert divider() == width
    viewer.press("q")
    assert not viewer.sees("handle")


def test_difference_is_the_absolute_one_amplified(viewer):
    viewer.press("2", "r")
    hr = IMAGES["high"]["HR"].astype(int)
    for gain in (4, 8, 16, 16):
        assert viewer.labels() == [f"|SRGAN − HR| × {gain}"]
        difference = np.minimum(gain * np.abs(IMAGES["high"]["SRGAN"] - hr), 255).astype(np.uint8)
        seen = viewer.canvas()
        zoom = viewer.run("return state.zoom")
        assert np.array_equal(seen, in_the_middle(difference, *seen.shape[:2], zoom))
        viewer.click("stronger")
    for _ in range(5):
        viewer.click("weaker")
    assert viewer.find("gain").text == "1×"
    viewer.press("4")
    assert not viewer.canvas().any()  # HR and itself
    viewer.press("1", shift=True)  # HR and bicubic
    difference = np.abs(IMAGES["high"]["bicubic"] - hr).astype(np.uint8)
    seen = viewer.canvas()
    assert np.array_equal(seen, in_the_middle(difference, *seen.shape[:2], zoom))


# --- keys, mouse, touch --------------------------------------------------------------------------


def test_keys_choose_method_image_and_view(viewer):
    for key, method in enumerate(METHODS, start=1):
        viewer.press(str(key))
        assert viewer.pressed("methods") == [method]
        assert viewer.labels()[0].split("\n")[0] == method
    viewer.press("5", "9", "x")  # no such method, no such key
    assert viewer.pressed("methods") == ["HR"]
    names = ["Side by side", "Slider", "Difference", "In place"]
    for key, name in zip("WERQ", names, strict=True):
        viewer.press(key)
        assert viewer.pressed("views") == [name]
        viewer.press(key.lower())
        assert viewer.pressed("views") == [name]
    for key, image in [("n", "wide"), ("n", "high"), ("p", "wide")]:
        viewer.press(key)
        WebDriverWait(viewer.driver, 10).until(
            lambda driver, i=image: driver.execute_script("return now().name") == i
        )
        assert viewer.run("return data.images[image.value].name") == image
        assert viewer.run("return pictures[0].naturalHeight") == SIZES[image][0]


def test_digits_work_while_a_list_has_the_focus_and_arrows_stay_its_own(viewer):
    viewer.run("against.focus()")
    viewer.press("2")
    assert viewer.pressed("methods") == ["SRGAN"]
    viewer.press(UP)
    assert viewer.run("return methods[state.against]") == "SRResNet"
    assert viewer.run("return [state.x, state.y]") == [0.5, 0.5]


def test_blinking_by_space_click_and_tap_shows_the_compared_image_and_back(viewer, page):
    viewer.press("2")
    for blink in (lambda: viewer.press(SPACE), lambda: viewer.click("stage")):
        for method in ("HR", "SRGAN"):
            blink()
            assert viewer.pressed("methods") == [method]
            seen = viewer.canvas()
            zoom = viewer.run("return state.zoom")
            expected = in_the_middle(IMAGES["high"][method], *seen.shape[:2], zoom)
            assert np.array_equal(seen, expected)
    viewer.drag("stage", 2, -1)  # a hand that is not quite still
    assert viewer.pressed("methods") == ["HR"]
    viewer.press(SPACE, "3")  # a method is that method, whatever was blinked
    assert viewer.pressed("methods") == ["SRResNet"]
    viewer.press("1", shift=True)
    viewer.press(SPACE)
    assert viewer.pressed("methods") == ["bicubic"]

    viewer.open(page, 390, 780, 2, touch=True)
    assert viewer.pressed("methods") == ["bicubic"]
    viewer.touch([(200, 200)])
    assert viewer.pressed("methods") == ["HR"]


def test_space_on_a_button_presses_the_button(viewer):
    viewer.run("document.querySelector('#views [value=beside]').focus()")
    viewer.press(SPACE)
    assert viewer.pressed("views") == ["Side by side"]


def test_a_click_side_by_side_chooses_the_method(viewer):
    viewer.press("w")
    box = viewer.find("stage").rect
    tile = viewer.run("return tiles[2]")
    mouse = webdriver.ActionChains(viewer.driver, duration=0)
    mouse.move_to_element_with_offset(
        viewer.find("stage"),
        round(tile["left"] + tile["width"] / 2 - box["width"] / 2),
        round(tile["top"] + tile["height"] / 2 - box["height"] / 2),
    )
    mouse.click().perform()
    assert viewer.pressed("methods") == ["SRResNet"]


def test_zoom_by_buttons_and_keys_from_1_to_8(viewer):
    assert viewer.find("zoom").text == "3×"  # 200 pixels in about 640
    for _ in range(7):
        viewer.click("in")
    assert viewer.find("zoom").text == "8×"
    viewer.press("-")
    assert viewer.find("zoom").text == "7×"
    viewer.press("+", "=", "+")
    assert viewer.find("zoom").text == "8×"
    for _ in range(9):
        viewer.click("out")
    assert viewer.find("zoom").text == "1×"
    viewer.click("fit")
    assert viewer.find("zoom").text == "3×"
    viewer.press("1", "-", "0")
    assert viewer.find("zoom").text == "3×"


def test_the_next_image_fits_too_until_a_zoom_is_chosen(viewer):
    assert viewer.choose_image(1).find("zoom").text == "3×"  # 160 pixels in 560
    viewer.press("+").choose_image(0)
    assert viewer.find("zoom").text == "4×"
    viewer.press("0").choose_image(1)
    viewer.press("w").choose_image(0)
    assert viewer.find("zoom").text == "1×"  # 200 pixels in half of 640


def wheel(viewer, x, y, dx, dy, modifiers=0):
    event = {"type": "mouseWheel", "x": x, "y": y, "deltaX": dx, "deltaY": dy}
    viewer.driver.execute_cdp_cmd("Input.dispatchMouseEvent", event | {"modifiers": modifiers})


def test_the_wheel_with_ctrl_zooms_at_the_pointer(viewer):
    viewer.run("zoom(7)")
    at = lambda: viewer.canvas()[300, 100]  # noqa: E731
    top = viewer.run("return stage.getBoundingClientRect().top")
    viewer.run("state.x = 0.5 + 0.5 / 120; state.y = 0.5; draw()")
    before = at()
    wheel(viewer, 100.5, 300.5 + top, 0, -100, modifiers=2)
    assert viewer.find("zoom").text == "8×" and np.array_equal(at(), before)
    wheel(viewer, 100.5, 300.5 + top, 0, 100, modifiers=2)
    assert viewer.find("zoom").text == "7×" and np.array_equal(at(), before)


def test_panning_by_drag_wheel_arrows_and_finger_moves_every_method_alike(viewer, page):
    def moved(act, dx, dy):
        """`act` moves the picture by (dx, dy) screen pixels."""
        before = viewer.canvas()
        act()
        after = viewer.canvas()
        height, width = before.shape[:2]
        to = slice(max(0, dy), height + min(0, dy)), slice(max(0, dx), width + min(0, dx))
        came = slice(max(0, -dy), height + min(0, -dy)), slice(max(0, -dx), width + min(0, -dx))
        assert np.array_equal(after[to], before[came])
        assert not np.array_equal(after, before)

    viewer.run("zoom(8)")
    moved(lambda: viewer.drag("stage", 31, -17), 31, -17)
    moved(lambda: wheel(viewer, 200, 300, 15, 40), -15, -40)
    moved(lambda: wheel(viewer, 200, 300, 0, 40, modifiers=8), -40, 0)  # with Shift
    moved(lambda: viewer.press(LEFT), 40, 0)
    moved(lambda: viewer.press(UP, UP), 0, 80)
    moved(lambda: viewer.press(RIGHT, DOWN), -40, -40)
    where = viewer.run("return [state.x, state.y]")
    viewer.press("2", SPACE, "3", "e", "r", "q")
    assert viewer.run("return [state.x, state.y]") == where
    viewer.run("pan(-9999, -9999)")  # up to the corner, no further
    corner = IMAGES["high"]["SRResNet"].repeat(8, axis=0).repeat(8, axis=1)
    height, width = viewer.canvas().shape[:2]
    assert np.array_equal(viewer.canvas(), corner[:height, :width])
    viewer.run("pan(9999, 9999)")
    assert np.array_equal(viewer.canvas(), corner[-height:, -width:])

    viewer.open(page, 390, 780, 2, touch=True)
    viewer.run("zoom(8)")
    moved(lambda: viewer.touch([(200, 200)], [(210, 200)], [(225, 230)]), 50, 60)
    assert viewer.pressed("methods") == ["bicubic"]  # it was no tap


def test_two_fingers_zoom(viewer, page):
    viewer.open(page, 390, 780, 2, touch=True)
    viewer.run("zoom(2)")
    viewer.touch([(180, 200), (220, 200)], [(170, 200), (230, 200)], [(140, 200), (260, 200)])
    assert viewer.find("zoom").text == "6×"
    viewer.touch([(100, 200), (280, 200)], [(150, 200), (230, 200)], [(180, 200), (210, 200)])
    assert viewer.find("zoom").text == "1×"
    assert viewer.pressed("methods") == ["bicubic"]


# --- the page around the pictures ----------------------------------------------------------------


def test_scores_are_those_of_the_image_and_the_method(viewer):
    for number, image in enumerate(SIZES):
        viewer.choose_image(number)
        rows = [
            b.text.split() for b in viewer.driver.find_elements("css selector", "button.method")
        ]
        for (_, name, *scores), method in zip(rows, METHODS, strict=True):
            sr, hr = IMAGES[image][method], IMAGES[image]["HR"]
            expected = [f"{compare.psnr(sr, hr):.2f}", f"{compare.ssim(sr, hr):.4f}"]
            assert (name, scores) == (method, [] if method == "HR" else expected)
    viewer.press("1")
    assert viewer.labels()[0].split("\n") == ["bicubic", f"{rows[0][2]} dB", rows[0][3]]


def test_nothing_moves_when_methods_are_switched(viewer):
    boxes = """
      const all = [...document.querySelectorAll('body *')];
      return all.filter(element => !element.closest('#labels')).map(element => {
        const box = element.getBoundingClientRect();
        return [element.tagName, box.x, box.y, box.width, box.height].join();
      });
    """
    for view in "qwer":
        viewer.press(view)
        at_rest = viewer.run(boxes)
        for key in ("1", "2", "3", "4", SPACE):
            viewer.press(key)
            assert viewer.run(boxes) == at_rest


@pytest.mark.parametrize("width", [320, 360, 390])
def test_a_phone_needs_no_scrolling_to_the_side_and_has_large_targets(viewer, page, width):
    viewer.open(page, width, 700, 3, touch=True)
    for _ in range(2):
        for view in ("place", "beside", "slider", "difference"):
            viewer.find("views").find_element("css selector", f"[value={view}]").click()
            assert viewer.run(
                "const right = e => e.id === 'handle' ? 0 : e.getBoundingClientRect().right;"
                "return Math.max(...[...document.querySelectorAll('body *')].map(right))"
            ) == pytest.approx(width, abs=0.5)
            assert viewer.run("return document.documentElement.scrollWidth") == width
        viewer.click("language")
    for element in viewer.driver.find_elements("css selector", "button, select"):
        assert element.rect["height"] >= 44 and element.rect["width"] >= 44
    assert viewer.sees("touch") and not viewer.sees("keys")
    viewer.run("scrollTo(0, 9999)")  # the picture stays in sight
    assert viewer.run("return stage.getBoundingClientRect().top") == 0


def test_english_and_chinese_are_complete(viewer, driver):
    def keys(texts):
        if isinstance(texts, dict):
            return {key: keys(value) for key, value in texts.items()}
        return len(texts) if isinstance(texts, list) else type(texts)

    plain = "return Object.values(TEXTS).map(t => JSON.parse(JSON.stringify({...t, scale: 'f'})))"
    english, chinese = viewer.run(plain)
    assert keys(english) == keys(chinese)
    words = """
      const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
      while (walk.nextNode()) {
        const parent = walk.currentNode.parentElement;
        if (!parent.closest('script, .label, .name:not([data-text]), select, kbd, #title, dt'))
          found.push(walk.currentNode.textContent);
      }
      const named = [...document.querySelectorAll('[aria-label]')].filter(e => e.id !== 'canvas');
      return [...found, ...named.map(e => e.getAttribute('aria-label'))];
    """
    assert driver.execute_script("return document.documentElement.lang") == "en"
    in_english = viewer.run(words)
    assert [w for w in in_english if any("一" <= c <= "鿿" for c in w)] == ["中文"]
    viewer.click("language")
    assert driver.execute_script("return document.documentElement.lang") == "zh"
    latin = {w for w in viewer.run(words) if not any("一" <= c <= "鿿" for c in w)}
    latin = {w.strip() for w in latin if any(c.isalpha() for c in w)}
    assert latin == {"PSNR", "SSIM", "English"}
    viewer.click("language")
    assert viewer.run(words) == in_english


def test_language_begins_as_the_browsers(viewer, driver, page):
    script = "Object.defineProperty(navigator, 'language', {value: 'zh-TW'})"
    script = driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": script})
    try:
        assert viewer.open(page).pressed("views") == ["原位切换"]
    finally:
        driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)


def test_nothing_is_fetched(viewer):
    viewer.press("w", "e", "r", "n", "2")
    fetched = viewer.run("return performance.getEntriesByType('resource').map(e => e.name)")
    assert all(name.startswith("data:") for name in fetched)


def test_light_and_dark_follow_the_system_and_stay_gray(viewer, driver):
    grounds = {}
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        colours = viewer.run(
            "return [document.body, stage].map(e => getComputedStyle(e).backgroundColor)"
        )
        grounds[scheme] = [[int(c) for c in colour[4:-1].split(",")] for colour in colours]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    for light, dark in zip(grounds["light"], grounds["dark"], strict=True):
        assert len(set(light)) == len(set(dark)) == 1 and light[0] > 200 > 50 > dark[0]


def test_every_control_is_reached_by_tab_and_shows_it(viewer):
    viewer.press("e")
    reached = set()
    for _ in range(30):
        viewer.press(TAB)
        name, outline = viewer.run(
            "const e = document.activeElement, s = getComputedStyle(e);"
            "const name = e === document.body ? '' : e.id || e.value || e.textContent;"
            "return [name, s.outlineStyle + s.outlineWidth]"
        )
        if name:
            reached.add(name)
            assert outline == "solid2px" or name in reached - {name}, name
    controls = {"previous", "image", "next", "language", "stage", "handle", "place", "beside"}
    controls |= {"slider", "difference", "against", "weaker", "stronger", "out", "in", "fit"}
    assert controls <= reached and len(reached) >= len(controls) + len(METHODS)


def test_ones_own_picture_is_compared_with_bicubic_and_has_no_scores(viewer, tmp_path):
    own = {method: IMAGES["wide"][method] for method in ("bicubic", "SRGAN")}
    name = "</script><b>cat</b>"
    viewer.open(compare.write_page({name: own}, tmp_path / "own.html"))
    assert viewer.find("title").text == name and not viewer.sees("images")
    assert "PSNR" not in viewer.driver.find_element("tag name", "body").text
    assert viewer.labels() == ["SRGAN"]
    viewer.press("r")
    assert viewer.labels() == ["|SRGAN − bicubic| × 4"]
    difference = np.abs(own["SRGAN"].astype(int) - own["bicubic"])
    difference = np.minimum(4 * difference, 255).astype(np.uint8)
    seen = viewer.canvas()
    zoom = viewer.run("return state.zoom")
    assert np.array_equal(seen, in_the_middle(difference, *seen.shape[:2], zoom))


def test_a_single_method_can_be_looked_at(viewer, tmp_path):
    image = IMAGES["wide"]["SRGAN"]
    viewer.open(compare.write_page({"a": {"SRGAN": image}}, tmp_path / "a.html"))
    viewer.press("w", "e", "r", SPACE, "q", SPACE)
    seen = viewer.canvas()
    zoom = viewer.run("return state.zoom")
    assert np.array_equal(seen, in_the_middle(image, *seen.shape[:2], zoom))
