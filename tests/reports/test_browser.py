"""The page in a real browser: drawn, sortable, and right in light, dark and on a phone."""

from __future__ import annotations

import os
import re
import shutil

import pytest
from reports.made_up import comparison, merge, result, search
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from lifelong.reports import write_merge_report, write_report, write_search_report

FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    results = [run for run in comparison(3) if (run["label"], run["seed"]) != ("rwalk", 2)]
    results += [result(label, experiment="<b>class</b>", tasks=8, old_accuracy=None) for label in ("naive", "ewc")]
    return write_report(results, tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chrome, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if chrome is None or driver is None:
        reason = "needs a browser and its driver: install the packages chromium and chromium-driver"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = chrome
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options, Service(driver))
    yield started
    started.quit()


def open_page(browser, report, *, width=1200, theme="light"):
    media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.get(report.as_uri())
    wait_drawn(browser)


def wait_drawn(browser, times=1):
    drawn = "return Number(document.documentElement.dataset.drawn || 0)"
    WebDriverWait(browser, 60).until(lambda _: browser.execute_script(drawn) >= times)


def brightness(browser, selector, style):
    script = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    numbers = re.findall(r"[0-9.]+", browser.execute_script(script, selector, style))
    return sum(float(number) for number in numbers[:3]) / 3


@pytest.mark.parametrize(("width", "theme"), [(1200, "light"), (1200, "dark"), (390, "light"), (390, "dark")])
def test_every_chart_is_drawn(browser, report, width, theme):
    open_page(browser, report, width=width, theme=theme)
    assert browser.get_log("browser") == []
    charts = browser.find_elements(By.CLASS_NAME, "chart")
    assert len(charts) == 7  # the second experiment has no old tasks to plot
    for chart in charts:
        picture = chart.find_element(By.TAG_NAME, "svg")
        assert picture.size["width"] > 150
        assert picture.size["height"] > 150
        assert picture.size["width"] <= chart.size["width"] + 1
        assert len(picture.find_elements(By.CSS_SELECTOR, ".role-mark path, .role-mark text")) > 1
        assert picture.get_attribute("role") == "img"
        assert len(picture.get_attribute("aria-label")) > 20
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert (brightness(browser, "body", "backgroundColor") < 60) == (theme == "dark")
    assert (brightness(browser, ".chart .role-axis-label text", "fill") > 200) == (theme == "dark")


def test_the_button_switches_page_and_charts(browser, report):
    open_page(browser, report, theme="dark")
    button = browser.find_element(By.ID, "theme")
    assert button.get_attribute("aria-label") == "Switch to light colours"
    button.click()
    wait_drawn(browser, 2)
    assert brightness(browser, "body", "backgroundColor") == 255
    assert brightness(browser, ".chart .role-axis-label text", "fill") < 60
    assert button.text == "Dark"
    assert browser.get_log("browser") == []


def column(browser, number):
    cells = browser.find_elements(By.CSS_SELECTOR, f"table:first-of-type tbody tr > :nth-child({number})")
    return [cell.text for cell in cells[:10]]


def test_a_click_and_a_key_sort_the_table(browser, report):
    open_page(browser, report)
    headers = browser.find_elements(By.CSS_SELECTOR, "thead th")
    headers[1].find_element(By.TAG_NAME, "button").click()
    assert headers[1].get_attribute("aria-sort") == "ascending"
    shares = [float(text.split("±")[0]) for text in column(browser, 2)]
    assert shares == sorted(shares)

    headers[1].find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
    assert headers[1].get_attribute("aria-sort") == "descending"
    shares = [float(text.split("±")[0]) for text in column(browser, 2)]
    assert shares == sorted(shares, reverse=True)

    headers[0].find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
    assert headers[0].get_attribute("aria-sort") == "ascending"
    assert headers[1].get_attribute("aria-sort") is None
    assert column(browser, 1) == sorted(column(browser, 1))


def test_the_keyboard_reaches_the_results_first(browser, report):
    open_page(browser, report)
    browser.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    skip = browser.switch_to.active_element
    assert skip.text == "Skip to the results"
    assert skip.location["x"] >= 0
    skip.send_keys(Keys.ENTER)
    assert browser.switch_to.active_element.get_attribute("id") == "main"


@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize(("write", "made", "count"), [(write_merge_report, merge, 5), (write_search_report, search, 3)])
def test_pages_of_merges_are_drawn(browser, tmp_path, undrawn, write, made, count, width):
    open_page(browser, write(made(), tmp_path / "report.html"), width=width)
    assert browser.get_log("browser") == []
    pictures = browser.find_elements(By.CSS_SELECTOR, ".chart svg")
    assert len(pictures) == count
    assert all(len(each.find_elements(By.CSS_SELECTOR, ".role-mark path")) > 1 for each in pictures)
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
