"""The MLflow UI and the report in a real browser, after a real sweep.

What was on the screen is left in build/screenshots.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from pipelines.runtime.tracking import Store
from tests.pipelines.commands import ROOT, Folder, free_port, start_and_wait, stop

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
SCREENSHOTS = ROOT / "build" / "screenshots"
PAGE_SECONDS = 60
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--window-size=1600,1200", "--disable-dev-shm-usage"),
)
SWEEP = ("sweep.py", "tiny.yaml", "train.tokens=16384", "fit.tokens=16384")

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="no chromium and chromedriver: apt-get install chromium chromium-driver",
)


class Browser:
    """Chromium, looking at one page."""

    def __init__(self, profile: Path) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))

    def open(self, address: str) -> None:
        self.driver.get(address)

    def find(self, text: str) -> WebElement:
        """The innermost visible element that shows a text, once there is one."""
        return self.wait(f"//*[contains(normalize-space(.), '{text}')]")[-1]

    def wait(self, path: str) -> list[WebElement]:
        """The visible elements at an XPath, once there is one."""

        def shown(driver: webdriver.Chrome) -> list[WebElement]:
            return [e for e in driver.find_elements(By.XPATH, path) if e.is_displayed()]

        return WebDriverWait(self.driver, PAGE_SECONDS).until(shown, path)

    def picture(self, name: str) -> None:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.driver.save_screenshot(str(SCREENSHOTS / f"{name}.png"))

    def errors(self) -> list[str]:
        """What the page has complained about since this was last asked."""
        return [
            row["message"] for row in self.driver.get_log("browser") if row["level"] == "SEVERE"
        ]


@pytest.fixture(scope="module")
def swept(tmp_path_factory, text) -> Folder:
    folder = Folder(tmp_path_factory.mktemp("seen"), text)
    code, _, err = folder.run(*SWEEP)
    assert code == 0, err
    return folder


@pytest.fixture(scope="module")
def store(swept: Folder) -> Store:
    return swept.store()


@pytest.fixture(scope="module")
def address(swept: Folder) -> Iterator[str]:
    """Of MLflow's UI on what the sweep has left."""
    port = free_port()
    server = start_and_wait(
        [
            *("server", "--port", str(port), "--workers", "1"),
            *("--backend-store-uri", f"sqlite:///{swept.path}/mlflow.db"),
        ],
        f"http://127.0.0.1:{port}/health",
        swept.path,
        {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
    )
    yield f"http://127.0.0.1:{port}"
    stop(server)


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.driver.quit()
