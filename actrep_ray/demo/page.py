"""The page itself, of Gradio: a player that takes a video, what is asked, where the count stands.

Nothing of it leaves this machine: no telemetry, no share, fonts of the system, and a video is taken
as an upload alone, never from an address that a request names.
"""

import os
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actrep_ray.demo.counters import Counters
from actrep_ray.demo.examples import EXAMPLES, Example
from actrep_ray.demo.limits import KEPT_S
from actrep_ray.demo.shown import show, show_nothing
from actrep_ray.demo.threads import in_thread

if TYPE_CHECKING:
    from fastapi import FastAPI

TITLE = "How often is it repeated?"

_BLUE = "#2a6fb8"  # as in page.css
_EVERY_S = 60  # is looked for uploads that are old


def settle_gradio(uploads: Path) -> None:
    """What Gradio reads from the environment when it is imported; call it before that.

    Args:
        uploads: Private folder of the uploads.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"


def make_page(counters: Counters, examples: Path | None) -> "FastAPI":
    """The application of the page; `settle_gradio` comes before.

    Args:
        counters: What counts.
        examples: Folder that example clips are drawn to; None offers none.
    """
    import gradio as gr
    from fastapi import FastAPI

    limits = counters.limits
    first = counters.preferred

    async def count(video: str | None, name: str, action: str) -> str:
        if not video:
            return show_nothing()
        return show(await in_thread(lambda: counters.count(Path(video), name, action)))

    with gr.Blocks(
        title=f"actrep: {TITLE}", analytics_enabled=False, delete_cache=(_EVERY_S, int(KEPT_S))
    ) as page:
        gr.HTML(
            f"<h1>{TITLE}</h1><p>Up to {limits.told_upload} and {limits.max_duration_s:g} s. "
            f"Videos stay on this machine and are deleted after {KEPT_S / 60:g} minutes.</p>",
            elem_id="head",
        )
        with gr.Row():
            with gr.Column(min_width=320):
                video = gr.Video(
                    label="Video", sources=["upload"], height=360, elem_id="player", buttons=[]
                )
                name = gr.Radio(
                    list(counters.names), value=first, label="Counted by",
                    visible=len(counters.names) > 1, elem_id="name",
                )  # fmt: skip
                action = gr.Textbox(
                    label="What is repeated (may be left empty)", max_lines=1, elem_id="action",
                    visible=counters.asks_action(first),
                )  # fmt: skip
                again = gr.Button("Count", variant="primary", elem_id="count")
                if examples is not None:
                    with gr.Row(elem_id="examples"):
                        gr.HTML("Examples:")
                        for one in EXAMPLES:
                            button = gr.Button(one.name, size="sm", min_width=60)
                            button.click(
                                _drawn(one, examples), None, video, api_visibility="private"
                            )
            with gr.Column(min_width=320):
                result = gr.HTML(show_nothing(), elem_id="result")
        gr.on(
            [video.change, again.click, action.submit, name.input],
            count,
            [video, name, action],
            result,
            api_visibility="private",
            concurrency_limit=1,
            concurrency_id="count",
            trigger_mode="always_last",
        )
        name.change(
            lambda chosen: gr.update(visible=counters.asks_action(chosen)),
            name, action, concurrency_limit=None, show_progress="hidden", api_visibility="private",
        )  # fmt: skip
    for block in page.blocks.values():
        _take_uploads_alone(block, gr.Error)
    # Else a request may name any file of this machine: what is mounted is not taken for launched.
    page.has_launched = True
    page.queue(max_size=limits.queue, api_open=False)
    app = FastAPI(openapi_url=None)
    gr.mount_gradio_app(
        app,
        page,
        "/",
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=limits.max_bytes,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        theme=_theme(gr),
        css=_asset("page.css"),
        head=f"<script>{_asset('page.js')}</script>",
    )
    return app


def _theme(gr: Any) -> Any:
    """Gradio's own, with fonts of the system and the blue of our pictures."""
    theme = gr.themes.Default(
        primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["monospace"]
    )
    fills = ("button_primary_background_fill", "button_primary_background_fill_dark")
    return theme.set(**dict.fromkeys(fills, _BLUE))


def _drawn(example: Example, folder: Path) -> Any:
    return lambda: str(example.draw(folder))


def _asset(name: str) -> str:
    return files("actrep_ray.demo").joinpath("assets", name).read_text(encoding="utf-8")


def _take_uploads_alone(block: Any, error: Any) -> None:
    """Keep a component from loading something from an address that a request names."""
    take = block.async_move_resource_to_block_cache

    async def take_file(path: str | None) -> str | None:
        if path is not None and not Path(path).is_absolute():
            raise error("a video is taken as an upload, not from an address", print_exception=False)
        taken: str | None = await take(path)
        return taken

    # Not in a class of our own: Gradio would write its signature beside this file.
    block.async_move_resource_to_block_cache = take_file
