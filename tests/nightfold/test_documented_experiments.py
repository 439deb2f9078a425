"""docs/experiments.md names every key and every choice a user can write, and its example is one."""

import re
import tomllib
from typing import Literal, get_args, get_origin

import pytest
from pydantic import BaseModel

from nightfold.experiment import Candidate, Experiment, shipped
from nightfold.scaling import SCALERS
from nightfold.zoo import architectures

PAGE = shipped("docs", "experiments.md").read_text()


def parts(annotation):
    """A model's fields and the words of its choices, with those of the models inside."""
    if get_origin(annotation) is Literal:
        yield from (word for word in get_args(annotation) if isinstance(word, str))
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, field in annotation.model_fields.items():
            yield name
            yield from parts(field.annotation)
    else:
        for inner in get_args(annotation):
            yield from parts(inner)


@pytest.mark.parametrize("word", sorted({*parts(Experiment), *SCALERS, *architectures()}))
def test_every_key_and_choice_is_named(word):
    assert re.search(rf"\b{word}\b", PAGE), word


def test_the_example_is_an_experiment():
    (example,) = re.findall(r"```toml\n(.*?)```", PAGE, flags=re.DOTALL)
    experiment = Experiment.model_validate({"name": "example", **tomllib.loads(example)})
    assert isinstance(experiment.candidates[0], Candidate)
