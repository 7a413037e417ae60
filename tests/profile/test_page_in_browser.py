"""The page in headless Chromium. SCREENSHOTS=DIR keeps what it looks like, for people to look at."""

import os
import shutil
from pathlib import Path

import pytest
from profiles import Run
from windows import Made, at, two_steps

from terra_cx.profile.page import render

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER),
        reason="no Chromium with its driver; apt-get install chromium chromium-driver",
    ),
]
VIEWS = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(60)
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    window = two_steps()
    Made.lane(_with(window), "GPU 0 Stream #7", "gpu", (6.5, 9, "gemm"), (16.5, 18.5, "gemm"))
    file = tmp_path_factory.mktemp("page") / "profile.html"
    file.write_text(render(Run(window).profile(), [window]), encoding="utf-8")
    return file


def _with(window):
    made = Made()
    made.window = window
    return made


def look(browser, page, width=1280, scheme="light"):
    """Open the page as somebody with a window of this width does."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    scheme_feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme_feature]})
    browser.get(page.as_uri())
    painted(browser)


def painted(browser):
    """Wait until what was asked for has been drawn."""
    browser.execute_async_script(
        "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => done()))"
    )


def shown(browser):
    view = browser.find_element(By.CSS_SELECTOR, ".view")
    return float(view.get_attribute("data-from")), float(view.get_attribute("data-to"))


def colours(browser):
    """How many colours the timeline has."""
    return browser.execute_script(
        "const c = document.querySelector('.view');"
        "const data = new Uint32Array(c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer);"
        "return new Set(data).size"
    )


def press(browser, what):
    browser.find_element(By.CSS_SELECTOR, f"[data-do={what}]").click()
    painted(browser)


def row(browser, number):
    return browser.find_element(By.CSS_SELECTOR, f"tr.line[data-line='{at(number)}']")


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_it_renders_at_any_width_light_and_dark(browser, page, width, scheme):
    look(browser, page, width, scheme)
    assert browser.find_element(By.CSS_SELECTOR, ".verdict").is_displayed()
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert colours(browser) > 8
    background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (int(background.split("(")[1].split(",")[0]) < 128) == (scheme == "dark")
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    if os.environ.get("SCREENSHOTS"):
        folder = Path(os.environ["SCREENSHOTS"])
        folder.mkdir(parents=True, exist_ok=True)
        browser.save_screenshot(str(folder / f"page-{width}-{scheme}.png"))


def test_nothing_is_asked_of_a_network(browser, page):
    browser.get_log("performance")
    look(browser, page)
    asked = [
        entry["message"]
        for entry in browser.get_log("performance")
        if "requestWillBeSent" in entry["message"]
    ]
    assert all('"url":"file:' in message or '"url":"data:' in message for message in asked)


def test_the_timeline_zooms_and_moves(browser, page):
    look(browser, page)
    press(browser, "all")
    whole = shown(browser)
    assert whole[0] <= 0
    assert whole[1] >= 20_000
    press(browser, "in")
    near = shown(browser)
    assert near[1] - near[0] == pytest.approx((whole[1] - whole[0]) / 2, rel=0.05)
    press(browser, "out")
    press(browser, "step")
    step = shown(browser)
    assert step[1] - step[0] == pytest.approx(10_000, rel=0.1)
    view = browser.find_element(By.CSS_SELECTOR, ".view")
    ActionChains(browser).move_to_element(view).click_and_hold().move_by_offset(120, 0).release().perform()
    painted(browser)
    assert shown(browser)[0] < step[0]
    view.send_keys("+")
    painted(browser)
    assert shown(browser)[1] - shown(browser)[0] < step[1] - step[0]
    before = shown(browser)
    view.send_keys(Keys.ARROW_RIGHT)
    painted(browser)
    assert shown(browser)[0] > before[0]


def test_the_wheel_zooms_about_the_pointer(browser, page):
    look(browser, page)
    press(browser, "all")
    before = shown(browser)
    browser.execute_script(
        "const view = document.querySelector('.view'), box = view.getBoundingClientRect();"
        "view.dispatchEvent(new WheelEvent('wheel', {deltaY: -240, ctrlKey: true, cancelable: true,"
        "  clientX: box.left + box.width / 4, clientY: box.top + 60}))"
    )
    painted(browser)
    after = shown(browser)
    assert after[1] - after[0] < (before[1] - before[0]) / 2
    at_pointer = [start + (end - start) / 4 for start, end in (before, after)]
    assert at_pointer[0] == pytest.approx(at_pointer[1], abs=50)


def test_a_click_on_a_line_shows_its_waits(browser, page):
    look(browser, page)
    line = row(browser, 30)
    detail = line.find_element(By.XPATH, "following-sibling::tr[1]")
    assert not detail.is_displayed()
    before = colours(browser)
    line.click()
    painted(browser)
    assert detail.is_displayed()
    assert "Waited 812 times, 1.1 s in all" in detail.text
    assert line.get_attribute("aria-expanded") == "true"
    assert browser.find_element(By.CSS_SELECTOR, ".view").get_attribute("data-line") == at(30)
    start, end = shown(browser)
    assert start < 10_000
    assert end > 7000  # its wait is in view
    assert colours(browser) != before  # all else is paler
    line.click()
    assert not detail.is_displayed()


def test_a_line_can_be_chosen_by_the_keyboard(browser, page):
    look(browser, page)
    line = row(browser, 12)
    line.send_keys(Keys.ENTER)
    painted(browser)
    assert line.get_attribute("aria-expanded") == "true"


def test_a_bar_of_the_timeline_chooses_its_line_and_says_what_it_is(browser, page):
    look(browser, page)
    press(browser, "all")
    start, end = shown(browser)
    view = browser.find_element(By.CSS_SELECTOR, ".view")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", view)
    offset = (8500 - start) / (end - start) * view.size["width"] - view.size["width"] / 2
    down = 60 - view.size["height"] / 2  # into the first lane
    ActionChains(browser).move_to_element_with_offset(view, round(offset), round(down)).perform()
    painted(browser)
    tip = browser.find_element(By.CSS_SELECTOR, ".tip")
    assert "wait: fetch" in tip.text
    assert "waiting for a value" in tip.text
    ActionChains(browser).click().perform()
    painted(browser)
    assert row(browser, 30).get_attribute("aria-expanded") == "true"
