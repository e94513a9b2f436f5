"""One table of settings: the keywords, the recipe, the command line, the refusals and the reference page agree with it."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from pathlib import Path

import pytest
import typer

from ragkit import Index
from ragkit.apps.cli.add import add
from ragkit.apps.cli.maintenance import migrate
from ragkit.core.errors import RecipeMismatch
from ragkit.recipe.recipe import Recipe
from ragkit.recipe.settings import (
    PRECISIONS,
    Settings,
    SettingsKeywords,
    disagreements,
    migrate_command,
    reference,
    stored_settings,
    table,
)
from ragkit.store.vectors import multi_layout
from ragkit.testing import HashEncoder

ROOT = Path(__file__).parents[2]
OTHER = {str: "other", int: 9, float: 0.5}


def test_the_keywords_of_open_are_the_fields_of_settings() -> None:
    assert list(SettingsKeywords.__annotations__) == [field.name for field in dataclasses.fields(Settings)] == list(table())


def test_every_setting_has_its_place_in_the_recipe_and_no_place_has_two() -> None:
    stages = typing.get_type_hints(Recipe)
    places = [(row.stage, row.field) for row in table().values()]
    for stage, field in places:
        model = next(kind for kind in (stages[stage], *typing.get_args(stages[stage])) if hasattr(kind, "model_fields"))
        assert field in model.model_fields, (stage, field)
    assert len(set(places)) == len(places)


def test_the_precisions_to_choose_from_are_those_that_the_store_keeps() -> None:
    assert PRECISIONS == multi_layout.PRECISIONS


def test_five_settings_are_for_newcomers_and_open_names_them() -> None:
    newcomer = [row.name for row in table().values() if row.newcomer]
    assert len(newcomer) == 5
    for name in newcomer:
        assert f"- {name}: " in (Index.open.__doc__ or "")


@pytest.mark.parametrize("command", [add, migrate])
def test_the_command_line_has_an_option_for_each_setting(command: object) -> None:
    parameters = inspect.signature(command).parameters  # type: ignore[arg-type]
    for name, row in table().items():
        (option,) = [each for each in parameters[name].annotation.__metadata__ if isinstance(each, typer.models.OptionInfo)]
        assert [option.default, *(option.param_decls or ())] == [row.option]
        assert row.help in str(option.help)


def test_the_reference_page_is_made_from_the_table() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page == reference(), "run: python -m ragkit.recipe.settings > docs/settings.md"


@pytest.mark.parametrize("name", list(table()))
def test_a_setting_that_disagrees_is_refused_with_the_command_that_changes_it(name: str, tmp_path: Path) -> None:
    settings = {"multi": True, "pages": "all", "page_model": "hash:64+multi32+images", "model": "hash:64+multi32+images"}
    with Index.open(tmp_path / "library", **settings) as index:  # type: ignore[arg-type]
        stored = stored_settings(index.recipe)
        assert disagreements(index.recipe, stored) == {}
    row = table()[name]
    other = not getattr(stored, name) if row.kind is bool else OTHER[row.kind]
    if name in ("model", "page_model"):
        other = "hash:32"
    with pytest.raises(RecipeMismatch) as refused:
        Index.open(tmp_path / "library", **{name: other})  # type: ignore[arg-type]
    assert f"{name}: stored {getattr(stored, name)!r}, given {other!r}" in str(refused.value)
    assert str(refused.value).endswith(migrate_command(tmp_path / "library", {name: other}))


def test_what_means_the_stored_value_does_not_disagree(tmp_path: Path) -> None:
    with Index.open(tmp_path / "library", model="hash:64+multi32+images", multi=True, pages="all") as index:
        recipe = index.recipe
    for agreeing in (
        Settings(multi=True, page_multi=True, pages=True),
        Settings(multi="int8", page_multi="int8", pages="all"),
        Settings(dtype="auto", late_chunking="auto"),
    ):
        assert disagreements(recipe, agreeing) == {}
    assert set(disagreements(recipe, Settings(multi=False, page_multi=False, pages="none"))) == {"multi", "page_multi", "pages"}


def test_the_command_line_writes_every_kind_of_value() -> None:
    changes = {"multi": True, "page_multi": False, "late_chunking": False, "pages": True, "model": "my model", "chunk_tokens": 64}
    assert migrate_command(Path("library"), changes) == (
        "ragkit migrate library --multi int8 --page-multi off --no-late-chunking --pages auto "
        "--model 'my model' --chunk-tokens 64"
    )


def test_an_unknown_setting_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="'chunks' is not a setting; the settings are model, task"):
        Index.open(tmp_path / "library", chunks=3)  # type: ignore[call-arg]
    with Index.open(tmp_path / "library", model=HashEncoder(dims=32)) as index, pytest.raises(TypeError, match="not a setting"):
        index.rebuild(chunks=3)  # type: ignore[call-arg]
