"""The page in a real browser: it loads without a network, filters, tells the right numbers, shows any name as text."""

import shutil

import pandas as pd
import pytest

from conftest import power, synthetic
from coordcheck import CoordCheck
from coordcheck.report.page import chart
from coordcheck.report.page.html import check_page, index_page
from coordcheck.result import Audit

OWN = "document.body.dataset.owned=1"
HOSTILE = f"<img src=x onerror={OWN}>\"'</script><script>{OWN}</script>"


def check_of(gate, curves):
    """A check with an audit of three parameters."""
    rows = [
        {"parameter": name, "module": name.removesuffix(".weight"), "role": "hidden", "tied_to": "", "shape": "4 x 4"}
        | {"entries": 16, "fan_in": 4, "fan_out": 4, "std_fan_in": 1.0, "std_exponent": -0.5, "lr_exponent": -1.0}
        | {"init_std": std, "writes": 1, "operations": 1, "unwritten": 0, "repeats": 1, "conflict": False, "groups": 1}
        | {"rules": "normal_", "update": "adam", "multiplier_exponent": float("nan"), "eps_exponent": 0.0}
        | {
            "decay_exponent": float("nan"),
            "effective_decay_exponent": float("nan"),
            "std_low": -0.51,
            "std_high": -0.49,
        }
        for name, std in (("fc.weight", 0.5), ("proj.weight", 0.03), ("out.weight", 12.0))
    ]
    audit = Audit.from_parameters(pd.DataFrame(rows), [64, 128, 256], "mup", 0.1)
    return CoordCheck.from_records(synthetic(curves, widths=(64, 128, 256)), gate, audit=audit)


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver")
    paths = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if not all(paths):
        pytest.skip("no chromium with its chromedriver on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = paths[0]
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=1500,1200",
        "--disable-dev-shm-usage",
    ):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(paths[1]))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser, tmp_path, gate):
    """The page of a check with a fault and a hostile name, loaded."""
    from selenium.webdriver.support.ui import WebDriverWait

    curves = {(HOSTILE, "activation", 0): power(-0.5, 0.01), ("fc", "activation", 0): power(0.4, 0.01)}
    curves |= {("fc", "delta", 1): power(0.15, 0.01), ("proj", "activation", 1): power(-0.05, 0.01)}
    (tmp_path / "report.html").write_text(check_page(check_of(gate, curves)), encoding="utf-8")
    browser.get((tmp_path / "report.html").as_uri())
    WebDriverWait(browser, 30).until(lambda driver: body(driver).get_attribute("data-ready"))
    return browser


def body(browser):
    return browser.find_element("tag name", "body")


def lines(browser):
    return browser.find_elements("css selector", "path[aria-roledescription='line mark']")


def cells(browser):
    return browser.find_elements("css selector", "path[aria-roledescription='rect mark']")


def test_it_loads_without_errors_and_without_a_network(opened):
    assert [entry for entry in opened.get_log("browser") if entry["level"] == "SEVERE"] == []
    assert (len(cells(opened)), len(lines(opened))) == (4, 4)
    loaded = opened.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [name for name in loaded if not name.startswith(("data:", "blob:"))] == []


def test_a_name_is_text_wherever_it_stands(opened):
    assert body(opened).get_attribute("data-owned") is None
    labels = [text.text for text in opened.find_elements("css selector", "#chart text")]
    assert any(label.startswith("<img src=x onerror") for label in labels)


def test_what_is_pointed_at_tells_its_numbers(opened):
    from selenium.webdriver import ActionChains

    worst = next(cell for cell in cells(opened) if "explodes" in cell.get_attribute("aria-label"))
    ActionChains(opened).move_to_element(worst).perform()
    told = opened.find_element("id", "vg-tooltip-element").text
    assert all(part in told for part in ("fc", "activation 0", "+0.400 [", "+0.00", "explodes", "Tensor Programs V"))


def test_filters_and_a_click_choose_curves(opened):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.support.ui import Select

    kind, _, verdict = opened.find_elements("css selector", ".vega-bindings select")
    (name,) = opened.find_elements("css selector", ".vega-bindings input")
    Select(kind).select_by_visible_text("delta")
    assert (len(cells(opened)), len(lines(opened))) == (1, 1)
    Select(kind).select_by_visible_text("all")
    Select(verdict).select_by_visible_text("explodes")
    assert len(lines(opened)) == 1
    Select(verdict).select_by_visible_text("all")
    name.send_keys("PROJ")
    assert len(lines(opened)) == 1
    for _ in "PROJ":
        name.send_keys("\ue003")
    assert len(lines(opened)) == 4
    ActionChains(opened).click(cells(opened)[0]).perform()
    assert (len(cells(opened)), len(lines(opened))) == (4, 1)


def test_a_table_is_sorted_by_a_click(opened):
    heads = opened.find_elements("css selector", "th.sortable")
    column = [head.text for head in heads].index("std")

    def values():
        return [float(cell.text) for cell in opened.find_elements("css selector", f"td:nth-child({column + 1})")]

    heads[column].click()
    assert values() == sorted(values()) and len(set(values())) == 3
    heads[column].click()
    assert values() == sorted(values(), reverse=True)


def test_it_prints(opened):
    import base64

    pdf = base64.b64decode(opened.print_page())
    assert pdf.startswith(b"%PDF") and len(pdf) > 20_000


def test_four_hundred_curves_are_less_than_three_megabytes(gate):
    curves = {(f"blocks.{i}.mlp.fc", "activation", step): power(0.0, 0.01) for i in range(100) for step in range(4)}
    page = check_page(check_of(gate, curves))
    assert len(page.encode()) < 1_500_000
    assert "curves are left out" not in page


def test_the_worst_modules_are_shown_where_there_is_no_room_for_all(gate, monkeypatch):
    monkeypatch.setattr(chart, "MOST_CURVES", 3)
    curves = {(name, "activation", step): power(0.0, 0.01) for name in "abc" for step in (0, 1)}
    curves |= {("late", "activation", 0): power(0.5, 0.01)}
    check = check_of(gate, curves)
    assert set(chart.shown_slopes(check)["module"]) == {"late", "a"}
    assert "4 of 7 curves are left out" in check_page(check)


def test_a_cell_tells_zero_dead_and_not_finite_apart(gate):
    steps = {("due", "activation", 0): 0.0, ("dead", "activation", 1): 0.0, ("broken", "activation", 1): float("inf")}
    curves = {key: lambda width, seed, size=size: size for key, size in steps.items()}
    check = check_of(gate, {**curves, ("fc", "activation", 1): power(0.4, 0.01)})
    cells = {curve["module"]: curve["short"] for curve in chart.curves_of(check, chart.shown_slopes(check))}
    assert cells == {"due": "0", "dead": "∅ 0", "broken": "✕", "fc": "▲ +0.40"}


def test_an_index_links_to_the_page_of_each_cell(tmp_path):
    cells = {tmp_path / "sweep/0": {"cell": "a<b", "verdict": "pass"}, tmp_path / "1": {"cell": "c", "verdict": "fail"}}
    page = index_page("2 cells", cells, tmp_path / "sweep")
    assert 'href="0/report.html">pass' in page and 'href="../1/report.html">fail' in page
    assert "a&lt;b" in page
