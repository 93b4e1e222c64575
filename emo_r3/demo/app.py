"""The demo in the browser: `create_demo(pipeline)` makes the page and its API, `launch` serves it."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import EmoR3Error
from ..serving.limits import MAX_BODY, MAX_FILE, BodyLimit, check_address
from .uploads import Answers, Uploads

if TYPE_CHECKING:
    import gradio as gr

    from ..inference.pipeline import EmoR3Pipeline

_EXAMPLES_SEED = 5


def create_demo(pipeline: EmoR3Pipeline, on_gpu: Callable[[Any], Any] | None = None) -> gr.Blocks:
    """Makes the page and the API; [`launch`] serves it.

    Endpoints, for `gradio_client` and as MCP tools: `/predict(image, labels, self_check)` gives what
    `EmotionResult.to_dict` does, `/predict_many(images, labels, self_check)` a list of it.

    Args:
        pipeline (`EmoR3Pipeline`): the model that answers.
        on_gpu (`Callable`, *optional*): `spaces.GPU(...)` in a Space on ZeroGPU, which lends a GPU to the functions
            that this decorates.

    Raises:
        EmoR3Error: gradio or mcp is not installed.
    """
    folder = temporary_folder()
    try:
        import gradio as gr
        import mcp  # noqa: F401  # which gradio asks for when it serves the tools
    except ImportError as error:
        raise EmoR3Error("the demo needs gradio and mcp: pip install 'emo-r3[demo]'") from error
    from .page import make_page

    examples = draw_examples(folder / "examples")
    gr.set_static_paths([folder / "examples"])
    uploads = Uploads(folder, lasting=folder / "examples")
    uploads.sweep_for_ever()
    return make_page(Answers(pipeline, uploads, on_gpu), examples)


@cache
def temporary_folder() -> Path:
    """The process's folder for uploads, which goes with it: gradio's own, in /tmp, can be read by others and stays."""
    folder = Path(tempfile.mkdtemp(prefix="emo-r3-demo-")).resolve()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["GRADIO_TEMP_DIR"] = str(folder)  # gradio asks for it when it is imported
    return folder


def launch(demo: gr.Blocks, **options: Any) -> None:
    """Serves the demo until it is interrupted.

    Args:
        demo (`gr.Blocks`): what [`create_demo`] made.
        options: of `gr.Blocks.launch`, such as `server_name` and `server_port`.

    Raises:
        EmoR3Error: the port is taken, or the address is none of this machine.
    """
    import gradio as gr
    import gradio.mcp
    from starlette.middleware import Middleware

    from .head import ICON, PreviewImage, use_own_words
    from .tools import Tools

    gradio.mcp.GradioMCPServer = Tools  # type: ignore[misc]  # gradio takes no other class
    use_own_words()
    # The fonts of the system, so that the page fetches nothing from elsewhere.
    theme = gr.themes.Default(
        primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    safe: dict[str, Any] = {
        "share": False,
        "show_error": False,  # our own messages are shown all the same
        "allowed_paths": [],
        "max_file_size": MAX_FILE,
        "app_kwargs": {
            "middleware": [
                Middleware(BodyLimit, limit=MAX_BODY, folder=temporary_folder()),
                Middleware(PreviewImage),
            ]
        },
        "favicon_path": str(ICON),
        "run_history": False,
        "enable_monitoring": False,
        "ssr_mode": False,
        "pwa": False,
        "mcp_server": True,
        "footer_links": ["api", "settings"],
        "theme": theme,
        "css_paths": Path(__file__).with_name("demo.css"),
        "quiet": True,
    }
    check_address(options.get("server_name"), options.get("server_port"))
    try:
        demo.launch(**safe | options, prevent_thread_lock=True)
    except (OSError, OverflowError) as error:  # also of the variable GRADIO_SERVER_PORT
        raise EmoR3Error(f"the demo can't be served: {error}; give another --port") from error
    # gradio looks for work a thousand times a second, which takes a twentieth of a core; this is its value on Windows.
    demo._queue.sleep_when_free = 0.05
    demo.app.iterators = _Runs(demo.app.iterators)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the temporary folder goes then too
    print(f"emo-r3: the demo is at {demo.local_url} (Ctrl-C ends it)", file=sys.stderr, flush=True)
    demo.block_thread()


class _Runs(dict[str, Any]):
    """gradio's runs. It deletes one that is cancelled twice, which would be a traceback in the log each time."""

    def __delitem__(self, name: str) -> None:
        self.pop(name, None)


def draw_examples(folder: Path) -> list[tuple[str, Path]]:
    """Draws six images of the miniature's world, each with a name: the examples to pick.

    Args:
        folder (`Path`): where to; made if it is missing.
    """
    import numpy as np

    from ..miniature import world
    from ..miniature.drawing import render

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(_EXAMPLES_SEED)
    found = []
    for index in range(6):
        scene = world.sample_scene("miniature-8", rng)
        path = folder / f"example-{index + 1}.png"
        render(scene).save(path)
        found.append((", ".join(world.TRIGGERS[name].phrases[0] for name in scene.triggers), path))
    return found
