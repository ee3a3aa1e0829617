"""params.yaml: what is read, and one clear line for each way in which it can be wrong."""

from __future__ import annotations

import copy
import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.core.errors import ConfigError
from pipeline.modalities.images.augmentations import PadCrop, RandomResizedCrop
from pipeline.modalities.images.spec import ViewSpec
from pipeline.training.settings import TrainingSettings
from stages.params import Params
from stages.params_file import load_params

REPOSITORY = Path(__file__).parents[2]

TREE: dict[str, Any] = {
    "data": {"source": "fashion-mnist-10k", "validation": 0.1},
    "training": {
        "epochs": 6,
        "learning_rate": 0.1,
        "views": {"seed": 1, "pad_crop": {"padding": 2}, "flip": "random"},
    },
    "teachers": {"big": {"model": "wrn_16_2", "weights": "FASHION_MNIST_V1"}},
    "dumps": {
        "main": {
            "teacher": "big",
            "views": {"count": 6, "seed": 1, "random_resized_crop": {"scale": [0.25, 1]}},
        }
    },
    "students": {
        "small": {"model": "shufflenet_v2_x0_5", "learning_rate": 0.02, "options": {"x": 1}},
        "other": {"model": "mobilenet_v2", "epochs": 3},
    },
    "recipes": {
        "scratch": {"loss": "scratch"},
        "kd": {"loss": "kd", "temperature": 4, "ce_weight": 0.1},
    },
    "sweep": {
        "dumps": ["main"],
        "students": ["small", "other"],
        "recipes": ["kd"],
        "baselines": ["scratch"],
        "seeds": [0, 1],
    },
}


@pytest.fixture
def load(tmp_path):
    """Write TREE with changes ("a.b": value; a value of `...` removes the key) and load it."""

    def run(changes: dict[str, Any] | None = None, overrides: tuple[str, ...] = ()) -> Params:
        tree = copy.deepcopy(TREE)
        for key, value in (changes or {}).items():
            *parents, leaf = key.split(".")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            if value is ...:
                del node[leaf]
            else:
                node[leaf] = value
        path = tmp_path / "params.yaml"
        path.write_text(yaml.safe_dump(tree))
        return load_params(path, overrides)

    return run


# What is read


def test_the_repositorys_own_parameters_load():
    params = load_params(REPOSITORY / "params.yaml")
    assert params.sweep.dumps
    assert params.sweep.baselines
    assert len(params.sweep.students) == 2
    for name in params.sweep.dumps:
        assert params.teacher(params.dump(name).teacher).weights is not None


def test_a_dump_is_asked_for_as_it_is_written(load):
    settings = {"batch_size": 24, "shard_rows": 48, "allow_poor_teacher": True, "compile": True}
    spec = load({f"dumps.main.{key}": value for key, value in settings.items()}).dump("main").dump_spec()
    assert {key: getattr(spec, key) for key in settings} == settings
    assert (spec.view_count, spec.codec.name) == (6, "affine8")
    assert not load().dump("main").dump_spec().compile


def test_an_empty_file_has_defaults(tmp_path):
    (tmp_path / "params.yaml").write_text("# nothing\n")
    params = load_params(tmp_path / "params.yaml")
    assert params == Params()
    assert params.data.source == "fashion-mnist-10k"


def test_values_arrive_where_they_are_used(load):
    params = load()
    assert params.data.validation == 0.1
    assert params.dump("main").views.count == 6
    assert params.recipe("kd").settings == {"temperature": 4, "ce_weight": 0.1}
    assert params.student("small").options == {"x": 1}
    assert params.sweep.students == ("small", "other")
    assert params.sweep.seeds == (0, 1)


def test_a_dumps_spec_is_its_views_without_their_number(load):
    expected = ViewSpec(seed=1, random_resized_crop=RandomResizedCrop(scale=(0.25, 1.0)))
    spec = load().dump("main").views.spec
    assert spec == expected
    assert spec.digest() == expected.digest()


def test_models_have_the_shared_training_with_their_own_values_over_it(load):
    params = load()
    shared = TrainingSettings(epochs=6, learning_rate=0.1)
    assert params.training.settings() == shared
    assert params.teacher("big").training.settings() == shared
    assert params.student("small").training.settings() == TrainingSettings(epochs=6, learning_rate=0.02)
    assert params.student("other").training.settings() == TrainingSettings(epochs=3, learning_rate=0.1)


def test_a_model_may_have_views_of_its_own(load):
    params = load({"students.small.views": {"flip": "alternating"}})
    assert params.student("small").training.views == ViewSpec(flip="alternating")
    assert params.student("other").training.views == ViewSpec(
        seed=1, pad_crop=PadCrop(padding=2), flip="random"
    )


def test_a_shared_value_out_of_a_models_range_is_fitted_by_its_own_value(load):
    """Six epochs of warm-up fit the shared six, and a student of three brings its own."""
    params = load({"training.warmup_epochs": 6, "students.other.warmup_epochs": 1})
    assert params.student("other").training.warmup_epochs == 1


def test_numbers_may_be_written_in_the_way_that_yaml_takes_for_text(load, tmp_path):
    load()
    path = tmp_path / "params.yaml"
    path.write_text(path.read_text().replace("learning_rate: 0.02", "learning_rate: 2e-2"))
    assert yaml.safe_load("2e-2") == "2e-2"
    assert load_params(path).student("small").training.learning_rate == 0.02


def test_a_setting_of_a_recipe_may_have_a_schedule(load):
    falling = {"from": 8, "to": 2, "epochs": 30}
    params = load({"recipes.kd.temperature": falling, "recipes.kd.kd_weight": {"warmup": 1, "epochs": 2.5}})
    assert params.recipe("kd").settings["temperature"] == falling
    assert params.recipe("kd").settings["kd_weight"] == {"warmup": 1, "epochs": 2.5}


def test_recipes_know_whether_they_need_a_teacher(load):
    params = load()
    assert params.recipe("kd").needs_teacher
    assert not params.recipe("scratch").needs_teacher


# Overrides


def test_set_overrides_values_of_any_depth_and_type(load):
    params = load(
        overrides=(
            "data.validation=0.25",
            "dumps.main.views.count=2",
            "dumps.main.views.flip=random",
            "sweep.students=[other]",
            "students.small.learning_rate=0.5",
            "recipes.kd.temperature=2.5",
            "recipes.kd.kd_weight={warmup: 1, epochs: 5}",
            "recipes.kd.kd_weight.epochs=7",
        )
    )
    assert params.data.validation == 0.25
    assert (params.dump("main").views.count, params.dump("main").views.spec.flip) == (2, "random")
    assert params.sweep.students == ("other",)
    assert params.student("small").training.learning_rate == 0.5
    assert params.recipe("kd").settings["temperature"] == 2.5
    assert params.recipe("kd").settings["kd_weight"] == {"warmup": 1, "epochs": 7}


def test_set_of_a_shared_value_reaches_the_models_that_have_none_of_their_own(load):
    params = load(overrides=("training.epochs=9",))
    assert params.student("small").training.epochs == 9
    assert params.student("other").training.epochs == 3


def test_the_last_of_two_overrides_holds(load):
    assert load(overrides=("data.seed=1", "data.seed=2")).data.seed == 2


def test_set_may_define_what_the_file_has_not(load):
    params = load(overrides=("students.new.model=resnet18", "data.root=elsewhere"))
    assert params.student("new").model == "resnet18"
    assert params.data.options.root == "elsewhere"


def test_set_may_hold_an_equals_sign_in_its_value(load):
    assert load(overrides=("data.source=folder:a=b",)).data.source == "folder:a=b"


@pytest.mark.parametrize("text", ["data.seed", "=1", "data.seed 1"])
def test_set_without_key_or_value_is_refused(load, text):
    with pytest.raises(ConfigError, match=rf"--set {text}: expected key.path=value"):
        load(overrides=(text,))


def test_set_below_a_value_is_refused(load):
    with pytest.raises(ConfigError, match=r"--set data.seed.x=1: seed has a value, not keys"):
        load({"data.seed": 3}, overrides=("data.seed.x=1",))


def test_set_to_what_is_no_yaml_is_refused(load):
    with pytest.raises(ConfigError, match=r"--set sweep.seeds=\[1: '\[1' is not YAML"):
        load(overrides=("sweep.seeds=[1",))


def test_set_of_an_unknown_key_is_refused_as_in_the_file(load):
    with pytest.raises(ConfigError, match=r"unknown key data.sed; .*did you mean 'seed'\?") as caught:
        load(overrides=("data.seed=1", "data.sed=1"))
    assert "params.yaml --set data.seed=… --set data.sed=…: unknown key" in str(caught.value)


def test_a_secret_of_an_override_is_not_told(load):
    with pytest.raises(ConfigError, match=r"--set places.logits=…: places: s3://\*\*\*@bucket/x") as caught:
        load(overrides=("places.logits=s3://KEY:SECRET@bucket/x",))
    assert "SECRET" not in str(caught.value)


def test_a_name_that_an_override_refers_to_is_refused_with_it(load):
    told = r"params.yaml --set sweep.recipes=…: sweep.recipes names 'dk'; .*; did you mean 'kd'\?"
    with pytest.raises(ConfigError, match=told):
        load(overrides=("sweep.recipes=[dk]",))


# Files


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none.yaml: no such file; .* --params"):
        load_params(tmp_path / "none.yaml")


@pytest.mark.parametrize("overrides", [(), ("data.seed=1",)])
def test_a_key_that_stands_twice_is_refused_with_both_lines(tmp_path, overrides):
    (tmp_path / "params.yaml").write_text("training:\n  epochs: 1\ndata: {}\ntraining:\n  epochs: 2\n")
    with pytest.raises(ConfigError, match=r"params.yaml: .*'training' appears in lines 1 and 4"):
        load_params(tmp_path / "params.yaml", overrides)


def test_a_key_that_stands_twice_in_an_override_is_refused(load):
    with pytest.raises(ConfigError, match=r"--set training=.*'epochs' appears"):
        load(overrides=("training={epochs: 1, epochs: 2}",))


@pytest.mark.parametrize(
    "overrides", [("x=" + "[" * 3000,), ("data.seed=" + "x" * 5000,), ("y" * 5000 + "=1",)]
)
def test_messages_repeat_no_more_of_an_override_than_its_ends(load, overrides):
    with pytest.raises(ConfigError) as caught:
        load(overrides=overrides)
    assert len(str(caught.value)) < 1200


@pytest.mark.parametrize("text", ["data: [1", "a: b: c", "\tdata: 1", "data: &x *y"])
def test_a_file_that_is_no_yaml_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"params.yaml: not YAML \(.*line 1") as caught:
        load_params(tmp_path / "params.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "found"), [("- a\n- b", "list"), ("just text", "str"), ("3", "int")])
def test_a_file_without_keys_is_refused(tmp_path, text, found):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rf"contains a {found}; expected keys and values"):
        load_params(tmp_path / "params.yaml")


def test_a_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "params.yaml").write_bytes(b"data:\n  source: caf\xe9\n")
    with pytest.raises(ConfigError, match=r"params.yaml"):
        load_params(tmp_path / "params.yaml")


def test_a_folder_in_place_of_the_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=tmp_path.name):
        load_params(tmp_path)


# Keys


@pytest.mark.parametrize(
    ("key", "suggestion"),
    [
        ("dat", "data"),
        ("student", "students"),
        ("data.sorce", "source"),
        ("training.epoch", "epochs"),
        ("training.views.flp", "flip"),
        ("training.views.pad_crop.pading", "padding"),
        ("teachers.big.wieghts", "weights"),
        ("teachers.big.batchsize", "batch_size"),
        ("students.small.stemstride", "stem_stride"),
        ("students.small.learning_rat", "learning_rate"),
        ("students.small.views.sed", "seed"),
        ("dumps.main.teachr", "teacher"),
        ("dumps.main.views.cont", "count"),
        ("dumps.main.views.random_resized_crop.scales", "scale"),
        ("sweep.baseline", "baselines"),
    ],
)
def test_an_unknown_key_is_named_with_its_path_and_a_suggestion(load, key, suggestion):
    message = rf"params.yaml: unknown key {key}; expected one of .*did you mean '{suggestion}'\?"
    with pytest.raises(ConfigError, match=message):
        load({key: 1})


def test_an_unknown_setting_of_a_recipe_is_refused_with_those_of_its_loss(load):
    message = r"recipes.kd: .*has no setting 'temprature'; expected temperature, ce_weight"
    with pytest.raises(ConfigError, match=message):
        load({"recipes.kd.temprature": 3})


def test_training_is_no_key_of_a_model(load):
    with pytest.raises(ConfigError, match=r"unknown key students.small.training"):
        load({"students.small.training": {"epochs": 3}})


def test_the_number_of_views_is_no_key_of_training(load):
    with pytest.raises(ConfigError, match=r"unknown key training.views.count"):
        load({"training.views.count": 3})


def test_a_key_that_is_a_number_is_refused(load):
    tree_with_number = {"students": {1: {"model": "resnet18"}}}
    with pytest.raises(ConfigError, match=r"students"):
        load(tree_with_number)


@pytest.mark.parametrize(
    "key",
    ["teachers.big.model", "students.small.model", "dumps.main.teacher", "dumps.main.views",
     "dumps.main.views.count", "recipes.kd.loss"],
)  # fmt: skip
def test_a_missing_key_is_named(load, key):
    with pytest.raises(ConfigError, match=rf"params.yaml: {key} is missing; add it"):
        load({key: ...})


# Types


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data", "fashion-mnist-10k"),
        ("data", None),
        ("data.seed", "first"),
        ("data.seed", 1.5),
        ("data.channels", 2),
        ("data.source", ["a"]),
        ("training.epochs", "many"),
        ("training.epochs", [6]),
        ("training.optimizer", "adam"),
        ("training.views.flip", "sometimes"),
        ("training.views.pad_crop", 4),
        ("students.small", "resnet18"),
        ("students.small.learning_rate", "fast"),
        ("students.small.stem_stride", 3),
        ("students.small.options", [1]),
        ("dumps.main.precision", "fp16"),
        ("dumps.main.views.count", None),
        ("dumps.main.views.random_resized_crop.scale", 0.5),
        ("recipes.kd", "kd"),
        ("sweep.seeds", 3),
        ("sweep.students", "small"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_what_was_found(load, key, value):
    with pytest.raises(ConfigError, match=rf"params.yaml: {key}(\.\w+)* is ") as caught:
        load({key: value})
    assert "\n" not in str(caught.value)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data", None, "expected keys and values; add its entries, or remove it"),
        ("teachers.big", None, "expected keys and values; add its entries, or remove it"),
        ("training.views", None, "expected keys and values; add its entries, or remove it"),
        ("students.small.options", [1], "expected keys and values; correct it"),
        ("sweep.seeds", 3, "expected a list; correct it"),
    ],
)
def test_a_value_of_the_wrong_shape_is_told_in_the_words_of_yaml(load, key, value, message):
    with pytest.raises(ConfigError, match=rf"params.yaml: {key} is .*; {message}$"):
        load({key: value})


@pytest.mark.parametrize("group", ["students.small", "teachers.big"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (datetime.date(2024, 1, 1), r"options.x is datetime.date\(2024, 1, 1\); expected .*in quotes"),
        ({"a": [1, float("nan")]}, r"options.x.a.1 is nan; expected finite numbers"),
        (float("inf"), r"options.x is inf; expected finite numbers"),
        ({1, 2}, r"options.x is \{1, 2\}; expected"),
        (b"a", r"options.x is b'a'; expected"),
        ({datetime.date(2024, 1, 1): 3}, r"options.x has the key datetime.date.*put it in quotes"),
    ],
)
def test_an_option_that_json_cannot_hold_is_refused_before_training(load, group, value, message):
    with pytest.raises(ConfigError, match=message):
        load({f"{group}.options": {"x": value}})


def test_an_option_that_holds_itself_is_refused(tmp_path):
    text = "students: {small: {model: 'own:net', options: {x: &x {y: *x}}}}"
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"options.x.y.y.* is nested too deeply"):
        load_params(tmp_path / "params.yaml")


def test_a_section_with_nothing_below_it_is_its_defaults(tmp_path):
    (tmp_path / "params.yaml").write_text("training:\nsweep: # none yet\n")
    assert load_params(tmp_path / "params.yaml") == Params()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("training.epochs", True),
        ("data.seed", False),
        ("students.small.learning_rate", True),
        ("dumps.main.views.count", True),
        ("dumps.main.views.random_resized_crop.scale", [True, 1]),
        ("sweep.seeds", [0, True]),
        ("teachers.big.class_map", {"a": True}),
    ],
)
def test_true_and_false_are_no_numbers(load, key, value):
    with pytest.raises(ConfigError, match=rf"params.yaml: {key}(\.a)? is (true|false); expected a number"):
        load({key: value})


def test_true_and_false_stay_where_they_are_expected(load):
    params = load({"training.compile": True, "teachers.big.options": {"deep": [True, {"x": False}]}})
    assert params.training.compile
    assert params.teacher("big").options == {"deep": [True, {"x": False}]}


# Ranges


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data.image_size", 4, r"data: image_size is 4; expected 8 to 1024 pixels"),
        ("data.validation", 1, r"data: validation is 1.*; expected at least 0 and below 1"),
        ("data.labels_per_class", 0, r"data: labels_per_class is 0; expected at least 1, or null for all"),
        ("training.epochs", 0, r"training: epochs is 0; expected at least 1"),
        ("training.views.pad_crop.padding", 99, r"pad_crop.padding is 99; expected 1 to 64"),
        ("students.small.learning_rate", -1, r"students.small: learning_rate is -1"),
        ("students.other.warmup_epochs", 5, r"students.other: warmup_epochs is 5.*to epochs \(3\)"),
        ("teachers.big.batch_size", 1, r"teachers.big: batch_size is 1; expected at least 2"),
        ("dumps.main.views.count", 0, r"dumps.main.views: count is 0; expected 1 to 100,000"),
        ("dumps.main.views.seed", -1, r"dumps.main.views: views.seed is -1"),
        ("dumps.main.views.random_resized_crop.scale", [0, 1], r"scale is \[0.0, 1.0\]"),
        ("dumps.main.views.pad_crop", {}, r"both pad_crop and random_resized_crop"),
        ("dumps.main.batch_size", 0, r"dumps.main: batch_size is 0; expected at least 1"),
        ("dumps.main.shard_rows", 0, r"dumps.main: shard_rows is 0; expected at least 1"),
        ("recipes.kd.temperature", 0, r"recipes.kd: .*temperature is 0; expected .*more than 0"),
        ("recipes.kd.temperature", {"from": 8}, r"recipes.kd: .* is {'from': 8}; expected a number"),
        ("recipes.kd.temperature", {"warmup": 8, "epochs": 2}, r"recipes.kd: .*which starts at 0"),
        ("recipes.kd.loss", "kdd", r"recipes.kd: loss is 'kdd'.*did you mean 'kd'"),
    ],
)
def test_a_value_out_of_range_is_named_with_what_is_expected(load, key, value, message):
    with pytest.raises(ConfigError, match=rf"params.yaml: .*{message}"):
        load({key: value})


def test_a_loss_of_features_is_refused_for_a_dump_of_logits(load):
    with pytest.raises(
        ConfigError, match=r"loss 'crd' needs teacher features, but dump main has codec affine8"
    ):
        load({"recipes.kd.loss": "crd"})
    load({"recipes.kd.loss": "crd", "dumps.main.codec": "features"})


@pytest.mark.parametrize(
    ("key", "value"),
    [("data.seed", -1), ("teachers.big.seed", -1), ("sweep.seeds", [0, -1])],
)
def test_a_negative_seed_is_refused(load, key, value):
    with pytest.raises(ConfigError, match=r"params.yaml: .*seed.* is -1; "):
        load({key: value})


# References


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("dumps.main.teacher", "bigg", r"dumps.main.teacher names 'bigg'.*did you mean 'big'"),
        ("sweep.dumps", ["mian"], r"sweep.dumps names 'mian'; expected one of main; did you mean"),
        ("sweep.students", ["smal"], r"sweep.students names 'smal'; .*did you mean 'small'"),
        ("sweep.recipes", ["kdd"], r"sweep.recipes names 'kdd'.*did you mean 'kd'"),
        ("sweep.baselines", ["scrach"], r"sweep.baselines names 'scrach'.*'scratch'"),
    ],
)
def test_a_reference_to_what_is_not_defined_gets_a_suggestion(load, key, value, message):
    with pytest.raises(ConfigError, match=rf"params.yaml: {message}"):
        load({key: value})


def test_a_baseline_among_the_recipes_is_sent_to_the_baselines(load):
    message = r"sweep.recipes lists 'scratch', which needs no dump; move it to sweep.baselines"
    with pytest.raises(ConfigError, match=message):
        load({"sweep.recipes": ["kd", "scratch"]})


def test_a_recipe_among_the_baselines_is_sent_to_the_recipes(load):
    message = r"sweep.baselines lists 'kd', which needs a dump; move it to sweep.recipes"
    with pytest.raises(ConfigError, match=message):
        load({"sweep.baselines": ["kd"]})


@pytest.mark.parametrize(
    ("kind", "name", "suggestion"),
    [("teacher", "bgi", "big"), ("dump", "man", "main"), ("student", "smal", "small"),
     ("recipe", "scratc", "scratch")],
)  # fmt: skip
def test_looking_up_a_name_that_is_not_there_gets_a_suggestion(load, kind, name, suggestion):
    with pytest.raises(ConfigError, match=rf"{kind}s has no entry '{name}'.*did you mean '{suggestion}'"):
        getattr(load(), kind)(name)
