"""What `bursar` exports, and that the sync and the async client stay twins."""

import importlib
import importlib.resources
import inspect
import types

import pytest

import bursar
from bursar.aio import AsyncClient, AsyncReservation
from bursar.client import Client
from bursar.reservation import Reservation

MODULES = [
    "bursar",
    "bursar.aio",
    "bursar.cli",
    "bursar.client",
    "bursar.daemon.config",
    "bursar.exceptions",
    "bursar.forecast",
    "bursar.middleware",
    "bursar.models",
    "bursar.processes",
    "bursar.reservation",
    "bursar.testing",
    "bursar.tokens",
    "bursar.units",
]


@pytest.mark.parametrize("name", MODULES)
def test_all_is_sorted_and_names_what_exists(name: str) -> None:
    module = importlib.import_module(name)
    # Constants first, then the rest, as the linter sorts them.
    assert module.__all__ == sorted(module.__all__, key=lambda one: (not one.isupper(), one))
    assert [one for one in module.__all__ if not hasattr(module, one)] == []


def test_all_of_the_package_is_exactly_its_public_names() -> None:
    public = {
        name
        for name, value in vars(bursar).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert set(bursar.__all__) == public | {"__version__"}


def test_every_model_and_exception_is_exported() -> None:
    from bursar import exceptions, models, processes

    kept_inside = {"ERRORS", "ErrorRow"}
    expected = {*exceptions.__all__, *models.__all__, *processes.__all__} - kept_inside
    assert expected - set(bursar.__all__) == set()


def _methods(cls: type) -> dict[str, inspect.Signature]:
    return {
        name: inspect.signature(value)
        for name, value in inspect.getmembers(cls, inspect.isfunction)
        if not name.startswith("_")
    }


@pytest.mark.parametrize(
    ("sync", "asynchronous"), [(Client, AsyncClient), (Reservation, AsyncReservation)]
)
def test_sync_and_async_methods_have_the_same_names_and_parameters(
    sync: type, asynchronous: type
) -> None:
    ours, theirs = _methods(sync), _methods(asynchronous)
    assert list(ours) == list(theirs)
    for name, signature in ours.items():
        assert signature.parameters == theirs[name].parameters, name


@pytest.mark.parametrize("cls", [Client, AsyncClient, Reservation, AsyncReservation])
def test_everything_after_the_first_argument_is_keyword_only(cls: type) -> None:
    for name, signature in _methods(cls).items():
        positional = [
            parameter.name
            for parameter in signature.parameters.values()
            if parameter.kind is not inspect.Parameter.KEYWORD_ONLY
        ]
        assert len(positional) <= 2, f"{name}({', '.join(positional)})"


def test_the_package_is_typed() -> None:
    assert importlib.resources.files("bursar").joinpath("py.typed").is_file()
