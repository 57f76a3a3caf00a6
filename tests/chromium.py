"""Chromium or Chrome for the tests of pages: the driver, and a page as a person sees it.

Tests that import this are skipped where the browser, its driver (chromedriver, Debian:
chromium-driver) or the package selenium is missing.
"""

import base64
import io
import os
import shutil

import numpy as np
import pytest
from PIL import Image

BROWSER = next(
    filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome", "chrome"])),
    None,
)
DRIVER = shutil.which("chromedriver")
webdriver = pytest.importorskip(
    "selenium.webdriver", reason="the package selenium is not installed"
)
if not (BROWSER and DRIVER):
    pytest.skip("no Chromium or Chrome with chromedriver on the PATH", allow_module_level=True)

LEFT, RIGHT = "\ue012", "\ue014"  # WebDriver's codes of the arrow keys


def browser(folder, *arguments):
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    arguments = [
        *arguments, "headless", "disable-gpu", "disable-quic", "disable-background-networking",
        "disable-component-update", "disable-sync", "no-first-run", "lang=en-US",
        "force-color-profile=srgb", f"user-data-dir={folder / 'profile'}",
    ]  # fmt: skip
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        arguments.append("no-sandbox")  # Chromium refuses its sandbox for root
    for argument in arguments:
        options.add_argument(f"--{argument}")
    (folder / "downloads").mkdir()
    options.add_experimental_option(
        "prefs", {"download.default_directory": str(folder / "downloads")}
    )
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.chrome.service.Service(DRIVER))
    driver.downloads = folder / "downloads"
    return driver


class Page:
    """A page on a screen: reads what is there, clicks, runs scripts."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, page, width=900, height=700, ratio=1, touch=False):
        screen = {"width": width, "height": height, "deviceScaleFactor": ratio, "mobile": touch}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        self.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": touch})
        self.driver.get(page.as_uri())
        return self

    def find(self, name):
        return self.driver.find_element("id", name)

    def sees(self, name):
        return self.find(name).is_displayed()

    def click(self, name):
        self.find(name).click()
        return self

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def screenshot(self):
        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"]
        return decoded(shot)


def decoded(png):
    """The pixels of a PNG in base64, uint8 (H, W, 3)."""
    return np.array(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"))
