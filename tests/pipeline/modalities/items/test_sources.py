"""Logs become histories; what is left out is told, what is broken is refused in one line."""

from __future__ import annotations

import random

import numpy as np
import pytest

from pipeline.core.errors import ConfigError, DataError
from pipeline.modalities.items.options import ItemsOptions
from pipeline.modalities.items.sources import open_source
from pipeline.modalities.items.sources.builtin import load_dependencies
from tests.pipeline.modalities.items.logs import rows, write_csv, write_inter

ALL = {"min_user_interactions": 3, "min_item_interactions": 1}


def named(source, samples):
    """Return name -> (names of the history's items, name of the label)."""
    return {
        sample.name: ([source.classes[item] for item in sample.load()], source.classes[sample.label])
        for sample in samples
    }


def test_the_last_items_are_held_out(tmp_path):
    log = [("ann", item, time) for time, item in enumerate("abcde")] + [
        ("bob", item, 9 - time) for time, item in enumerate("abc")
    ]
    path = write_inter(tmp_path / "x.inter", log)
    source = open_source(f"inter:{path}", ItemsOptions(**ALL))
    assert source.classes == tuple("abcde")
    assert named(source, source.train) == {"ann/1": (["a"], "b"), "ann/2": (["a", "b"], "c")}
    assert named(source, source.validation) == {"ann/3": (list("abc"), "d"), "bob/1": (["c"], "b")}
    assert named(source, source.test) == {"ann/4": (list("abcd"), "e"), "bob/2": (["c", "b"], "a")}


def test_samples_and_lengths_are_bounded(tmp_path):
    path = write_csv(tmp_path / "log.csv", rows())
    whole = open_source(f"csv:{path}", ItemsOptions(**ALL))
    some = open_source(f"csv:{path}", ItemsOptions(**ALL, samples_per_user=2, max_history=3))
    assert (len(whole.train), len(some.train)) == (60 * 9, 60 * 2)
    wanted, found = named(whole, whole.train), named(some, some.train)
    assert all(found[name] == (wanted[name][0][-3:], wanted[name][1]) for name in found)
    assert {name.split("/")[1] for name in found} == {"8", "9"}


def test_a_folder_with_one_log_is_enough(tmp_path):
    write_inter(tmp_path / "ml/ml.inter", rows())
    (tmp_path / "ml/ml.item").write_text("item_id:token\n")
    source = open_source(f"inter:{tmp_path}/ml", ItemsOptions(**ALL))
    assert source.left_out.unused == ("ml.item",)
    write_inter(tmp_path / "ml/other.inter", rows())
    with pytest.raises(DataError, match=r"has 2 \.inter files \(ml.inter, other.inter\); expected one"):
        open_source(f"inter:{tmp_path}/ml", ItemsOptions())


def test_users_items_and_duplicates_are_counted(tmp_path):
    log = rows() + rows()[:5] + [("once", "i0", 1), ("u0", "rare", 2)]
    source = open_source(f"csv:{write_csv(tmp_path / 'log.csv', log)}", ItemsOptions())
    assert source.left_out.dropped == {
        "duplicate interactions": 5,
        "users with fewer than 5 interactions": 1,
        "items with fewer than 5 interactions": 1,
    }
    assert "items with fewer than 5 interactions: 1" in str(source.left_out)
    assert "rare" not in source.classes


def test_without_times_the_order_is_drawn_by_name(tmp_path, capsys):
    log = [(user, item) for user, item, _ in rows()]
    header = "user_id,item_id\n"
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    first.write_text(header + "".join(f"{u},{i}\n" for u, i in log))
    random.Random(0).shuffle(log)
    second.write_text(header + "".join(f"{u},{i}\n" for u, i in log))
    options = ItemsOptions(**ALL)
    sources = [open_source(f"csv:{path}", options) for path in (first, second)]
    assert "no column of times, so each user's items stand in a random order" in capsys.readouterr().err
    one, two = (named(source, [*source.train, *source.test]) for source in sources)
    assert one == two
    # Not the order of the file: of 60 users, few have their items in it by chance.
    assert sum(history == sorted(history) for history, _ in one.values()) < len(one) / 2


def test_equal_times_keep_the_order_of_the_log(tmp_path):
    log = [("ann", item, 7) for item in "dbcae"]
    source = open_source(f"csv:{write_csv(tmp_path / 'x.csv', log)}", ItemsOptions(**ALL))
    assert named(source, source.test)["ann/4"] == (list("dbca"), "e")


def test_times_of_nanoseconds_are_exact(tmp_path):
    base = 1_700_000_000_000_000_000
    log = [("ann", item, base + number) for number, item in enumerate("abcd")][::-1]
    source = open_source(f"csv:{write_csv(tmp_path / 'x.csv', log)}", ItemsOptions(**ALL))
    assert named(source, source.test)["ann/3"] == (list("abc"), "d")


def test_a_test_item_that_never_trains_is_told(tmp_path, capsys):
    log = rows() + [("late", f"i{n}", n) for n in range(4)] + [("late", "new", 99)]
    open_source(f"csv:{write_csv(tmp_path / 'x.csv', log)}", ItemsOptions(**ALL))
    assert "the items of 1 of 61 test histories are no training label" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user_id\titem_id\nu\ti\n", "the header has 'user_id'; expected NAME:TYPE"),
        ("user_id:token\tthing:token\nu\ti\n", "no column 'item_id' of items; found 'user_id', 'thing'"),
        ("user_id:token\titem_id_list:token_seq\titem_id:token\nu\ta b\tc\n", "has sequences of items"),
        ("user_id:token\titem_id:token\n", "no rows; expected one per interaction"),
        ("user_id:token\titem_id:token\nu\n", r"x.inter:2: 1 field; expected 2"),
        ("user_id:token\titem_id:token\nu\t \nu\t\n", r"x.inter:2: no item in it \(2 such rows\)"),
        ("user_id:token\titem_id:token\ttime:float\nu\ti\t3\nu\tj\tnoon\n", "x.inter:3: time 'noon' is no"),
        (
            "user_id:token\titem_id:token\ttime:float\nu\ti\tNaN\n",
            "x.inter:2: time 'NaN' is no finite number",
        ),
        ("user_id:token\titem_id:token\nu\ti\n", "no user with 5 interactions with items of 5"),
    ],
)
def test_broken_logs_are_one_clear_line(tmp_path, text, message):
    path = tmp_path / "x.inter"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        open_source(f"inter:{path}", ItemsOptions())
    assert "\n" not in str(caught.value)


def test_two_held_out_items_leave_none_to_train(tmp_path):
    log = [(user, item, time) for user in "ab" for time, item in enumerate("xyz")]
    with pytest.raises(DataError, match="no user has four interactions"):
        open_source(f"csv:{write_csv(tmp_path / 'x.csv', log)}", ItemsOptions(**ALL))


def test_wrong_names_and_options_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="expected debian-dependencies, inter:PATH, csv:PATH or your own"):
        open_source("movielens", ItemsOptions())
    with pytest.raises(DataError, match="no such file"):
        open_source("csv:none.csv", ItemsOptions())
    path = write_csv(tmp_path / "x.csv", rows())
    with pytest.raises(
        DataError, match=r"no column 'usr' of users; .* set data.user .*did you mean 'user'"
    ):
        open_source(f"csv:{path}", ItemsOptions(user="usr"))
    with pytest.raises(DataError, match="no column 'when' of timestamps"):
        open_source(f"csv:{path}", ItemsOptions(timestamp="when"))
    for wrong in ({"min_user_interactions": 2}, {"samples_per_user": 0}, {"max_length": 1}):
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))} is "):
            ItemsOptions(**wrong)
    with pytest.raises(ConfigError, match="expected a different one for each key"):
        ItemsOptions(user="a", item="a")


def test_the_built_in_log_is_dense():
    found = load_dependencies()
    counts = np.unique([item for items in found.values() for item in items], return_counts=True)[1]
    assert (len(found), len(counts), int(counts.sum())) == (9_273, 3_127, 99_384)
    assert min(map(len, found.values())) == counts.min() == 5
    assert "libc6" in found["iptables"]
