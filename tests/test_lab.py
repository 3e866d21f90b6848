"""`make lab`, seen through a browser: it opens 00, Run All runs through, and everything shows."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("00_start_here", "02_svd")  # with sliders; make lab opens the first
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM_FLAGS = (
    "headless=new", "window-size=1280,900", "no-sandbox", "disable-gpu", "disable-dev-shm-usage",
    "disable-quic", "no-first-run", "disable-background-networking", "disable-component-update",
    "disable-sync",
)  # fmt: skip

# What stands in the notebook, as the reader's eye (or screen reader) meets it.
FIGURES = """
const panel = document.querySelector(".jp-Notebook").getBoundingClientRect();
return [...document.querySelectorAll(".jp-OutputArea img")].map(image => {
    const box = image.getBoundingClientRect();
    return {alt: image.alt, loaded: image.naturalWidth > 0, width: box.width, height: box.height,
            inside: box.left >= panel.left && box.right <= panel.right};
});
"""
RAN = """
const prompts = [...document.querySelectorAll(".jp-CodeCell .jp-InputPrompt")];
return /\\d/.test(prompts[0].textContent) && !prompts.some(p => p.textContent.includes("*"));
"""
PICTURE = """
return document.querySelector(".jp-OutputArea .widget-interact img")?.src;
"""  # a slider's


@pytest.fixture
def course(tmp_path):
    """A copy of what a learner opens, so that saving changes no file of the repository."""
    folder = tmp_path / "course"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    for name in ("notebooks", "results"):
        shutil.copytree(ROOT / name, folder / name)
    for name in NAMES:
        path = folder / "notebooks" / f"{name}.ipynb"
        notebook = read(path)
        for cell in code(notebook):
            cell.execution_count = None  # so that a count says: it ran here
        nbformat.write(notebook, path)
    return folder


@pytest.fixture
def address(course, tmp_path):
    """Call `make lab`; gives the address that it prints, with the token."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["make", "lab", "BROWSER=no", f"PORT={port}", f"PY={sys.executable}"]
    command += ["--old-file=.venv/.installed-runtime"]  # the packages are installed
    settings = {f"JUPYTER_{kind}_DIR": f"{tmp_path / kind}" for kind in ("CONFIG", "RUNTIME")}
    settings |= {"IPYTHONDIR": f"{tmp_path / 'ipython'}", "LOWRANK_PROFILE": "smoke"}
    others = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    log = tmp_path / "log"
    with log.open("w") as out:
        server = subprocess.Popen(
            command, cwd=course, env=others | settings, stdout=out, stderr=out,
            start_new_session=True,
        )  # fmt: skip

    def printed(_):
        assert server.poll() is None, log.read_text()
        return re.search(r"http://localhost:\S+", log.read_text())

    try:
        yield WebDriverWait(None, 120).until(printed)[0]
    finally:
        os.killpg(server.pid, signal.SIGTERM)  # the server ends its kernels
        server.wait(30)


@pytest.fixture
def browser(tmp_path):
    options = webdriver.ChromeOptions()
    options.binary_location = next(filter(None, map(shutil.which, CHROMIUM)))
    for flag in (*CHROMIUM_FLAGS, f"user-data-dir={tmp_path / 'browser'}"):
        options.add_argument(f"--{flag}")
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options, service)
    yield driver
    driver.quit()


def read(path):
    return nbformat.read(path, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def idle(browser):
    """The kernel rests, and no cell waits for it."""
    return browser.find_elements(
        By.CSS_SELECTOR, ".jp-Notebook-ExecutionIndicator[data-status='idle']"
    )


def choose(browser, menu, entry):
    """Click on a menu, then on one of its entries."""
    for kind, label in (("MenuBar", menu), ("Menu", entry)):
        place = f"//*[contains(@class, 'lm-{kind}-itemLabel')][. = '{label}']"
        WebDriverWait(browser, 10).until(lambda b, p=place: b.find_element(By.XPATH, p)).click()


def run_all(browser, page):
    """Open the notebook, or open it again, and run all its cells."""
    wait = WebDriverWait(browser, 180)
    browser.get(page)
    wait.until(idle)
    choose(browser, "Run", "Run All Cells")
    wait.until(lambda _: idle(browser) and browser.execute_script(RAN))


@pytest.mark.slow
@pytest.mark.needs(*CHROMIUM)
@pytest.mark.needs("chromedriver")
@pytest.mark.needs("make")
@pytest.mark.parametrize("name", NAMES)
def test_run_all_succeeds(name, address, browser, course):
    path = course / "notebooks" / f"{name}.ipynb"
    try:
        run_all(browser, address.replace(NAMES[0], name))
    except WebDriverException:  # a busy machine lost the click or the server: open it once more
        print(*(box.text for box in browser.find_elements(By.CSS_SELECTOR, ".jp-Dialog")))
        run_all(browser, address.replace(NAMES[0], name))
    asked = browser.find_elements(By.CSS_SELECTOR, ".jp-Dialog, .Toastify__toast")
    assert not [box.text for box in asked], "a newcomer is not asked anything"

    choose(browser, "File", "Save Notebook")
    WebDriverWait(browser, 20).until(lambda _: code(read(path))[0].execution_count)
    cells = code(read(path))
    outputs = [output for cell in cells for output in cell.outputs]
    assert [output for output in outputs if output.output_type == "error"] == []
    counts = [cell.execution_count for cell in cells]
    assert counts == list(range(counts[0], counts[0] + len(cells)))
    drawn = str(outputs).count("<img ")

    sliders = browser.find_elements(By.CSS_SELECTOR, ".jp-OutputArea .noUi-handle")
    figures = browser.execute_script(FIGURES)
    assert len(figures) == drawn + len(sliders) > 0
    for figure in figures:
        assert len(figure["alt"].split()) >= 5, figure
        assert figure["loaded"] and figure["inside"], figure
        assert figure["width"] > 100 and figure["height"] > 100, figure

    first = browser.execute_script(PICTURE)
    sliders[0].send_keys(Keys.END)
    WebDriverWait(browser, 30).until(lambda b: b.execute_script(PICTURE) not in (None, first))
    moved = browser.execute_script(PICTURE)
    assert len(moved) > len(first) / 2, "the picture is blank"
