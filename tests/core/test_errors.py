"""Errors tell the command line how to end."""

from bridle.core import errors


def test_exit_status_by_kind() -> None:
    kinds = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, errors.BridleError)]
    status = {kind.__name__: kind("a sentence").exit_status for kind in kinds}
    assert status.pop("Interrupted") == 130 and status.pop("WaitingForLabels") == 3
    assert {name for name, code in status.items() if code == 2} == {"UsageError", "RecipeError", "ProjectError"}
    assert set(status.values()) == {1, 2}


def test_every_error_is_drawn() -> None:
    assert all(name in (errors.__doc__ or "") for name, kind in vars(errors).items() if isinstance(kind, type))
