"""`BoTConfig` as a value: equal ones are one key, and it goes wherever Python sends objects."""

import copy
import dataclasses
import multiprocessing
import pickle

import pytest

from transformers_bot import BoTConfig

WAVELETS = [
    "auto",
    "db2",
    {"default": "haar", "layer": "db2"},
    {"hidden": "bior2.2", "ffn": "sym4", "heads": "haar", "head_dim": "coif1", "layer": "db3", "default": "auto"},
    {},
]


@pytest.mark.parametrize("wavelet", WAVELETS, ids=str)
@pytest.mark.parametrize(
    "again",
    [
        *(lambda one, protocol=number: pickle.loads(pickle.dumps(one, protocol)) for number in range(6)),
        copy.copy,
        copy.deepcopy,
        dataclasses.replace,
        lambda one: BoTConfig(**dataclasses.asdict(one)),
        lambda one: BoTConfig.from_any(one.to_dict()),
        lambda one: eval(repr(one)),
    ],
    ids=[*(f"pickle{number}" for number in range(6)), "copy", "deepcopy", "replace", "asdict", "to_dict", "repr"],
)
def test_what_comes_back_is_equal(wavelet, again):
    config = BoTConfig(wavelet=wavelet, depth="wavelet", detail_scale=2.0, seed=3)
    other = again(config)
    assert (other, hash(other), other.to_dict()) == (config, hash(config), config.to_dict())
    assert type(other.wavelet) is type(config.wavelet)
    assert [other.wavelet_for(role) for role in ("hidden", "layer")] == [
        config.wavelet_for(role) for role in ("hidden", "layer")
    ]


def test_the_order_of_roles_does_not_matter():
    one, other = (BoTConfig(wavelet=dict(items)) for items in (WAVELETS[3].items(), reversed(WAVELETS[3].items())))
    assert one == other
    assert len({one, other}) == 1
    assert {one: "found"}[other] == "found"


@pytest.mark.parametrize("wavelet", [{"default": "haar"}, {"layer": "db3", "default": "db2"}, "db2", {}], ids=str)
def test_other_wavelets_are_another_value(wavelet):
    assert BoTConfig(wavelet=wavelet) != BoTConfig(wavelet={"default": "haar", "layer": "db2"})
    assert BoTConfig(wavelet=wavelet) != BoTConfig(wavelet=wavelet, seed=1)


@pytest.mark.slow
def test_it_goes_to_another_process_and_back():
    config = BoTConfig(wavelet={"default": "haar", "layer": "db2"})
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        name, back = pool.apply(_seen, (config,))
    assert (name, back) == ("db2", config)


def _seen(config):
    return config.wavelet_for("layer"), config


def test_neither_the_callers_dict_nor_the_config_changes():
    given = {"layer": "db2"}
    config = BoTConfig(wavelet=given)
    given["layer"] = "haar"
    assert config.wavelet == {"layer": "db2"}
    assert config.to_dict()["wavelet"] is not config.to_dict()["wavelet"]
    with pytest.raises(TypeError):
        config.wavelet["layer"] = "haar"


def test_its_repr_is_the_call_that_makes_it():
    assert repr(BoTConfig()) == "BoTConfig()"
    assert repr(BoTConfig(wavelet={"layer": "db2"}, seed=4)) == "BoTConfig(wavelet={'layer': 'db2'}, seed=4)"
