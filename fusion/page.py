"""The page: a photo and a text come in from a browser; three probabilities, a heat map and shaded words go out.

What is shown is one piece of HTML in which everything that a person typed is escaped, and the picture is part of it, so
that nothing is left on the disk to show it.
"""

import random
from html import escape
from pathlib import Path

import gradio as gr
from fastapi import FastAPI

from fusion.desk import Busy, Desk
from fusion.explain import Explanation, explain_posts
from fusion.predict import Answer, Inputs
from fusion.report.cards import data_uri, shaded, shrunk
from fusion.report.heatmap import MARKED, STOPS, overlay
from pipeline.drawn import NAMES, write_tweet
from pipeline.errors import InputError
from pipeline.pictures import draw_picture

_SCALE = f"linear-gradient(90deg, {', '.join(f'rgb{colour} {at:.0%}' for at, colour in STOPS)})"
_KEPT_SECONDS = 900  # an upload is needed again when only the text is changed
_FLAGS = {
    "no_text": "There is no text: this is what the photo says alone.",
    "no_image": "There is no photo: this is what the text says alone.",
    "truncated": "The text is longer than the encoder reads; its end was left out.",
    "rotated": "The photo was turned upright, as its camera noted.",
    "animated": "Of the animation the first picture was taken.",
    "converted": "The picture was converted to RGB, with white behind what is transparent.",
}

_EMPTY = '<div class="mscf"><p class="note">The answer, and what it rests on, will stand here.</p></div>'

_STYLE = """
.mscf { font-size: 1rem; line-height: 1.5; color: var(--body-text-color); }
.mscf h3 { margin: 1.2em 0 .3em; font-size: 1rem; font-weight: 600; }
.mscf .label { font-size: 1.6rem; font-weight: 650; margin: 0 0 .4em; }
.mscf .row { display: grid; grid-template-columns: 5.5em 1fr 4em; align-items: center; gap: .6em; margin: .3em 0; }
.mscf .track { background: color-mix(in srgb, currentColor 12%, transparent); border-radius: 5px; height: 1.1em; }
.mscf .fill { height: 100%; border-radius: 5px; min-width: 2px; }
.mscf .positive .fill { background: #2a9d6f; } .mscf .neutral .fill { background: #8a94a6; }
.mscf .negative .fill { background: #c8553d; }
.mscf .share { text-align: right; font-variant-numeric: tabular-nums; }
.mscf img { max-width: 100%; max-height: 26rem; border-radius: 8px; display: block; }
.mscf .legend { display: flex; align-items: center; gap: .6em; font-size: .85rem; margin-top: .4em; }
.mscf .scale { flex: 0 0 9em; height: .7em; border-radius: 4px; }
.mscf .words { line-height: 2; overflow-wrap: anywhere; }
.mscf .words span { border-radius: 4px; padding: .1em .2em; }
.mscf .words sup { font-weight: 700; margin-left: .15em; }
.mscf .unread { opacity: .45; }
.mscf .note { font-size: .9rem; opacity: .85; margin: .3em 0; }
.mscf .problem { border-left: 4px solid #c8553d; padding: .5em .9em; }
"""


def photo_field() -> gr.Image:
    """Gradio's image field, but it hands over the uploaded file as it came, to be decoded within our limits, and takes
    nothing but uploads.
    """
    field = gr.Image(type="filepath", sources=["upload", "clipboard"], label="Photo", height=320)
    move = field.async_move_resource_to_block_cache

    async def uploads_only(place: str | Path | None) -> str | None:
        if str(place).startswith(("http:", "https:")):
            raise gr.Error("a photo must be uploaded; addresses are not fetched")
        return await move(place)

    # Not a subclass: Gradio writes a stub file into the folder of the source of each.
    vars(field).update(
        preprocess=lambda payload: payload.path if payload else None, async_move_resource_to_block_cache=uploads_only
    )
    return field


def mount_page(app: FastAPI, desk: Desk, folder: Path) -> FastAPI:
    """Put the page at / of the app; its examples are drawn into the folder."""
    blocks = _page(desk, _examples(folder / "examples"))
    return gr.mount_gradio_app(
        app,
        blocks,
        "/",
        theme=gr.themes.Soft(font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace")),
        css=_STYLE,
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        max_file_size=desk.limits.bytes,
    )


def _page(desk: Desk, examples: list[list[str]]) -> gr.Blocks:
    def ask(path: str | None, text: str | None) -> str:
        return answered(desk, text, path)

    run = desk.predictor.run.folder.name
    with gr.Blocks(title="mscf", analytics_enabled=False, delete_cache=(60, _KEPT_SECONDS)) as blocks:
        gr.Markdown(
            f"# What does a post say?\nDrop a photo, type its text. Model: `{run}`. Nothing leaves this machine."
        )
        with gr.Row():
            with gr.Column():
                photo = photo_field()
                text = gr.Textbox(label="Text", lines=3, max_length=desk.limits.characters)
                button = gr.Button("Read the post", variant="primary")
                gr.Examples(examples, [photo, text], label="Drawn examples")
            with gr.Column():
                result = gr.HTML(_EMPTY, elem_id="answer")
        gr.on(
            [button.click, text.submit],
            ask,
            [photo, text],
            result,
            api_visibility="private",
            concurrency_limit=desk.limits.requests,
        )
    return blocks.queue(max_size=desk.limits.requests)


def answered(desk: Desk, text: str | None, path: str | None) -> str:
    """The answer to an uploaded photo and a text as HTML, or what is wrong; a bad photo is deleted."""
    try:
        if problem := desk.text_problem(text):
            return problem_html(problem)
        with desk.place():
            inputs = desk.inputs(text, Path(path).read_bytes() if path else None)
            answer = desk.answer(inputs)
            if answer.reason:
                if path and inputs.picture is None:
                    Path(path).unlink(missing_ok=True)
                return problem_html(answer.reason)
            return answer_html(answer) + explanation_html(desk, inputs)
    except (Busy, InputError) as error:
        return problem_html(str(error))
    except FileNotFoundError:
        return problem_html("the photo is not here any more; drop it again")


def answer_html(answer: Answer) -> str:
    """Three labelled bars, and what a reader should know."""
    rows = "".join(
        f'<div class="row {label}"><span>{label}</span><div class="track"><div class="fill" '
        f'style="width:{100 * share:.2f}%"></div></div><span class="share" data-label="{label}" '
        f'data-probability="{share:.6f}">{share:.1%}</span></div>'
        for label, share in answer.probabilities.items()
    )
    notes = "".join(f'<p class="note">{escape(_FLAGS.get(flag, flag))}</p>' for flag in answer.flags)
    return f'<div class="mscf"><p class="label">{answer.label}</p>{rows}{notes}</div>'


def explanation_html(desk: Desk, inputs: Inputs) -> str:
    """Where the model looked: the photo under its heat map, and the words shaded by weight."""
    (found,) = explain_posts(desk.predictor, [inputs])
    parts = []
    if found.heat is not None and inputs.picture is not None:
        view = desk.predictor.image.fingerprint["transform"]
        picture = data_uri(overlay(shrunk(inputs.picture), found.heat, view))
        parts.append(
            f'<h3>Where it looked</h3><img alt="the photo under its heat map" src="{picture}">'
            f'<div class="legend"><span>less</span><div class="scale" style="background:{_SCALE}"></div>'
            f"<span>more; 1 to {MARKED}: the strongest; grey: cut off by the encoder</span></div>"
        )
    if found.words:
        parts.append(f'<h3>Which words weighed</h3><p class="words">{_words(found)}</p>')
    return f'<div class="mscf">{"".join(parts)}</div>' if parts else ""


def problem_html(problem: str) -> str:
    return f'<div class="mscf"><p class="problem" role="alert">{escape(problem)}</p></div>'


def _words(found: Explanation) -> str:
    """The words shaded by weight, the strongest numbered for eyes and printers without colour."""
    words = []
    read = len(found.words) - found.unread
    for place, word in enumerate(shaded(found.words)):
        rank = f"<sup>{word.rank}</sup>" if word.rank else ""
        look = f'title="{word.weight:.2f}" style="background:rgb(245 158 11 / {0.75 * word.weight:.2f})"'
        look = look if place < read else 'class="unread" title="beyond what the encoder reads"'
        words.append(f"<span {look}>{escape(word.text)}{rank}</span>")
    return " ".join(words)


def _examples(folder: Path) -> list[list[str]]:
    """A drawn post of each mood: the photo's path and the text."""
    folder.mkdir(parents=True)
    examples = []
    for mood, name in NAMES.items():
        rng = random.Random(f"example {name}")
        picture, quality = draw_picture(rng, mood)
        picture.save(folder / f"{name}.jpg", quality=quality)
        examples.append([str(folder / f"{name}.jpg"), write_tweet(rng, mood)])
    return examples
