import msgspec
import numpy as np
import pytest

from neobench.harness.spec import ArrivalSpec, EngineSpec, RunSpec, SpecError, WorkloadSpec, load_spec, spec_hash

PLAIN = {
    "engine": {"name": "null", "options": {"gap_ms": 2}},
    "workload": {"name": "carperai"},
    "arrival": {"kind": "poisson", "rate": 4},
    "model": "tiny",
    "num_requests": 10,
}


def changed(path, value):
    data = msgspec.json.decode(msgspec.json.encode(PLAIN))
    *parents, last = path.split(".")
    target = data
    for parent in parents:
        target = target[parent]
    target[last] = value
    return data


def test_loads_with_defaults():
    spec = load_spec(PLAIN)
    assert spec.arrival.rate == 4.0
    assert spec.seed == 0
    assert spec.engine.options == {"gap_ms": 2}
    assert load_spec(msgspec.to_builtins(spec)) == spec


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("num_request", 3, "unknown key 'num_request'; the nearest known one is 'num_requests'"),
        ("arrival.rat", 3, "unknown key 'arrival.rat'; the nearest known one is 'arrival.rate'"),
        ("zzz", 3, "unknown key 'zzz'"),
        ("num_requests", "3", "num_requests"),
        ("num_requests", 0, "at least 1"),
        ("num_warmup", -1, "num_warmup"),
        ("timeout_s", 0, "timeout_s"),
        ("seed", -1, "seed"),
        ("arrival.kind", "posson", "arrival.kind"),
        ("arrival.rate", -1, "positive, finite"),
        ("arrival.rate", None, "positive, finite"),
        ("arrival.rate", float("inf"), "all_at_once"),
        ("arrival.kind", "all_at_once", "must be left out"),
        ("engine", "null", "engine"),
    ],
)
def test_refuses_with_a_reason(path, value, message):
    with pytest.raises(SpecError, match=message):
        load_spec(changed(path, value))


def test_hash_does_not_depend_on_how_the_spec_was_made():
    loaded = load_spec(dict(reversed(PLAIN.items())))
    built = RunSpec(
        engine=EngineSpec(name="null", options={"gap_ms": 2}),
        workload=WorkloadSpec(name="carperai"),
        arrival=ArrivalSpec(rate=4),
        model="tiny",
        num_requests=10,
        seed=0,
    )
    assert spec_hash(loaded) == spec_hash(built) == spec_hash(load_spec(PLAIN))
    assert len(spec_hash(loaded)) == 64


@pytest.mark.parametrize("path", ["seed", "num_requests", "arrival.rate", "engine.options.gap_ms", "arrival.seed"])
def test_hash_changes_with_every_field(path):
    assert spec_hash(load_spec(changed(path, 11))) != spec_hash(load_spec(PLAIN))


def test_seeds_are_separate_and_can_be_given_one_by_one():
    derived = load_spec(PLAIN).seeds()
    assert len({derived.lengths, derived.prompts, derived.arrivals, derived.order}) == 4
    assert derived == load_spec(PLAIN).seeds()
    assert derived.lengths != load_spec(changed("seed", 1)).seeds().lengths
    given_seed = load_spec(changed("workload.prompt_seed", 5)).seeds()
    assert given_seed.prompts == 5
    assert (given_seed.lengths, given_seed.arrivals) == (derived.lengths, derived.arrivals)
    assert load_spec(changed("workload.order_seed", 6)).seeds() == msgspec.structs.replace(derived, order=6)


def test_a_further_purpose_left_the_seeds_of_the_others_as_they_were():
    known = load_spec(PLAIN | {"seed": 0}).seeds()
    before = [int(child.generate_state(1, np.uint64)[0]) for child in np.random.SeedSequence(0).spawn(3)]
    assert [known.lengths, known.prompts, known.arrivals] == before


@pytest.mark.parametrize(
    "arrival", [{"kind": "trace", "rate": 2}, {"kind": "trace", "speed": 0}, {"rate": 2, "speed": 2}]
)
def test_a_trace_has_a_speed_and_others_a_rate(arrival):
    with pytest.raises(SpecError, match=r"arrival\.(rate|speed) must be"):
        load_spec(PLAIN | {"arrival": arrival})


def test_specs_are_frozen():
    with pytest.raises(AttributeError):
        load_spec(PLAIN).seed = 3


@pytest.mark.parametrize(
    ("prefixes", "message"),
    [
        ({"prefix_groups": 2}, "go together"),
        ({"prefix_groups": 0, "prefix_tokens": 5}, "prefix_groups must be at least 1"),
    ],
)
def test_shared_prefixes_have_a_number_and_a_length(prefixes, message):
    with pytest.raises(SpecError, match=message):
        load_spec(PLAIN | {"workload": {"name": "carperai", **prefixes}})
