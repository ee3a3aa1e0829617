"""The modality of texts: sources, views, preprocessing and models, as the other folders ask for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.arrays import spread
from pipeline.core.errors import DataError
from pipeline.core.hashing import content_digest, sample_key
from pipeline.modalities.modality import Modality, Recognised
from pipeline.modalities.picture import Picture
from pipeline.modalities.text.form import (
    TEXT,
    TextForm,
    TextIntake,
    TextSource,
    described_words,
    require_text,
)
from pipeline.modalities.text.models.own import Students
from pipeline.modalities.text.models.transformers import Transformers
from pipeline.modalities.text.options import TextOptions
from pipeline.modalities.text.pictures import picture_of
from pipeline.modalities.text.preprocessing import GivenText, TextPreprocessing
from pipeline.modalities.text.sources import open_source
from pipeline.modalities.text.sources.folder import TEXT_FILES, read_text
from pipeline.modalities.text.sources.recognise import recognise
from pipeline.modalities.text.spec import TextViews
from pipeline.modalities.text.tokenizers import WordList
from pipeline.modalities.text.words import text_of
from pipeline.samples.files import find_files
from pipeline.samples.index import Form
from pipeline.samples.packed import PackedSplit, Split, offsets_of
from pipeline.samples.samples import UNLABELLED, Names


class Text(Modality):
    """UTF-8 bytes of one or two texts per sample."""

    name = "text"
    families = (Students(), Transformers())
    options_type = TextOptions
    views_type = TextViews
    preprocessing_type = GivenText
    refusals = dict.fromkeys(
        ("mixup", "cutmix"), "texts are not mixed, since the average of two is no text"
    )

    def open_source(self, source: str, options: TextOptions) -> TextSource:
        """Find a dataset of texts; see `sources`."""
        return open_source(source, options)

    def recognise(self, path: Path, name: str) -> Recognised | None:
        """Return how to read a table, or class folders of .txt files."""
        return recognise(path, name)

    def intake(self, source: TextSource, folder: Path, options: TextOptions) -> TextIntake:
        """Return the reader of texts for `pipeline prepare`."""
        return TextIntake(options.vocabulary)

    def described(self, plain: Mapping[str, Any]) -> tuple[TextForm, dict[str, Any]]:
        """Return the texts' form, and the frequent words of the training split."""
        return TextForm.parse(plain), {"words": described_words(plain)}

    def views(self, plain: Mapping[str, Any]) -> TextViews:
        """Return the views described by a canonical form."""
        return TextViews.from_canonical(plain)

    def preprocessing(self, plain: Mapping[str, Any]) -> TextPreprocessing:
        """Return the preprocessing described by plain values."""
        return TextPreprocessing.parse(plain)

    def fresh_preprocessing(
        self, samples: Split, known: Mapping[str, Any], *, size: int | None, channels: int | None
    ) -> TextPreprocessing:
        """Return the preprocessing of a model without weights: words of the dataset."""
        words = tuple(known["words"])
        length = size or TextOptions().max_length
        return TextPreprocessing(tokenizer=WordList(words), max_length=length, words=words)

    def open_files(self, folder: Path, preprocessing: TextPreprocessing, count: int) -> Split:
        """Read at most `count` .txt files of a folder, at any depth, evenly spread by name.

        Raises:
            DataError: there is none, or one is not a text.
        """
        names = find_files(folder, ".", TEXT_FILES).names
        if not names:
            raise DataError(f"{folder}: no .txt files; expected some to read; name another folder")
        chosen = [names[row].removeprefix("./") for row in spread(len(names), count).tolist()]
        texts = [read_text(folder / name) for name in chosen]
        for name, text in zip(chosen, texts, strict=True):
            require_text(str(folder / name), text)
        shapes = np.array([[len(text)] for text in texts], np.int32)
        return PackedSplit(
            values=np.concatenate(texts),
            form=TEXT,
            offsets=offsets_of(shapes, TEXT)[:-1],
            shapes=shapes,
            labels=np.full(len(texts), UNLABELLED),
            keys=np.array([sample_key(name) for name in chosen], np.uint64),
            digests=np.array([content_digest(text, UNLABELLED) for text in texts], np.uint64),
            names=Names.of(chosen),
        )

    def picture(
        self,
        shown: NDArray[np.integer[Any]],
        plain: NDArray[np.integer[Any]] | None = None,
        *,
        form: Form | None = None,
    ) -> Picture:
        """Return a text (n,) uint8 as a picture, with the words marked that differ from the plain text."""
        before = None if plain is None else text_of(plain.astype(np.uint8))
        return picture_of(text_of(shown.astype(np.uint8)), before)


TEXTS = Text()
