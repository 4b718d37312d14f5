"""MLflow's UI shows the description and the grouped view of a table, if there is a browser."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipelines.tables.mlflow_table import publish_table, track
from pipelines.tables.table import ComparisonTable
from pipelines.tracking.store import tracking_uri
from stop_core.settings.experiment import ExperimentConfig
from tests.pipelines.fake_results import recognised

if TYPE_CHECKING:
    from playwright.sync_api import Page

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
pytestmark = pytest.mark.slow
STOP = ExperimentConfig()
ZERO = ExperimentConfig(method="zero-shot")


@pytest.fixture
def page() -> Iterator["Page"]:
    """A page in the browser of playwright, or else in one on the PATH."""
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(args=["--no-sandbox"])
        except sync_api.Error:  # nothing is installed
            path = next(filter(None, map(shutil.which, BROWSERS)), None)
            if path is None:
                pytest.skip(f"playwright has no browser, and the PATH no {', '.join(BROWSERS)}")
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1600, "height": 1200})
        opened.set_default_timeout(100_000)
        yield opened
        browser.close()


@pytest.fixture
def published(tmp_path: Path) -> tuple[Path, str]:
    """The output folder with one table in its store, and the id of the table's run."""
    table = ComparisonTable(
        "motion", 1, "d" * 64, {"zero-shot CLIP": [ZERO], "STOP": [STOP]}, tmp_path / "tables"
    )
    right = {ZERO: [True] * 3 + [False] * 17, STOP: [True] * 18 + [False] * 2}
    table.fill([recognised(config, answers, tmp_path) for config, answers in right.items()])
    tracked = track(table, tmp_path)
    with tracked.ended():
        publish_table(table, tracked)
    return tmp_path, tracked.run_id


@pytest.fixture
def server(published: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """MLflow's server on that store, in this process, because a new one starts slowly."""
    monkeypatch.setenv("_MLFLOW_SERVER_FILE_STORE", tracking_uri(published[0]))
    monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", str(published[0] / "mlartifacts"))
    from mlflow.server import app
    from werkzeug.serving import make_server

    served = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=served.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{served.server_port}"
    served.shutdown()
    thread.join()


def test_the_ui_shows_a_table_and_its_cells_grouped_by_row(
    page: "Page", published: tuple[Path, str], server: str
) -> None:
    page.goto(f"{server}/#/experiments/1/runs/{published[1]}")
    page.get_by_text("STOP, seed 0").first.wait_for()  # a child
    page.get_by_text("90.0").first.wait_for()  # the table, in the description
    link = page.get_by_role("link", name="see them grouped by row").first
    page.goto(f"{server}/{link.get_attribute('href')}")
    page.get_by_text("Group: STOP").first.wait_for()
    page.get_by_text("Group: zero-shot").first.wait_for()
    page.get_by_text("test/top1").first.wait_for()  # a column that the view chose
