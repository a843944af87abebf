"""The report in a real browser: nothing goes wrong in its console, what can be clicked does what it says, in light and dark."""

from __future__ import annotations

import base64
import shutil
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import truequant as tq
from tests.unit.reports.test_report import trained, written
from truequant.reports import Stage

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed; requirements of the tests have it")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None, reason="chromium and chromium-driver are not installed; .ci/run installs them"
    ),
]


class Page:
    """A report in the browser."""

    def __init__(self, driver: Any, path: Path) -> None:
        self.driver = driver
        driver.get_log("browser")  # what an earlier page said is not this one's
        driver.get(path.as_uri())

    def one(self, css: str) -> Any:
        return self.driver.find_element("css selector", css)

    def all(self, css: str) -> list[Any]:
        return self.driver.find_elements("css selector", css)  # type: ignore[no-any-return]

    def js(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def press(self, tile: Any) -> None:
        """Click a tile until it is pressed: Chromium loses a click now and then while the page is laid out anew."""
        for _ in range(5):
            tile.click()
            if tile.get_attribute("aria-pressed") == "true":
                return
            time.sleep(0.5)

    def logged(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def colours(self, scheme: str) -> None:
        """In a colour scheme, and without motion: a click on what still scrolls falls beside it."""
        features = [{"name": "prefers-color-scheme", "value": scheme}, {"name": "prefers-reduced-motion", "value": "reduce"}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,900", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    made = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    made.set_page_load_timeout(240)
    try:
        yield made
    finally:
        made.quit()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An earlier report of four bits, and one of eight that is compared with it and has everything."""
    torch.manual_seed(0)
    made = tmp_path_factory.mktemp("reports")
    old, x, _ = trained("w4a4-all")
    tq.report(made / "old.html", old, [x], title="four bits")
    written(made / "report.html", title="Net", before=made / "old.html", sensitivity=tq.sensitivity(trained()[0], [x]))
    return made


@pytest.fixture
def page(driver: Any, folder: Path) -> Page:
    made = Page(driver, folder / "report.html")
    made.colours("light")
    return made


def test_it_stands_without_a_word_in_the_console_or_over_the_network(page: Page, folder: Path) -> None:
    data = tq.reports.read_report(folder / "report.html")
    assert page.logged() == []
    assert page.js("return performance.getEntriesByType('resource').length") == 0
    assert int(page.js("return document.documentElement.dataset.ready")) > 0
    assert len(page.all("button.tile")) == len(data["sites"])
    assert [tile.text.splitlines()[0] for tile in page.all("div.tile.float")] == ["norm"]
    assert "layer_norm" in page.one("#islands").text
    assert "EXACT" in page.one("#summary").text
    assert "99.10 %" in page.one("#summary").text
    sections = {s.get_attribute("id"): s.is_displayed() for s in page.all("main > section")}
    assert sections == dict.fromkeys(("summary", "map", "site", "ranking", "training", "islands", "compare"), True)
    assert len(page.all("#training canvas")) == 1


def test_choosing_a_tile_shows_its_quantizer(page: Page) -> None:
    for name in ("conv.weight", "out.output"):
        (tile,) = [t for t in page.all("button.tile") if t.text.splitlines()[0] == name]
        page.press(tile)
        assert page.one("#site-title").text == name
        assert [t.text.splitlines()[0] for t in page.all('button.tile[aria-pressed="true"]')] == [name]
    (tile,) = [t for t in page.all("button.tile") if t.text.splitlines()[0] == "out.weight"]
    page.press(tile)
    cells = dict(zip((c.text for c in page.all("#site th")), (c.text for c in page.all("#site td")), strict=True))
    assert float(cells["oscillates"].removesuffix(" %")) >= 0
    (tile,) = [t for t in page.all("button.tile") if t.text.splitlines()[0] == "out.output"]
    page.press(tile)
    headings = [h.text for h in page.all("#site h3")]
    assert headings == ["Values against the grid (shaded: clipped)", "Scale over training"]
    tile = page.all("button.tile")[0]
    page.js("arguments[0].focus()", tile)
    tile.send_keys("\n")  # by the keyboard
    assert page.one("#site-title").text == tile.text.splitlines()[0]
    link = page.one("#ranking td a")
    page.js("arguments[0].click()", link)
    assert page.one("#site-title").text == link.text
    assert page.logged() == []


def test_the_map_is_searched_filtered_and_sorted(page: Page) -> None:
    def names() -> list[str]:
        return [tile.text.splitlines()[0] for tile in page.all(".tile")]

    whole = names()
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select

    search, kind, order = page.one('input[type="search"]'), *page.all("select")
    search.send_keys("conv")
    assert names() == [name for name in whole if "conv" in name] != whole
    search.clear()
    search.send_keys(" ", Keys.BACKSPACE)  # typing is what filters
    assert names() == whole
    Select(kind).select_by_visible_text("weight")
    assert names() == ["conv.weight", "out.weight"]
    Select(kind).select_by_visible_text("float")
    assert names() == ["norm"]
    Select(kind).select_by_visible_text("all")
    Select(order).select_by_visible_text("worst first")
    values = [float(t.text.split("·")[1].removesuffix(" dB")) for t in page.all("button.tile") if "·" in t.text]
    assert values == sorted(values)
    assert sorted(names()) == sorted(whole)


def test_pointing_at_a_plot_reads_its_values(page: Page) -> None:
    over = page.one("#site .u-over")
    page.js("arguments[0].scrollIntoView({block: 'center'})", over)
    webdriver.ActionChains(page.driver).move_to_element(over).perform()
    read = [value.text for value in page.all("#site .plot:first-of-type .u-value")]
    assert read
    assert all(value not in ("", "--") for value in read[:1]), read


def test_two_runs_are_compared(page: Page) -> None:
    text = page.one("#compare").text
    assert "Against “four bits”." in text
    assert "int4" in text


def contrast(page: Page, css: str) -> float:
    """WCAG 2.2's contrast of an element's text against what lies behind it."""
    return float(
        page.js(
            """
            const light = (c) => { const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
              .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
              return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
            let node = document.querySelector(arguments[0]);
            const ink = light(getComputedStyle(node).color);
            while (/rgba\\(0, 0, 0, 0\\)|transparent/.test(getComputedStyle(node).backgroundColor)) node = node.parentElement;
            const ground = light(getComputedStyle(node).backgroundColor);
            return (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
            """,
            css,
        )
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_colour_schemes(page: Page, scheme: str, tmp_path: Path) -> None:
    page.colours(scheme)
    brightness = page.js("return getComputedStyle(document.body).backgroundColor").removeprefix("rgb(").split(",")[0]
    assert (int(brightness.removeprefix("a(")) > 128) == (scheme == "light")
    for css in ("body", "#subtitle", ".card b.good", ".card span", ".tile small", "td", "caption", "a", ".u-legend", "footer"):
        assert contrast(page, css) >= 4.5, css
    picture = page.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
    shot = base64.b64decode(picture["data"])
    (tmp_path / f"{scheme}.png").write_bytes(shot)
    assert len(shot) > 20_000
    assert page.logged() == []


def test_it_prints_and_names_what_it_asks_for(page: Page) -> None:
    pdf = base64.b64decode(page.driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"])
    assert pdf.startswith(b"%PDF")
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert not page.one(".tools").is_displayed()
    assert page.js("const t = document.querySelector('.tiles'); return t.scrollHeight <= t.clientHeight + 1")
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert page.js("return document.documentElement.lang") == "en"
    nameless = page.js(
        "return [...document.querySelectorAll('button, input, select, a')]"
        ".filter((e) => !(e.getAttribute('aria-label') || e.textContent.trim())).length"
    )
    assert nameless == 0
    assert page.js("return [...document.querySelectorAll('h1, h2, h3')].map((h) => h.tagName)[0]") == "H1"
    assert page.js(
        "return [...document.querySelectorAll('.scroll table')].every((t) => t.caption && t.querySelector('th[scope=col]'))"
    )


def test_it_fits_a_narrow_window(page: Page) -> None:
    page.driver.set_window_size(420, 900)
    try:
        assert page.js("return document.documentElement.scrollWidth <= innerWidth + 1")
    finally:
        page.driver.set_window_size(1200, 900)


def test_five_hundred_layers_open_quickly(driver: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 8)
    qat = tq.prepare(nn.Sequential(*(m for _ in range(250) for m in (nn.Linear(8, 8), nn.Tanh()))), x)
    tq.calibrate(qat, [x])
    size = tq.report(tmp_path / "report.html", qat, [x])
    assert size < 10_000_000
    times = []
    for _ in range(3):  # what else the machine does makes it slower, and nothing makes it faster
        page = Page(driver, tmp_path / "report.html")
        assert len(page.all("button.tile")) == len(list(tq.quantizers(qat))) == 751
        times.append(int(page.js("return document.documentElement.dataset.ready")))
        if times[-1] < 3000:
            break
    assert min(times) < 3000, "milliseconds until the page stood"
    assert page.one("h1").text == "Sequential"
    parts = page.all("#map details")
    assert len(parts) == 13
    assert [len(part.find_elements("css selector", ".tile")) for part in parts] == [60] * 12 + [31]
    parts[-1].find_element("css selector", "summary").click()
    tile = page.all("button.tile")[-1]
    started = page.js("arguments[0].scrollIntoView(); return performance.now()", tile)
    page.press(tile)
    assert page.one("#site-title").text == tile.text.splitlines()[0]
    assert page.js("return performance.now()") - started < 3000
    assert page.logged() == []


def test_a_large_model_is_folded_by_its_parts_and_prints_open(driver: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 8)
    block = [nn.Sequential(*(nn.Linear(8, 8) for _ in range(6))) for _ in range(6)]
    qat = tq.prepare(nn.Sequential(OrderedDict((f"stage{i}", part) for i, part in enumerate(block))), x)
    tq.calibrate(qat, [x])
    tq.report(tmp_path / "report.html", qat, [x])
    page = Page(driver, tmp_path / "report.html")
    names = [name.text for name in page.all("#map details .name")]
    assert names == ["input_0", *(f"stage{i}" for i in range(6))]
    opened = page.js("return [...document.querySelectorAll('#map details')].filter((d) => d.open).map((d) => d.innerText)")
    assert len(opened) == 1, "that of the quantizer which is shown"
    assert page.one("#site-title").text in opened[0]
    page.js("window.dispatchEvent(new Event('beforeprint'))")
    assert page.js("return [...document.querySelectorAll('#map details')].every((d) => d.open)")


@pytest.mark.parametrize(
    ("top1", "told", "verdict"),
    [(33.0, "Chance is 33.33 %", "bad"), (97.5, "0.50 points lost", "good"), (90.0, "8.00 points lost", "bad")],
)
def test_the_first_cards_answer(driver: Any, tmp_path: Path, top1: float, told: str, verdict: str) -> None:
    qat, x, _ = trained()
    int8 = tq.convert(qat.eval())
    stages = [Stage("float", 98.0, 10 * int8.size_bytes, {1: 0.002}), Stage("onnxruntime", top1, None, {1: 0.001})]
    found = tq.verify(qat, int8, [x], runtimes=("reference",))
    tq.report(tmp_path / "report.html", qat, [x], stages=stages, int8=int8, verification=found)
    page = Page(driver, tmp_path / "report.html")
    cards = {card.find_element("css selector", "h3").text: card for card in page.all(".card")}
    assert list(cards) == ["Is it good?", "Is it small?", "Is it fast?", "Is it exact?", "What hurts?"]
    assert told in cards["Is it good?"].text
    assert cards["Is it good?"].find_element("css selector", "b").get_attribute("class") == verdict
    assert "10 × smaller than float" in cards["Is it small?"].text
    assert cards["Is it fast?"].find_element("css selector", "b").text == "2.00 ×"
    assert f"0 of {found.codes_compared:,} codes differ in reference." in cards["Is it exact?"].text
    assert page.logged() == []
