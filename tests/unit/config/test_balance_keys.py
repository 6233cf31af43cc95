"""The keys of the balance methods: names, arguments and the defaults they share with the code."""

from __future__ import annotations

import dataclasses
import inspect
import typing

import pytest

from turbotrain_plugin.balancing import BALANCERS
from turbotrain_plugin.balancing.methods import TORCHJD_PREFIX, method_named
from turbotrain_plugin.config import BalanceArgs, load_hypes
from turbotrain_plugin.config.balancing import TorchJDArgs
from turbotrain_plugin.errors import UserError

WITH_ARGUMENTS = sorted({f.name for f in dataclasses.fields(BalanceArgs)} - {"torchjd"})


@pytest.mark.parametrize("name", WITH_ARGUMENTS)
def test_every_argument_is_a_key_with_the_same_default(name: str) -> None:
    taken = inspect.signature(BALANCERS[name]).parameters
    assert BalanceArgs().of(name) == {key: one.default for key, one in taken.items()}


def test_methods_without_a_block_take_no_argument() -> None:
    for name in set(BALANCERS) - set(WITH_ARGUMENTS):
        assert not inspect.signature(BALANCERS[name]).parameters
        assert BalanceArgs().of(name) == {}


@pytest.mark.parametrize("name", sorted(BALANCERS))
def test_every_method_can_be_made_from_its_keys(name: str) -> None:
    config = load_hypes("turbotrain_v2xpnp.yaml", [f"turbotrain.balance.method={name}"])
    balance = config.turbotrain.balance
    assert type(method_named(balance.method, balance.args.of(balance.method))) is BALANCERS[name]


def test_arguments_given_in_yaml_arrive() -> None:
    given = ["turbotrain.balance.args.moco={beta: 0.25, rho: 1}", "turbotrain.balance.method=moco"]
    balance = load_hypes("turbotrain_v2xpnp.yaml", given).turbotrain.balance
    assert balance.args.of(balance.method) == {"beta": 0.25, "gamma": 0.1, "rho": 1.0, "decay": 0.5}
    with pytest.raises(UserError, match=r"unknown key 'turbotrain\.balance\.args\.moco\.betta'"):
        load_hypes("turbotrain_v2xpnp.yaml", ["turbotrain.balance.args.moco.betta=1"])


def test_a_torchjd_weighting_is_named_with_its_prefix() -> None:
    given = [
        "turbotrain.balance.method=torchjd:Constant",
        "turbotrain.balance.args.torchjd.weights=[1, 2]",
    ]
    balance = load_hypes("turbotrain_v2xpnp.yaml", given).turbotrain.balance
    assert balance.args.of(balance.method) == {"seed": 0, "weights": (1.0, 2.0)}


@pytest.mark.parametrize("name", ["torchjd:", "torchjd", "torchJD:UPGrad", "cagrad2", "*"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(
        UserError, match=r"turbotrain\.balance\.method must be one of .*'torchjd:\*'"
    ):
        load_hypes("turbotrain_v2xpnp.yaml", [f"turbotrain.balance.method={name!r}"])


def test_every_argument_of_a_torchjd_weighting_has_a_key() -> None:
    torchjd = pytest.importorskip("torchjd.aggregation")
    wanted = {"seed"}
    for name in torchjd.__all__:
        if name.endswith("Weighting") and name != "Weighting":
            wanted |= set(inspect.signature(getattr(torchjd, name)).parameters)
    wanted.remove("projector")  # an object
    assert {f.name for f in dataclasses.fields(TorchJDArgs)} == wanted


def test_keys_of_torchjd_are_empty_unless_given() -> None:
    hints = typing.get_type_hints(TorchJDArgs)
    for field in dataclasses.fields(TorchJDArgs):
        assert field.name == "seed" or type(None) in typing.get_args(hints[field.name])
    assert BalanceArgs().of(f"{TORCHJD_PREFIX}MGDA") == {"seed": 0}
