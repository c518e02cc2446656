"""What a user does in the Dagster UI, in a real browser, from the asset's page to a re-execution; the pictures of it are those in `docs/`.

`FORGE_SCREENSHOTS=docs/images` takes them anew.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect, sync_playwright

from forge_orchestration_tests.conftest import host_program
from forge_orchestration_tests.integration.dagster_support import RUN_S, Deployment, Webserver, wait_for

CURVE = """
    import json, os, struct, time, zlib

    for number in range(8):
        print("counting", number, flush=True)
        time.sleep(0.5)
    hold = bytearray(150 * 2**20)
    hold[::4096] = b"x" * len(hold[::4096])

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = 200
    rows = b"".join(b"\\0" + bytes(255 * (abs((x - 100) ** 2 / 60 - (size - y)) > 3) for x in range(size)) for y in range(size))
    with open(os.environ["FORGE_OUTPUTS"] + "/curve.png", "wb") as file:
        file.write(b"\\x89PNG\\r\\n\\x1a\\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", size, size, 8, 0, 0, 0, 0)))
        file.write(chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    with open(os.environ["FORGE_MESSAGES"], "a") as messages:
        messages.write(json.dumps({"type": "metadata", "values": {"points": 200}}) + "\\n")
"""
CONFIG = """\
ops:
  run_curve:
    config:
      runtime: lab-python
      limits:
        memory: {memory}
"""
LOOK_MS = RUN_S * 1000
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    made = Deployment(tmp_path_factory.mktemp("browser"))
    made.build_runtime()
    lock = made.home.parent / "requirements.txt"
    lock.write_text("")
    made.forge("runtimes", "add", "lab-python", str(lock))
    made.forge("runtimes", "build", "lab-python")
    made.add_analysis("curve", CURVE, "description: A parabola\ngroup: figures\noutputs: {picture: curve.png}\n")
    made.add_analysis("patient", "import time\nprint('waiting', flush=True)\ntime.sleep(600)\n")
    made.add_analysis("first", "print('done')\n")
    made.add_analysis(
        "second",
        "import os, sys\nsys.exit(open(os.environ['FORGE_INPUTS'] + '/ready').read() != 'yes')\n",
        "inputs: {ready: {path: ready.txt}}\n",
    )
    (made.analyses / "second" / "ready.txt").write_text("no")
    return made


@pytest.fixture(scope="module")
def server(deployment: Deployment) -> Iterator[Webserver]:
    with deployment.dagster_dev() as made:
        yield made


@pytest.fixture
def page(server: Webserver) -> Iterator[Page]:
    chromium = host_program("chromium", "chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        made = browser.new_page(viewport={"width": 1280, "height": 860}, base_url=server.url)
        made.set_default_timeout(LOOK_MS)
        yield made
        browser.close()


def picture(page: Page, name: str) -> None:
    if folder := os.environ.get("FORGE_SCREENSHOTS"):
        page.wait_for_timeout(1500)  # what fades in
        page.screenshot(path=Path(folder) / f"{name}.png")


def fill_launchpad(page: Page, memory: str) -> None:
    """From the asset's page."""
    page.goto("/assets/curve")
    page.get_by_role("button", name="Materialize").wait_for()
    page.locator("button:right-of(:text('Materialize'))").first.click()
    page.get_by_text("Open launchpad").click()
    editor = page.locator(".CodeMirror").first
    editor.get_by_text("runtime").wait_for()  # its defaults are there
    editor.click()
    page.keyboard.press("Control+A")
    page.keyboard.insert_text(CONFIG.format(memory=memory))
    page.get_by_text("No errors").wait_for()


def launch(page: Page, memory: str, shown: str = "") -> str:
    """Fill the launchpad and launch; the id of the run."""
    fill_launchpad(page, memory)
    if shown:
        picture(page, shown)
    page.get_by_role("button", name="Materialize").last.click()
    page.wait_for_url("**/runs/*")
    return page.url.rsplit("/", 1)[1].partition("?")[0]


def test_too_much_is_refused_with_its_sentence(page: Page, server: Webserver) -> None:
    before = server.run_ids()
    fill_launchpad(page, "9000TiB")
    page.get_by_role("button", name="Materialize").last.click()
    expect(page.locator("body")).to_contain_text("more than the")
    assert server.run_ids() == before


def stdout_of(page: Page, step: str) -> Locator:
    page.get_by_role("button", name="stdout").click()
    page.get_by_placeholder("Select a step").click()
    page.get_by_role("option", name=step).or_(page.locator("li", has_text=step)).first.click()
    return page.locator("body")


def test_limit_log_failure_success_picture_and_plots(page: Page, server: Webserver, deployment: Deployment) -> None:
    failed = launch(page, "64MiB", "launchpad")
    wait_for("its step", lambda: server.status(failed) == "STARTED" or None)
    expect(stdout_of(page, "run_curve")).to_contain_text("counting 1", timeout=LOOK_MS)
    assert server.status(failed) == "STARTED", "the log is seen while it runs"
    picture(page, "live-log")
    assert server.wait(failed) == "FAILURE"
    page.get_by_role("button", name="Events").click()
    sentence = deployment.record_of_run(failed)["message"]
    assert "memory limit of 64.0 MiB" in sentence
    expect(page.get_by_text("needed more than its memory limit of 64.0 MiB").first).to_be_visible()
    picture(page, "memory-limit")

    for _ in range(2):  # a plot is of two values
        run = launch(page, "512MiB")
        assert server.wait(run) == "SUCCESS"
    record = deployment.record_of_run(run)
    assert (record["runtime"]["name"], record["enforced"]["memory_bytes"]["value"]) == ("lab-python", 512 * 2**20)
    page.goto("/assets/curve")
    expect(page.get_by_text(record["execution_id"]).first).to_be_visible()
    expect(page.get_by_text("usage/peak_memory_mib").first).to_be_attached()
    page.get_by_text("Plots").click()
    expect(page.locator("canvas").first).to_be_visible()
    page.get_by_text("usage/peak_memory_mib").first.scroll_into_view_if_needed()
    picture(page, "plots")
    page.goto(f"/runs/{run}")
    page.get_by_text("View full message").last.click()
    page.get_by_text("[Show Markdown]").last.click()
    expect(page.locator("img[src^='data:image/png']").first).to_be_visible()
    picture(page, "picture")


def test_a_long_one_is_terminated(page: Page, server: Webserver, deployment: Deployment) -> None:
    run = server.start("patient")
    wait_for("its log", lambda: any("waiting" in log.read_text() for log in deployment.home.glob("executions/*/stdout.log")))
    page.goto(f"/runs/{run}")
    page.get_by_role("button", name="Terminate").first.click()
    page.get_by_role("button", name="Terminate").last.click()
    assert server.wait(run) == "CANCELED"
    assert deployment.record_of_run(run)["end_reason"] == "canceled"
    page.keyboard.press("Escape")
    expect(page.get_by_text("Canceled").first).to_be_visible()


def test_from_failure_only_what_failed_runs_again(page: Page, server: Webserver, deployment: Deployment) -> None:
    failed = server.start_assets("first", "second")
    assert server.wait(failed) == "FAILURE"
    (deployment.analyses / "second" / "ready.txt").write_text("yes")
    page.goto(f"/runs/{failed}")
    page.locator("button:right-of(:text('Re-execute all'))").first.click()
    page.wait_for_timeout(1500)  # it can be pressed while it still comes, and does nothing then
    page.get_by_text("From failure").first.click()
    page.wait_for_url(lambda url: "/runs/" in url and failed not in url)
    again = page.url.rsplit("/", 1)[1].partition("?")[0]
    assert server.wait(again) == "SUCCESS"
    assert [record["analysis"] for record in deployment.records() if record["dagster_run_id"] == again] == ["second"]
