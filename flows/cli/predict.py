"""`nightfold predict`: what a model says of images, one by one or of a whole folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.options import ARTIFACTS, ArtifactsOption, JsonOption, RunIdOption
from flows.cli.output import print_json, say, tell
from flows.cli.server import prepare_prefect, run_flow
from nightfold.errors import UsageError, printable
from nightfold.files import given

app = typer.Typer()


@app.command(epilog="Example: `nightfold predict digit.png --json`")
def predict(
    images: Annotated[
        list[Path], typer.Argument(help="Image files, or one folder of them.", show_default=False)
    ],
    model: Annotated[
        str, typer.Option(help="champion, a version, or the path of a bundle.")
    ] = "champion",
    as_json: JsonOption = False,
    artifacts: ArtifactsOption = ARTIFACTS,
    run_id: RunIdOption = None,
) -> None:
    """Say what is on an image: class, probability and runner-up.

    A folder is classified by the batch flow, which writes a Parquet table of all images in it.
    """
    if any(given(path).is_dir() for path in images):
        if len(images) > 1:
            raise UsageError("Give image files or one folder of them, not both.")
        _predict_folder(images[0], model, artifacts, run_id, as_json)
        return
    for path in images:
        if not path.exists():
            raise UsageError(f"There is no image {path}: check the path.")
    from nightfold import backend
    from nightfold.prediction import classify
    from nightfold.registry import Registry
    from nightfold.store import Store

    backend.leave_out_extras()
    bundle = Registry(Store(artifacts)).load(model)
    results = classify(images, bundle)
    if as_json:
        print_json([result.model_dump(mode="json") for result in results])
        return
    for result in results:
        first, second = (
            f"{printable(name)} ({100 * probability:.1f} %)"
            for name, probability in (
                (result.class_name, result.probability),
                (result.runner_up, result.runner_up_probability),
            )
        )
        say(f"{printable(result.path)}: {first}, then {second}")
        tell(f"  {result.preparation}")


def _predict_folder(
    folder: Path, model: str, artifacts: Path, run_id: str | None, as_json: bool
) -> None:
    from nightfold.store import new_run_id

    prepare_prefect()
    from flows.predict import predict as flow

    handle = run_flow(flow, str(folder), model, str(artifacts), run_id or new_run_id())
    if as_json:
        print_json(handle.model_dump(mode="json"))
        return
    say(f"{handle.n_images:,} images, {handle.n_errors:,} unreadable")
    say(f"table {handle.path}")
