"""The figures of the documents, written from the files in tests/benchmarks/results/.

    python -m tests.benchmarks.gallery

Rewrites two kinds of marked places in every README; text around them stays as it is:

    <!-- table: NAME -->              a table, or "not run yet" while its results are missing
    | student | top-1 |
    <!-- /table -->

    They reach 64.48 ± 0.14<!-- figure: NAME --> % in fifteen epochs.

`contents.py` has a line for each name: the result files and the function that writes them as Markdown.
The functions are in `accuracy.py`, `size.py`, `speed.py` and `jobs.py`; `claims.py` has the table of claims
with the published number of each. tests/test_gallery.py fails if a document is out of date, if a result
file is shown nowhere, or if a table of figures has no mark.
"""
