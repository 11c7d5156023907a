"""The page for people, in a real browser before a real service with a key."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.checkpoints import CHATML, tiny_checkpoint
from tests.integration.test_service_process import Service, running

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.smoke,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER),
        reason="no browser (make install-system)",
    ),
]

KEY = "schlüssel"
PROMPT, RESPONSES = "Where is the Louvre?", ["In Paris.", "I like <b>cheese</b> & wine.", "No."]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    root = tmp_path_factory.mktemp("models")
    models = [f"{name}={tiny_checkpoint(root / name, name)}" for name in ("qwen2", "bert")]
    (root / "bert" / "chat_template.jinja").write_text(CHATML)
    with running("--api_keys", KEY, "--model", *models) as service:
        yield service


@pytest.fixture
def browser() -> Iterator[Any]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,1400"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(executable_path=str(DRIVER)))
    driver.implicitly_wait(0)
    yield driver
    driver.quit()


def wait(browser: Any, condition: Callable[[], Any]) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 60).until(lambda _: condition())


def test_two_models_side_by_side(service: Service, browser: Any, tmp_path: Path) -> None:
    def find(selector: str) -> Any:
        return browser.find_element("css selector", selector)

    def all_of(selector: str) -> list[Any]:
        return list(browser.find_elements("css selector", selector))

    browser.get(service.url)
    wait(browser, lambda: find("#key-form").is_displayed())
    assert not all_of("#first option")
    find("#key").send_keys(KEY)
    find("#key-form button").click()
    wait(browser, lambda: len(all_of("#first option")) == 2)
    assert not find("#key-form").is_displayed()

    find("#second option[value=bert]").click()
    find("#add").click()
    find("#prompt").send_keys(PROMPT)
    for area, response in zip(all_of("#responses textarea"), RESPONSES, strict=True):
        area.send_keys(response)
    find("#go").click()
    wait(browser, lambda: find("#results").get_attribute("data-done"))

    cards = {card.get_attribute("data-model"): card for card in all_of("#results .card")}
    assert list(cards) == ["qwen2", "bert"]
    for name, card in cards.items():
        body = {"model": name, "items": [{"prompt": PROMPT, "responses": RESPONSES}]}
        headers = {"Authorization": f"Bearer {KEY}".encode()}
        answer = httpx.post(f"{service.url}/score", json=body, headers=headers).json()
        wanted = answer["results"][0]["scores"]
        rows = card.find_elements("css selector", "tbody tr")
        shown = [row.find_element("css selector", ".score").get_attribute("title") for row in rows]
        assert [float(score) for score in shown] == sorted(wanted, reverse=True)
        best = rows[0].find_element("css selector", ".text").text
        assert best.endswith(RESPONSES[wanted.index(max(wanted))])
    # A decoder has a line for each response; an encoder has none.
    assert len(cards["qwen2"].find_elements("css selector", "svg path")) == len(RESPONSES)
    assert not cards["bert"].find_elements("css selector", "svg")
    wait(browser, lambda: "tokens/s" in find("#live").text)
    assert "tokens wait" in find("#live").text

    screenshot = Path(os.environ.get("PAGE_SCREENSHOT", tmp_path / "page.png"))
    browser.save_screenshot(str(screenshot))
    assert screenshot.stat().st_size > 10_000
    complaints = [entry["message"] for entry in browser.get_log("browser")]
    # The first question without a key is refused, and Chromium says so.
    assert all("401" in complaint for complaint in complaints), complaints


def test_what_the_service_refuses_is_said(service: Service, browser: Any) -> None:
    browser.get(service.url)
    browser.execute_script("sessionStorage.setItem('sumzero-key', arguments[0])", KEY)
    browser.refresh()
    options = "return document.querySelectorAll('#first option').length"
    wait(browser, lambda: browser.execute_script(options) == 2)
    browser.execute_script(
        "document.getElementById('prompt').value = arguments[0];"
        "document.querySelectorAll('#responses textarea').forEach((t) => { t.value = 'word '; });"
        "document.querySelector('#responses textarea').value = 'word '.repeat(5000);"
        "document.getElementById('ask').requestSubmit();",
        PROMPT,
    )
    text = "return document.getElementById('results').innerText"
    wait(browser, lambda: "shorten it" in browser.execute_script(text))
