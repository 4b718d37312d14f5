"""A browser goes through MLflow as the links of `stop ui` lead it, if there is a browser."""

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from mlflow import MlflowClient

from pipelines.tables.mlflow_table import publish_table, track
from pipelines.tables.table import ComparisonTable
from pipelines.tracking.queued_run import QueuedRun
from pipelines.tracking.store import page_links, tracking_uri
from stop_core.settings.experiment import ExperimentConfig
from tests.mlflow_server import mlflow_server
from tests.pipelines.fake_results import recognised

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
STOP = ExperimentConfig()
ZERO = ExperimentConfig(method="zero-shot")
HASH = "d" * 64


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
def links(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The links of `stop ui`: of a store with a training, its model, and a table."""
    output = tmp_path_factory.mktemp("output")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setattr("sys.argv", ["/usr/bin/stop", "train", "--cache", "/data/motion"])
        results = [
            recognised(ZERO, [True] * 3 + [False] * 17, output),
            recognised(STOP, [True] * 18 + [False] * 2, output),
        ]
        table = ComparisonTable(
            "motion", 1, HASH, {"zero-shot CLIP": [ZERO], "STOP": [STOP]}, output / "tables"
        )
        tracked = track(table, output)
        run = QueuedRun(output / "runs" / "one", tracking_uri(output))
        run.open("motion", "stop seed 7", tags={"kind": "training"})
        run.log_params({"method": "stop", "seed": 7})
        run.log_dataset("motion", HASH, "/data/motion")
        for epoch in range(3):
            run.log_points([(epoch, 1000 + epoch, {"train/loss": 2.0 - epoch / 2})])
        run.log_points([(3, 2000, {"test/top1": 0.875, "val_best/top1": 0.75})])
        (run.folder / "README.md").write_text("the card")
        run.log_model("model", ["README.md"], "the note of the model")
        run.finish()
        assert run.deliver() is None
        with tracked.ended():
            table.fill(results)
            publish_table(table, tracked)
        store = tracking_uri(output)
        with mlflow_server(store, output / "mlartifacts") as address:
            yield page_links(MlflowClient(store), address)


def _follow(page: "Page", link: "Locator") -> None:
    """Opens a link in this tab, where the page would take another one."""
    page.goto(f"{page.url.partition('/#')[0]}/{str(link.get_attribute('href')).lstrip('/')}")


def test_the_list_shows_the_measures_and_two_runs_can_be_compared(
    page: "Page", links: dict[str, str]
) -> None:
    page.goto(links["all runs on motion"])
    for column in ("test/top1", "val_best/top1", "method", "seed"):
        page.get_by_role("columnheader", name=column).first.wait_for()
    page.get_by_text("0.875").first.wait_for()
    assert page.get_by_text("Model training").first.is_visible()
    runs = [
        str(page.get_by_role("link", name=name).first.get_attribute("href")).split("/runs/")[1]
        for name in ("stop seed 7", "table table: motion")
    ]
    listed = ",".join(f'"{run.partition("?")[0]}"' for run in runs)
    address = links["all runs on motion"].partition("/#")[0]
    page.goto(f'{address}/#/compare-runs?runs=[{listed}]&experiments=["1"]')
    page.get_by_text("Comparing 2 Runs").first.wait_for()


def test_a_run_leads_to_its_model(page: "Page", links: dict[str, str]) -> None:
    page.goto(links["all runs on motion"])
    page.get_by_role("link", name="stop seed 7").first.click()
    page.get_by_text("stop train --cache /data/motion").first.wait_for()
    page.get_by_text("motion (dddddddddddd)").first.wait_for()
    _follow(page, page.get_by_role("link", name="model", exact=True).first)
    page.get_by_text("the note of the model").first.wait_for()
    page.get_by_text("0.875").first.wait_for()
    page.goto(f"{page.url.partition('?')[0]}/artifacts")
    page.get_by_text("README.md").first.wait_for()


def test_a_table_is_in_the_description_and_its_cells_are_grouped_by_row(
    page: "Page", links: dict[str, str]
) -> None:
    page.goto(links["newest table of motion"])
    page.get_by_text("Group: STOP").first.wait_for()
    page.get_by_text("Group: zero-shot").first.wait_for()
    page.get_by_text("test/top1").first.wait_for()  # a column that the view chose
    page.goto(links["all runs on motion"])
    page.get_by_role("link", name="table table: motion").first.click()
    page.get_by_text("90.0").first.wait_for()  # the table, in the description
    _follow(page, page.get_by_role("link", name="see them grouped by row").first)
    page.get_by_text("Group: STOP").first.wait_for()
    assert page.get_by_text("Model training").first.is_visible()
