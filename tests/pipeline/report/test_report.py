import base64
import io
import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.core.errors import DataError
from pipeline.evaluation.label_errors import LabelError, LabelErrors
from pipeline.modalities.images.modality import IMAGES
from pipeline.report.figures import Example, Series, curves_svg, make_examples, spread_rows
from pipeline.report.page import headline, kept_figure, lede, metric, points, render_page, scientific, size
from pipeline.report.results import Estimate, Group, Report, compare, dump_figures
from pipeline.report.runs import (
    DETAILS,
    Epoch,
    PlannedRun,
    Run,
    network_of,
    planned_runs,
    read_run,
    read_teacher,
    result_columns,
)
from pipeline.report.tables import DumpGallery, SuspectLabel, class_table
from pipeline.tasks.class_figures import ClassFigures, Confusion
from pipeline.tasks.classes import CLASSES
from pipeline.tasks.next_item import NEXT_ITEM

COLUMNS = result_columns(CLASSES)
SUMMARY = {
    "schema": 1,
    "complete": True,
    "n_samples": 90,
    "n_views": 3,
    "n_classes": 4,
    "codec": "affine8",
    "bytes": 123_456,
    "bytes_per_sample_view": 10.5,
    "shards": {"total": 5, "done": 5},
    "fingerprint": {"dataset": "a", "teacher": "b", "views": "c", "codec": "d"},
    "fidelity": {"kl_t1_mean": 2.5e-5, "kl_t1_p99": 1e-4, "kl_t4_mean": 0.0, "top1_agreement": 0.999},
    "teacher_top1": 0.9321,
}
TEACHERS = {
    "big": {"top1": 0.9322, "top5": 0.99, "nll": 0.2, "ece": 0.01, "parameters": 1234}
    | {"classes": (), "confusions": ()}
}
DUMPS = {"main": dump_figures(SUMMARY, ["big"])}


def make_run(recipe, seed, top1, *, student="small", dump=None):
    taught = dump is not None
    return Run(
        student=student,
        recipe=recipe,
        seed=seed,
        dump=dump,
        figures={
            "top1": top1,
            "top5": 0.99,
            "nll": 0.3,
            "ece": 0.02,
            "agreement": 0.95 if taught else None,
            "kl_to_teacher": 0.08 if taught else None,
        },
        parameters=1000,
        images_per_second=500.5,
        best_epoch=2,
        mended={"temperature": 1.25, "nll_calibrated": 0.28, "ece_calibrated": 0.005},
        macs=40_476_448,
        cpu_latency_ms=1.5,
        history=tuple(Epoch(epoch=e, loss=1 / e + seed, validation=0.5 + e / 100) for e in (1, 2)),
    )


def make_runs(scratch, kd, **options):
    baselines = [make_run("scratch", seed, top1, **options) for seed, top1 in enumerate(scratch)]
    return baselines + [make_run("kd", seed, top1, dump="main", **options) for seed, top1 in enumerate(kd)]


def make_report(*runs):
    return Report.of(runs, TEACHERS, DUMPS, CLASSES)


def verdict_of(*runs):
    (verdict,) = make_report(*runs).students[0].verdicts
    return verdict


def write_run(folder: Path, **changes):
    folder.mkdir(exist_ok=True)
    metrics = {
        **make_run("kd", 0, 0.9, dump="main").row(),
        "validation_top1": 0.9,
        "seconds": 1.0,
        **changes,
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "history.csv").write_text("epoch,view,loss,validation_top1\n1,0,0.7,0.8\n2,1,0.5,\n")
    return metrics


PLANNED = PlannedRun(student="small", recipe="kd", seed=0, dump="main")


def test_a_sweep_is_every_combination_once_baselines_first():
    plans = planned_runs(
        students=["a", "b"], baselines=["scratch"], dumps=["x", "y"], recipes=["kd"], seeds=[0, 1, 1]
    )
    assert [p.command.removeprefix("pipeline train-student ") for p in plans[:6]] == [
        "a scratch 0",
        "a scratch 1",
        "a kd 0 --dump x",
        "a kd 1 --dump x",
        "a kd 0 --dump y",
        "a kd 1 --dump y",
    ]
    assert len(plans) == 12


def test_a_run_is_read_whole(tmp_path):
    metrics = write_run(tmp_path)
    run = read_run(tmp_path, PLANNED, CLASSES)
    assert run.row() == {name: metrics[name] for name in COLUMNS}
    assert run.history == (
        Epoch(epoch=1, loss=0.7, validation=0.8),
        Epoch(epoch=2, loss=0.5, validation=None),
    )


@pytest.mark.parametrize("name", ["metrics.json", "history.csv"])
def test_a_missing_file_is_named_with_the_command_that_makes_it(tmp_path, name):
    write_run(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DataError) as error:
        read_run(tmp_path, PLANNED, CLASSES)
    assert str(tmp_path / name) in str(error.value)
    assert "pipeline train-student small kd 0 --dump main" in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("metrics.json", "{", "not the metrics of a run"),
        ("metrics.json", "[]", "contains a list"),
        ("metrics.json", '{"student": "small"}', "lacks recipe"),
        ("history.csv", "epoch,view\n1,0\n", "not a training history"),
        ("history.csv", "epoch,loss,validation_top1\n1,low,\n", "not a training history"),
    ],
)
def test_a_broken_file_is_refused(tmp_path, name, text, complaint):
    write_run(tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=complaint):
        read_run(tmp_path, PLANNED, CLASSES)


def test_metrics_of_another_run_are_refused(tmp_path):
    write_run(tmp_path, seed=7)
    with pytest.raises(DataError, match="seed is 7, expected 0"):
        read_run(tmp_path, PLANNED, CLASSES)


def test_a_run_of_an_older_version_lacks_what_came_later(tmp_path):
    metrics = write_run(tmp_path)
    for name in ("temperature", "macs", "nll_calibrated", "ece_calibrated", "cpu_latency_ms"):
        del metrics[name]
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    run = read_run(tmp_path, PLANNED, CLASSES)
    assert (set(run.mended.values()), run.macs, run.classes, run.main) == ({None}, None, (), 0.9)


def test_classes_that_are_none_are_refused(tmp_path):
    write_run(tmp_path, classes=[{"name": "cat"}])
    with pytest.raises(DataError, match=r"invalid per-class figures.*train-student small kd 0"):
        read_run(tmp_path, PLANNED, CLASSES)


def test_a_teachers_classes_are_read_and_stay_out_of_the_results(tmp_path):
    classes, confusions = figures_of(0.5, 0.25)
    written = {"top1": 0.9, "classes": [asdict(c) for c in classes]}
    (tmp_path / "metrics.json").write_text(json.dumps(written | {"confusions": [asdict(confusions[0])]}))
    teacher = read_teacher(tmp_path, "big")
    assert (teacher["classes"], teacher["confusions"]) == (classes, confusions)
    report = Report.of(make_runs([0.9], []), {"big": teacher}, DUMPS, CLASSES)
    assert report.to_dict()["teachers"] == {"big": {"top1": 0.9}}


def figures_of(cat, dog):
    """Classes with these recalls, and one confusion."""
    recalls = {"cat": cat, "dog": dog}
    classes = tuple(
        ClassFigures(name=name, support=4, recall=recall, precision=None)
        for name, recall in recalls.items()
    )
    return classes, (Confusion(label="cat", predicted="dog", count=3, share=0.75),)


def with_classes(run, cat, dog):
    classes, confusions = figures_of(cat, dog)
    return replace(run, classes=classes, confusions=confusions)


def make_class_report():
    scratch, other, kd = make_runs([0.88, 0.89], [0.90])
    classes, confusions = figures_of(0.9, 0.95)
    teacher = TEACHERS["big"] | {"classes": classes, "confusions": confusions}
    runs = [with_classes(scratch, 0.5, 0.75), with_classes(other, 0.25, 1.0), with_classes(kd, 0.5, 1.0)]
    return Report.of(runs, {"big": teacher}, DUMPS, CLASSES)


def test_classes_are_means_over_seeds_beside_the_teachers():
    report = make_class_report()
    table = class_table(report, report.students[0])
    assert [column.name for column in table.columns] == ["big", "scratch", "kd"]
    assert [column.seed for column in table.columns] == [None, 0, 0]
    assert [column.recall(0) for column in table.columns] == [0.9, 0.375, 0.5]
    assert [column.precision(0) for column in table.columns] == [None] * 3
    assert [row.name for row in table.rows] == ["cat", "dog"]


def test_of_many_classes_the_hardest_are_shown():
    report = make_class_report()
    table = class_table(report, report.students[0], shown=1)
    assert [(row.name, row.place, row.support) for row in table.rows] == [("cat", 0, 4)]
    assert table.n_classes == 2


def test_groups_without_classes_have_no_column():
    report = make_report(*make_runs([0.88], [0.9]))
    assert class_table(report, report.students[0]) is None
    known = Report.of([with_classes(r, 1, 1) for r in make_runs([0.88], [])], TEACHERS, DUMPS, CLASSES)
    assert [c.name for c in class_table(known, known.students[0]).columns] == ["scratch"]


def test_standard_errors():
    three = Estimate.of([1.0, 2.0, 3.0])
    assert (three.mean, three.error, three.count) == (2, pytest.approx(3**-0.5), 3)
    assert Estimate.of([0.9]) == Estimate(mean=0.9, error=None, count=1)
    assert str(Estimate.of([0.9])) == "0.9000 (n = 1)"


def test_differences_are_paired_by_seed_and_not_by_position():
    scratch = Group(
        student="s", recipe="scratch", dump=None, runs=(make_run("a", 0, 0.5), make_run("a", 1, 0.7))
    )
    kd = Group(student="s", recipe="kd", dump="d", runs=(make_run("b", 1, 0.8), make_run("b", 0, 0.6)))
    found = compare(kd, scratch)
    assert found.paired
    assert found.difference.mean == pytest.approx(0.1)
    assert found.difference.error == pytest.approx(0, abs=1e-9)


def test_differences_of_other_seeds_add_both_errors():
    scratch = Group(
        student="s", recipe="scratch", dump=None, runs=(make_run("a", 0, 0.5), make_run("a", 1, 0.7))
    )
    kd = Group(student="s", recipe="kd", dump="d", runs=(make_run("b", 2, 0.8), make_run("b", 3, 0.6)))
    found = compare(kd, scratch)
    assert not found.paired
    assert found.difference.mean == pytest.approx(0.1)
    assert found.difference.error == pytest.approx(0.1 * 2**0.5)


@pytest.mark.parametrize(
    ("scratch", "kd", "outcome"),
    [
        ([0.880, 0.882, 0.881], [0.890, 0.893, 0.891], "better"),
        ([0.880, 0.882, 0.881], [0.871, 0.872, 0.870], "worse"),
        ([0.880, 0.882, 0.881], [0.881, 0.881, 0.882], "not_shown"),
        ([0.88], [0.95], "one_seed"),
        ([None, None], [None, None], "unlabelled"),
        ([], [0.9, 0.9], "no_baseline"),
    ],
)
def test_verdicts(scratch, kd, outcome):
    assert verdict_of(*make_runs(scratch, kd)).outcome == outcome


def test_distillation_must_beat_every_baseline():
    smoothed = [make_run("label_smoothing", seed, top1) for seed, top1 in enumerate([0.890, 0.894, 0.889])]
    runs = make_runs([0.880, 0.882, 0.881], [0.890, 0.893, 0.891])
    assert verdict_of(*runs).outcome == "better"
    assert verdict_of(*runs, *smoothed).outcome == "not_shown"


def test_exactly_two_standard_errors_are_not_more_than_two():
    # Differences 1 and 3: mean 2, standard error 1.
    assert verdict_of(*make_runs([0.0, 0.0], [1.0, 3.0])).outcome == "not_shown"


def test_results_have_the_agreed_form():
    report = make_report(*make_runs([0.88, 0.89], [0.90, 0.91]))
    results = json.loads(json.dumps(report.to_dict()))
    assert [tuple(row) for row in results["students"]] == [COLUMNS] * 4
    assert [(row["recipe"], row["seed"]) for row in results["students"]] == [
        ("scratch", 0),
        ("scratch", 1),
        ("kd", 0),
        ("kd", 1),
    ]
    assert " ".join(COLUMNS) == (
        "student recipe seed dump top1 top5 nll ece agreement kl_to_teacher parameters images_per_second "
        "best_epoch temperature nll_calibrated ece_calibrated macs cpu_latency_ms"
    )
    assert results["teachers"]["big"] == {k: v for k, v in TEACHERS["big"].items() if k not in DETAILS}
    assert (
        results["dumps"]["main"].items()
        >= {"bytes": 123_456, "kl_t1_mean": 2.5e-5, "teacher_top1": 0.9321}.items()
    )
    assert report.to_csv().splitlines()[1] == (
        "small,scratch,0,,0.88,0.99,0.3,0.02,,,1000,500.5,2,1.25,0.28,0.005,40476448,1.5"
    )


def test_a_curve_has_the_epochs_that_every_seed_has():
    runs = make_runs([0.88, 0.89], [])
    longer = Epoch(epoch=3, loss=0.1, validation=None)
    group = Group(
        student="s",
        recipe="scratch",
        dump=None,
        runs=(runs[0], make_run("scratch", 1, 0.9), _with(runs[0], longer)),
    )
    assert [epoch for epoch, _ in group.curve("loss")] == [1, 2]
    assert group.curve("loss")[0][1].mean == pytest.approx((1 + 2 + 1) / 3)


def _with(run, epoch):
    return replace(run, history=(*run.history, epoch))


def test_curves_follow_the_page_and_are_the_same_bytes_again():
    (group,) = make_report(*make_runs([0.88, 0.89], [])).groups
    curves = [(Series(0), group.curve("loss")), (Series(9), group.curve("validation"))]
    svg = curves_svg(curves, label='a "quoted" <name>')
    assert svg == curves_svg(curves, label='a "quoted" <name>')
    assert not re.search("#[0-9a-f]{6}|<script|<style|<g id|http|font-family", svg)
    assert "var(--series-0)" in svg
    assert "var(--series-1)" in svg
    assert "stroke-dasharray" in svg
    assert 'aria-label="a &quot;quoted&quot; &lt;name&gt;"' in svg


def test_a_curve_of_one_epoch_can_be_seen():
    svg = curves_svg([(Series(2), ((1, Estimate.of([0.5])),))], label="")
    assert re.search(r"<use [^>]*fill: var\(--series-2\)", svg)


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_pixel_for_pixel(channels):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, channels), np.uint8)
    content = base64.b64decode(IMAGES.picture(pixels).uri.removeprefix("data:image/png;base64,"))
    decoded = np.asarray(Image.open(io.BytesIO(content))).reshape(pixels.shape)
    assert (decoded == pixels).all()


@pytest.mark.parametrize(
    ("labels", "count", "rows"),
    [
        ([0, 0, 1, 1, 2, 2, 3, 3, 4, 4], 3, [0, 4, 8]),
        ([1, 1, 1, 0, 0], 4, [0, 1, 3, 4]),
        ([-1, 2, -1, 3], 2, [1, 3]),
        ([-1, -1, -1], 2, [0, 1]),
        ([5], 6, [0]),
    ],
)
def test_examples_are_spread_over_the_classes(labels, count, rows):
    assert spread_rows(np.array(labels), count).tolist() == rows


def make_two_examples() -> list[Example]:
    return make_examples(
        np.array([1, -1]),
        classes=("cat", "<dog>", "bird", "fish"),
        pictures=[[IMAGES.picture(np.zeros((8, 8, 1), np.uint8))] * 2] * 3,
        logits=[np.array([[0.0, 4.0, 2.0, -8.0], [1.0, 0.0, 0.0, 0.0]], np.float32)] * 3,
        mixtures=[None, None, (np.array([2, 3]), np.array([0.6, 1.0]))],
    )


def test_a_mixed_picture_says_of_what_it_is():
    labelled, unlabelled = make_two_examples()
    assert [view.mixed for view in labelled.views] == [None, None, "60 % <dog>, 40 % bird"]
    assert [soft.correct for soft in labelled.views[2].labels] == [True, True, False]
    assert unlabelled.views[2].mixed is None


def test_soft_labels_are_the_teachers_likeliest_classes():
    labelled, unlabelled = make_two_examples()
    labels = labelled.views[0].labels
    assert [soft.name for soft in labels] == ["<dog>", "bird", "cat"]
    assert [soft.correct for soft in labels] == [True, False, False]
    assert labels[0].share == pytest.approx(1 / (1 + np.exp(-2) + np.exp(-4) + np.exp(-12)))
    assert labels[0].softened == pytest.approx(1 / (1 + np.exp(-0.5) + np.exp(-1) + np.exp(-3)))
    assert unlabelled.label is None
    assert [soft.name for soft in unlabelled.views[0].labels] == ["cat", "<dog>", "bird"]


def page_of(*runs, report=None):
    gallery = DumpGallery(examples=tuple(make_two_examples()))
    return render_page(report or make_report(*runs), {"main": gallery}, test_images=10_000)


def test_the_page_stands_alone_and_is_the_same_bytes_again():
    runs = make_runs([0.880, 0.882, 0.881], [0.890, 0.893, 0.891])
    page = page_of(*runs)
    assert page == page_of(*runs)
    assert not re.search(r"<script|<link|@import|https?://|src=\"(?!data:)|url\((?!#)", page)
    assert page.count("<img") == 6
    assert page.count('role="img"') == 2
    names = re.findall(r' id="([^"]+)"', page)
    assert len(names) == len(set(names)) > 0
    assert "&lt;dog&gt;" in page
    assert "<dog>" not in page


def test_the_page_shows_means_errors_and_differences():
    page = page_of(*make_runs([0.880, 0.882, 0.881], [0.890, 0.893, 0.891]))
    assert '88.10 <span class="error">± 0.06</span>' in page
    assert "+1.03 ± 0.03" in page.replace("\N{NO-BREAK SPACE}", " ")
    assert "123.5 kB" in page
    assert "2.5 × 10<sup>−5</sup>" in page
    assert "5 of 5, complete" in page
    assert "93.22" in page
    assert "93.21" in page


def text_of(page):
    return " ".join(re.sub(r"<[^>]*>", " ", page).split())


def test_the_page_shows_confidence_cost_and_classes():
    report = make_class_report()
    text = text_of(page_of(report=report))
    assert "scratch 99.00 0.300 2.00 1.25 0.280 0.50 1,000 40.5 M 1.50 500" in text
    assert "cat 4 90.00 37.50 50.00" in text
    assert "1 cat → dog 75.00 % cat → dog 75.00 %" in text
    assert "hardest" not in text


def test_the_page_shows_labels_that_the_teacher_contradicts():
    error = LabelError(
        split="test",
        row=3,
        sample="test/<3>",
        label="cat",
        label_probability=0.001,
        predicted="<dog>",
        probability=0.98,
    )
    picture = IMAGES.picture(np.zeros((8, 8, 1), np.uint8))
    gallery = DumpGallery(
        label_errors=LabelErrors(checked=1000, doubted=7, worst=(error,), views=3, stored_views=3),
        suspects=(SuspectLabel(found=error, picture=picture),),
    )
    page = render_page(make_report(*make_runs([0.9], [0.9])), {"main": gallery}, test_images=1)
    assert "7 of 1,000 labelled samples" in page
    assert "cat 0.10 % &lt;dog&gt; 98.00 % test/&lt;3&gt;" in text_of(page)
    assert page.count("<img") == 1
    assert "contradicts" not in page_of(*make_runs([0.9], [0.9]))


@pytest.mark.parametrize(
    ("scratch", "kd", "words"),
    [
        ([0.880, 0.882], [0.890, 0.893], "kd beats scratch by more than two standard errors"),
        ([0.880, 0.882], [0.882, 0.880], "kd does not beat scratch by two standard errors"),
        ([0.880, 0.882], [0.860, 0.861], "kd is worse than scratch by more than two standard errors"),
        ([0.880], [0.990], "One seed is not enough to judge"),
        ([None], [None], "the test samples have no labels"),
        ([], [0.9, 0.9], "kd has no baseline"),
        ([0.9, 0.9], [], "Nothing was distilled"),
    ],
)
def test_the_page_is_honest(scratch, kd, words):
    page = page_of(*make_runs(scratch, kd))
    assert words in page
    assert page.count("more than two standard errors of the difference:") == words.count("more than two")


def test_the_headline_says_what_teaching_gives_each_student():
    runs = make_runs([0.88, 0.89], [0.9, 0.91]) + make_runs([0.8], [0.79], student="tiny")
    words = "Top-1, %, taught by big: small 90.50 by kd, alone 88.50; tiny 79.00 by kd, alone 80.00"
    assert headline(make_report(*runs)).replace("\N{NO-BREAK SPACE}", " ") == words
    alone = make_report(*make_runs([0.88], []))
    assert headline(alone) == "small, trained alone and taught by big"
    many = [run for name in "abcd" for run in make_runs([0.8], [0.9], student=name)]
    assert headline(make_report(*many)) == "4 students, trained alone and taught by big"


def test_a_teacher_of_no_other_name_is_the_teacher():
    report = Report.of(make_runs([0.88], []), {"teacher": TEACHERS["big"]}, DUMPS, CLASSES)
    assert headline(report) == "small, trained alone and taught by the teacher"


@pytest.mark.parametrize(("test_images", "told"), [(13, "One test sample is 7.7 points"), (1_000, None)])
def test_few_test_images_are_told(test_images, told):
    text = lede(make_report(*make_runs([0.88], [0.9])), test_images).replace("\N{NO-BREAK SPACE}", " ")
    assert f"{test_images:,} un-augmented test samples" in text
    assert text.endswith(f"{told}; more seeds do not change that." if told else "used for any choice.")


def test_a_page_without_a_teacher():
    report = Report.of(make_runs([0.9, 0.8], []), {}, {}, CLASSES)
    page = render_page(report, {}, test_images=1)
    assert "small, without a teacher" in page
    assert "cache" not in page


def test_recipes_of_several_dumps_are_told_apart():
    runs = [make_run("kd", 0, 0.9, dump=dump) for dump in ("main", "wide")]
    report = Report.of(runs, TEACHERS, {**DUMPS, "wide": DUMPS["main"]}, CLASSES)
    assert report.labels == ("kd (main)", "kd (wide)")
    assert make_report(runs[0]).labels == ("kd",)


def test_numbers():
    assert [metric(n) for n in (7, 40_476_448, 1_814_073_344, 999_999_999, 2e15, None)] == [
        *("7", "40.5 M", "1.81 G", "1 G", "2e+03 T", "–"),
    ]
    assert points(Estimate(mean=-0.00001, error=None, count=1)) == "+0.00"
    assert points(Estimate(mean=-0.0123, error=None, count=1)) == "−1.23"
    assert (size(999), size(1_260_000), size(5.4e12)) == ("999 bytes", "1.3 MB", "5.4 TB")
    assert scientific(0.0) == "0"


def test_a_page_of_five_classes_or_fewer_shows_no_top5():
    runs = [replace(run, figures={**run.figures, "top5": None}) for run in make_runs([0.9], [0.9])]
    teachers = {"big": TEACHERS["big"] | {"top5": None}}
    assert "Top-5" not in render_page(Report.of(runs, teachers, DUMPS, CLASSES), {}, test_images=1)
    assert "Top-5" in render_page(make_report(*make_runs([0.9], [0.9])), {}, test_images=1)


def test_top5_of_few_classes_that_an_older_version_wrote_is_left_out(tmp_path):
    planned = PlannedRun(student="small", recipe="kd", seed=0, dump="main")
    for count, expected in ((2, None), (5, None), (6, 1.0)):
        classes = [asdict(figures_of(0.5, 0.5)[0][0]) for _ in range(count)]
        write_run(tmp_path, top5=1.0, classes=classes)
        assert read_run(tmp_path, planned, CLASSES).figures["top5"] == expected
        assert read_teacher(tmp_path, "big")["top5"] == expected


def test_duplicates_in_the_data_are_on_the_page():
    report = make_report(*make_runs([0.9], [0.9]))
    words = "2 of 3 test samples are also in train (test/<a> = train/b)"
    page = render_page(report, {}, test_images=3, leaks=words)
    assert "Duplicates in the data: 2 of 3 test samples are also in train (test/&lt;a&gt; = " in page
    assert "Duplicates" not in render_page(report, {}, test_images=3)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("resnet18", "resnet18"),
        ("timm:hf_hub:org/net", "timm:hf_hub:org/net"),
        ("hf:/home/me/bert", "hf:bert"),
        ("mine.nets:small", "mine.nets:small"),
        (None, None),
        ("/home/me/teacher.pt", "teacher.pt"),
        ("models/teacher.pt", "teacher.pt"),
    ],
)
def test_a_network_is_told_without_places_of_a_machine(said, shown):
    made = json.dumps({"students.small": {"model": said, "weights": said, "fine_tune": False}})
    assert network_of(made, "students.small") == {"model": shown, "weights": shown, "fine_tune": False}
    assert network_of(made, "students.other") == network_of(None, "students.small") == {}


def test_a_store_and_its_teacher_are_compared_by_one_figure():
    assert kept_figure(CLASSES) == "top1"
    assert kept_figure(NEXT_ITEM) == "hr10"


def test_a_weak_teacher_is_told_at_the_top():
    report = make_report(*make_runs([0.9], [0.9]))
    page = render_page(report, {}, test_images=3, weak=["teacher big: top-1 0.100 on the test samples"])
    assert page.index("teacher big: top-1 0.100") < page.index("<section>")
