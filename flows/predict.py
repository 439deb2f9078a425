"""Classify a folder of images with a sealed model and leave a Parquet table."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Failed

from nightfold.errors import NightfoldError
from nightfold.store import Store, new_run_id
from tasks.predict import Predicted
from tasks.predict import predict as classify_folder


@flow(
    name="predict",
    flow_run_name="predict {folder}",
    description=__doc__,
    persist_result=False,
)
def predict(
    folder: str,
    model: str = "champion",
    artifacts: str = "artifacts",
    run_id: str | None = None,
) -> Predicted | State[Any]:
    """Classify every image below `folder`; unreadable ones become rows that say why."""
    try:
        run_id = run_id or new_run_id()
        store = Store(artifacts)
        return classify_folder(folder, model, str(store.root), str(store.run(run_id)), run_id)
    except NightfoldError as error:
        return Failed(message=str(error), data=error)
