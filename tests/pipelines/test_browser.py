"""The MLflow UI and the report in a real browser, after a real sweep.

What was on the screen is left in build/screenshots.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from pipelines.runtime.tracking import Store
from tests.pipelines.commands import ROOT, Folder, free_port, start_and_wait, stop

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
REPORT = (
    *("summary", "leaderboard", "importance", "history", "parallel", "slices", "curves", "pruning"),
    *("failures", "winner", "mixing", "samples", "lineage", "next"),
)
"""Sections of the report, which has each of them whatever there is to tell."""
SEARCHED = ("train.learning_rate", "model.residual", "model.last_k", "val_bits_per_byte")
SWEEP = (
    "sweep.py",
    "tiny.yaml",
    "train.tokens=16384",
    "fit.tokens=16384",
    "fit.resources.workers=1",
)

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

    def open(self, address: str, *, width: int = WIDTH) -> None:
        size = {"width": width, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.get(address)

    def click(self, path: str) -> None:
        """Press what is at an XPath, once it is there, drawn by itself or not."""
        self.driver.execute_script("arguments[0].click()", self.wait(path, drawn=False)[0])

    def wait(self, path: str, *, drawn: bool = True) -> list[WebElement]:
        """The elements at an XPath, once there is one, that are drawn."""

        def found(driver: webdriver.Chrome) -> list[WebElement]:
            elements = driver.find_elements(By.XPATH, path)
            return [element for element in elements if element.is_displayed() or not drawn]

        again = (StaleElementReferenceException,)
        waiting = WebDriverWait(self.driver, PAGE_SECONDS, ignored_exceptions=again)
        return waiting.until(found, path)

    @property
    def text(self) -> str:
        return self.driver.find_element(By.TAG_NAME, "body").text

    def see(self, *texts: str) -> None:
        """Wait until the page shows them all."""
        waiting = WebDriverWait(self.driver, PAGE_SECONDS)
        waiting.until(lambda _: all(text in self.text for text in texts), f"{texts}")

    def overflow(self) -> int:
        """Pixels by which the page is wider than the window."""
        wide = "const page = document.documentElement; return page.scrollWidth - page.clientWidth"
        return int(self.driver.execute_script(wide))

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
    arguments = ["server", "--port", str(port), "--workers", "1"]
    arguments += ["--backend-store-uri", f"sqlite:///{swept.path}/mlflow.db"]
    server = start_and_wait(arguments, f"http://127.0.0.1:{port}/health", swept.path)
    yield f"http://127.0.0.1:{port}"
    stop(server)


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.driver.quit()


def row(name: str) -> str:
    """The XPath of a run's row on the runs page."""
    return f"//div[@role='row' and .//a[normalize-space(.)='{name}']]"


def rows(browser: Browser) -> list[str]:
    """The names on the runs page, from top to bottom."""
    found = browser.wait("//div[@role='row' and .//a[contains(@href, '/runs/')]]")
    found.sort(key=lambda element: int(element.get_attribute("row-index")))
    return [element.find_element(By.TAG_NAME, "a").text for element in found]


def unfold(browser: Browser, name: str) -> None:
    browser.click(f"{row(name)}//button[contains(@data-component-id, 'runnamecellrenderer')]")


def test_the_runs_page_nests_the_trials_under_their_search_and_compares_them(
    browser, address, store
):
    browser.open(f"{address}/#/experiments/{store.experiment_id}/runs")
    browser.wait(row("tiny pipeline"))
    assert rows(browser) == ["tiny pipeline"]
    unfold(browser, "tiny pipeline")
    browser.wait(row("tiny fit"))
    assert "tiny trial 0" not in rows(browser)
    unfold(browser, "tiny search")
    browser.wait(row("tiny trial 0"))
    names, trials = rows(browser), [f"tiny trial {number}" for number in (3, 2, 1, 0)]
    assert names[names.index("tiny search") :] == ["tiny search", *trials]
    browser.picture("runs")
    for name in trials:
        browser.click(f"{row(name)}//input[contains(@aria-label, 'row selection')]")
    browser.click("//button[normalize-space(.)='Compare']")
    axes = [f"//*[name()='text' and text()='{name}']" for name in SEARCHED]
    for axis in axes:
        browser.wait(axis)
    browser.picture("compare")
    assert "Comparing 4 Runs" in browser.text


def test_a_search_says_what_it_is_and_has_the_study(browser, address, store):
    (search,) = store.find("search")
    page = f"{address}/#/experiments/{store.experiment_id}/runs/{search.info.run_id}"
    browser.open(page)
    browser.see("4 trials of 16,384 bytes over", "best_val_bits_per_byte", "files training")
    browser.picture("search")
    browser.open(f"{page}/artifacts")
    browser.see("study.db")


def test_the_registry_shows_the_champion_and_where_it_comes_from(browser, address, store):
    browser.open(f"{address}/#/models/dca-gpt")
    browser.see("@ champion", "Version 1", "python pipelines/generate.py --model dca-gpt")
    browser.picture("registry")
    browser.open(f"{address}/#/models/dca-gpt/versions/1")
    browser.see("@ champion", "bits per byte of the test split")
    (search,), (fit,) = store.find("search"), store.find("fit")
    links = {"search": search.info.run_id, "fit": fit.info.run_id}
    links |= {"pipeline": store.find("pipeline")[0].info.run_id}
    for text, run in links.items():
        browser.wait(f"//a[normalize-space(.)='{text}' and contains(@href, '{run}')]")
    browser.picture("version")
    browser.open(browser.wait("//a[normalize-space(.)='search']")[0].get_attribute("href"))
    browser.see("tiny search", "train.learning_rate")


def test_the_models_page_has_its_results_and_its_version(browser, address, store):
    (fit,) = store.find("fit")
    (output,) = fit.outputs.model_outputs
    browser.open(f"{address}/#/experiments/{store.experiment_id}/models/{output.model_id}")
    browser.see(
        "test_bits_per_byte", "best_val_bits_per_byte", "tiny evaluate", "files test", "dca-gpt"
    )
    assert "Not registered" not in browser.text
    browser.picture("model")


def test_the_report_is_whole_and_complains_of_nothing(browser, store, tmp_path):
    (pipeline,) = store.find("pipeline")
    folder = store.client.download_artifacts(pipeline.info.run_id, "report", str(tmp_path))
    browser.errors()  # of MLflow's pages
    for name, width in {"report": WIDTH, "report-phone": PHONE_WIDTH}.items():
        browser.open((Path(folder) / "report.html").as_uri(), width=width)
        for section in REPORT:
            browser.wait(f"//*[@id='{section}']")
        assert browser.errors() == []
        browser.picture(name)
        assert browser.overflow() <= 0
