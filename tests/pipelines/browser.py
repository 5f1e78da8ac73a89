"""Chromium on one page; its screenshots are left in build/screenshots."""

import shutil
from contextlib import suppress
from pathlib import Path

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from tests.pipelines.commands import ROOT

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
SCREENSHOTS = ROOT / "build" / "screenshots"
PAGE_SECONDS = 60
WIDTH, HEIGHT, PHONE_WIDTH = 1600, 1200, 390
"""Of the window, in pixels."""
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--disable-dev-shm-usage",
)


class Browser:
    """Chromium with one page."""

    def __init__(self, profile: Path) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))

    def open(self, address: str, *, width: int = WIDTH) -> None:
        size = {"width": width, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.get(address)

    def click(self, path: str) -> None:
        """Click the element at an XPath, once it is there, visible or not."""
        self.driver.execute_script("arguments[0].click()", self.wait(path, drawn=False)[0])

    def wait(self, path: str, *, drawn: bool = True) -> list[WebElement]:
        """The visible elements at an XPath, once there is one; with `drawn=False` all of them."""

        def found(driver: webdriver.Chrome) -> list[WebElement]:
            elements = driver.find_elements(By.XPATH, path)
            return [element for element in elements if element.is_displayed() or not drawn]

        again = (StaleElementReferenceException,)
        waiting = WebDriverWait(self.driver, PAGE_SECONDS, ignored_exceptions=again)
        return waiting.until(found, path)

    @property
    def text(self) -> str:
        return self.driver.find_element(By.TAG_NAME, "body").text

    def missing(self, *texts: str) -> list[str]:
        """The texts that the page does not show within PAGE_SECONDS."""
        left = list(texts)

        def none_left(_: webdriver.Chrome) -> bool:
            left[:] = [text for text in texts if text not in self.text]
            return not left

        with suppress(TimeoutException):
            WebDriverWait(self.driver, PAGE_SECONDS).until(none_left)
        return left

    def overflow(self) -> int:
        """Pixels by which the page is wider than the window."""
        wide = "const page = document.documentElement; return page.scrollWidth - page.clientWidth"
        return int(self.driver.execute_script(wide))

    def picture(self, name: str) -> None:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.driver.save_screenshot(str(SCREENSHOTS / f"{name}.png"))

    def errors(self) -> list[str]:
        """Errors that the page logged since the last call."""
        return [
            row["message"] for row in self.driver.get_log("browser") if row["level"] == "SEVERE"
        ]
