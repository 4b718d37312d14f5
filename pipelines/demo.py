"""Serves a page on which a trained model answers for a clip, and explains the answer."""

if __name__ == "__main__":  # python pipelines/demo.py
    __import__("stop").run_file(__file__)

import os
import socket
import webbrowser
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from stop_core.storage.escaping import in_line, in_markdown
from stop_core.storage.paths import scratch_folder

from .cli.console import RunError, print_result, reporting, say
from .cli.folders import default_output
from .cli.options import OutputFolder, positive
from .cli.video_options import Device
from .cluster.devices import usable_gpus
from .inference.model_choice import ModelChoice

if TYPE_CHECKING:  # importing them takes seconds; --help is fast without
    from fastapi import FastAPI
    from PIL.Image import Image
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from stop_core.trained_model.model import TrainedModel

Shown = tuple[dict[str, float] | None, "Image | None", str]
"""Probabilities by label, the picture of the explanation, and a message."""
_MOST_LABELS, _MOST_CHARACTERS = 200, 200
_MOST_LISTED = 4  # classes
_MOST_WAITING = 16  # requests
_FORM_BYTES = 1 << 20  # of a request, in addition to those of the video
_UPLOADS_KEPT = 3600  # seconds
_CAPTION = """## Where the prompts went

Bright patches get a prompt; the curve is the change between frames, and the squares are the prompts
of each gap. The values are those of the forward pass. They do not show a cause."""
_UNEXPLAINED = "Only a model of the method `stop` has prompts to show."
_STYLE = """
#clip [aria-label^="Trim"] { display: none; } /* it would fetch a program from elsewhere */
#answer h2 { font-size: 1.25rem; }
#answer h2, #answer dt { overflow-wrap: anywhere; white-space: normal; min-width: 0; }
#prompts { overflow-x: auto; }
#prompts img { min-width: 54rem; }
#prompts button, #prompts .image-frame { justify-content: flex-start; }
"""
# The browser sends and fetches nothing elsewhere, whatever Gradio's page contains.
_POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"


@dataclass(frozen=True)
class DemoConfig:
    """Open a page that predicts your clip, with labels that you type, and explains the answer.

    The page is for this machine only. It ends with Ctrl-C, and uploaded videos are deleted then.

    Examples:
      stop demo --checkpoint outputs/runs/NAME
      stop demo --checkpoint hf://USER/NAME --video-folder clips
      stop demo --tower ViT-B-32-quickgelu --pretrained openai --labels dog cat
    """

    model: ModelChoice = field(default_factory=ModelChoice)
    video_folder: Path | None = None
    """The only folder whose files can be named on the page (default: uploads only)."""
    device: Device = "auto"
    """Run the model on a GPU of this machine, or on the CPU; auto: on a GPU if there is one."""
    max_video_mib: float = 64
    """Size of an uploaded video, in MiB."""
    decode_seconds: float = 20.0
    """Seconds for decoding one video; after it the decoding process is terminated."""
    host: str = "127.0.0.1"
    """Address to listen on. There is no authentication and no TLS: other addresses than loopback
    need a proxy in front."""
    port: int = 7860
    """Port to listen on; 0 takes a free one."""
    browser: bool = True
    """Open the page in a browser."""
    output: OutputFolder = field(default_factory=default_output)
    """Folder of the training runs and the MLflow store."""

    def __post_init__(self) -> None:
        if self.video_folder is not None and not self.video_folder.is_dir():
            raise ValueError(f"--video-folder {self.video_folder} is not a folder")
        positive(max_video_mib=self.max_video_mib, decode_seconds=self.decode_seconds)


def main(config: DemoConfig) -> None:
    """Loads the model, prints the address of the page, and serves it until Ctrl-C."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio  # noqa: F401
        import uvicorn
    except ModuleNotFoundError as problem:
        raise RunError(
            f"the page needs {problem.name}: run pip install 'stop-video[demo]'"
        ) from problem
    choice = config.model.found(config.output)
    with reporting(lambda: "loading the model"):
        trained = choice.load(usable_gpus(config.device).count > 0)
    try:
        listener = socket.create_server((config.host, config.port))
    except OSError as problem:
        raise RunError(
            f"cannot listen on {config.host}:{config.port} ({problem.strerror}); give another "
            "--port or --host"
        ) from problem
    with scratch_folder() as uploads, listener:
        os.environ["GRADIO_TEMP_DIR"] = str(uploads)
        app = page_app(ClipAnswers(choice, trained, config), config.max_video_mib)
        server = uvicorn.Config(
            app,
            headers=[("Content-Security-Policy", _POLICY)],
            log_level="warning",
            timeout_graceful_shutdown=1,  # an open page would delay the end
        )
        address = f"http://{config.host}:{listener.getsockname()[1]}"
        print_result(f"demo: {address}")
        say("Ctrl-C ends the server")
        if config.browser:
            webbrowser.open(address)
        uvicorn.Server(server).run([listener])


class ClipAnswers:
    """Answers the requests of the page."""

    def __init__(self, choice: ModelChoice, trained: "TrainedModel", config: DemoConfig) -> None:
        from stop_core.explain.explanation import Traceable

        self.trained = trained
        self.folder = config.video_folder and config.video_folder.resolve()
        self.is_explained = isinstance(trained.model, Traceable)
        self._choice = choice
        self._timeout = config.decode_seconds

    def answer(self, upload: str | None, path: str | None, labels: str | None) -> Shown:
        """Returns the answer for a clip; or only a sentence, if the request has no answer.

        Args:
            upload: file of an uploaded clip; Gradio has checked that it is one.
            path: instead of it, a file in the folder of --video-folder.
            labels: one per line; the classes of the model if there are none.
        """
        try:
            return self._answer(upload, (path or "").strip(), (labels or "").splitlines())
        except (ValueError, OSError) as problem:
            return None, None, f"**No answer:** {in_markdown(str(problem))}"

    def _answer(self, upload: str | None, path: str, lines: list[str]) -> Shown:
        from stop_core.explain.figure import draw_below
        from stop_core.trained_model.service import RequestError, video_inside

        from .inference.explained import answer_video, explain_video

        if bool(upload) == bool(path):
            raise RequestError("give one clip: upload a video" + ", or a path" * bool(self.folder))
        video = Path(upload) if upload else video_inside(self.folder, path)
        labels = [line for line in lines if line.strip()]
        if not labels and not self.trained.labels:
            raise RequestError("this model has no classes of its own: write labels, one per line")
        if len(labels) > _MOST_LABELS or any(len(one) > _MOST_CHARACTERS for one in labels):
            raise RequestError(
                f"give at most {_MOST_LABELS} labels of at most {_MOST_CHARACTERS} characters"
            )
        trained = self._choice.relabelled(self.trained, labels) if labels else self.trained
        picture = None
        if self.is_explained:
            explained = explain_video(trained, video, title=video.name, timeout=self._timeout)
            answers, picture = explained.answers, draw_below([explained])
        else:
            _, answers = answer_video(trained, video, self._timeout)
        return {in_line(one.label): one.probability for one in answers}, picture, ""


def page_app(answers: ClipAnswers, max_video_mib: float) -> "FastAPI":
    """Returns the page as an application, with bounded requests and without telemetry."""
    import gradio
    from fastapi import FastAPI

    from stop_core.explain.explanation import MOST_ANSWERS

    # A request can name a URL in place of an upload, which Gradio would fetch, of any size.
    gradio.processing_utils.async_ssrf_protected_download = _refuse_url
    trained, bytes_of_video = answers.trained, int(max_video_mib * (1 << 20))
    classes = trained.labels or ()
    listed = ", ".join(map(in_line, classes[:_MOST_LISTED]))
    listed += ", ..." if len(classes) > _MOST_LISTED else ""
    with gradio.Blocks(title="STOP demo", delete_cache=(60, _UPLOADS_KEPT)) as page:
        model = trained.provenance.run or f"{trained.config.method}, {trained.config.tower}"
        gradio.Markdown(f"# What happens in this clip?\n\nModel: {in_markdown(model)}")
        with gradio.Row():
            with gradio.Column():
                named = "Clip (AVI and MKV have no preview)"
                upload = gradio.Video(sources=["upload"], label=named, height=320, elem_id="clip")
                path = gradio.Textbox(
                    label=f"Or its path in {answers.folder.name}" if answers.folder else "",
                    visible=answers.folder is not None,
                )
                hint = f"Without any, the {len(classes)} of the model: {listed}"
                labels = gradio.Textbox(
                    label="Labels, one per line", lines=4, info=hint if classes else None
                )
                button = gradio.Button("Predict", variant="primary")
            with gradio.Column():
                best = gradio.Label(label="Answer", num_top_classes=MOST_ANSWERS, elem_id="answer")
                message = gradio.Markdown()
        gradio.Markdown(_CAPTION if answers.is_explained else _UNEXPLAINED)
        picture = gradio.Image(
            show_label=False,
            format="png",
            visible=answers.is_explained,
            buttons=["fullscreen", "download"],  # without the one that uploads it
            elem_id="prompts",
        )
        button.click(
            answers.answer, [upload, path, labels], [best, picture, message], api_name="answer"
        )
    page.queue(max_size=_MOST_WAITING)
    # A mounted page counts as not launched, and Gradio then takes any file of this machine for an
    # upload.
    page.has_launched = True
    app = FastAPI(openapi_url=None)
    app.add_middleware(_bounded, most_bytes=bytes_of_video + _FORM_BYTES)
    gradio.mount_gradio_app(
        app,
        page,
        "/",
        css=_STYLE,
        max_file_size=bytes_of_video,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        ssr_mode=False,
        show_error=False,
    )
    return app


async def _refuse_url(url: str, cache_dir: str) -> str:
    from gradio import Error

    raise Error("upload the video itself: this page fetches no address", print_exception=False)


def _bounded(app: "ASGIApp", most_bytes: int) -> "ASGIApp":
    """Refuses requests with a larger body, before it is in memory or on the disk."""
    from starlette.exceptions import HTTPException

    async def run(scope: "Scope", receive: "Receive", send: "Send") -> None:
        received = 0

        async def counted() -> "Message":
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > most_bytes:
                raise HTTPException(413, f"the request has more than {most_bytes} bytes")
            return message

        await app(scope, counted, send)

    return run
