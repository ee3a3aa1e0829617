"""Texts: views rendered per second of one core against tokenising every view, and batches by length.

    python -m tests.benchmarks.text_speed [--rounds 15] [--out FILE.json]

The texts are the paragraphs of the built-in Declaration in 20 languages; the tokenizer is a WordPiece with
BERT's parts, trained on them. Needs the extra text. Seconds are of processor time of this process, in one
thread. Both sides make the same token ids (B, 128), which is checked:

    looked up     words drawn and changed as integers, ids of each distinct word looked up; "again" is a
    view's
                  second time, e.g. in a later epoch: then words with typing errors are known, too
    tokenised     the same views written out as strings, and these given to tokenizers.encode_batch_fast
    strings given the strings are there already: tokenising alone

Batches by length: a training step of `bert_tiny` on token ids padded to the maximum, to the longest of a
random batch, and to the longest of a batch of similar lengths, as the loader makes them.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.core.hashing import content_digest, sample_key
from pipeline.loading.feed import Feed, consecutive
from pipeline.loading.loader import Loader
from pipeline.modalities.text.form import TEXT
from pipeline.modalities.text.models.own import BertTiny
from pipeline.modalities.text.preprocessing import TextPreprocessing
from pipeline.modalities.text.rendering import TextRenderer
from pipeline.modalities.text.sources.builtin import languages
from pipeline.modalities.text.spec import (
    Case,
    CharacterNoise,
    Mask,
    RandomCrop,
    RandomDeletion,
    RandomSwap,
    TextViews,
)
from pipeline.modalities.text.tokenizer_files import TokenizerFile
from pipeline.modalities.text.words import MASK, packed, pieces_of
from pipeline.samples.packed import PackedSplit, offsets_of
from pipeline.samples.samples import Names
from stages.runtime import keep_freed_memory
from tests.benchmarks.environment import environment
from tests.benchmarks.timing import spread

LENGTH, BATCH = 128, 128
LANGUAGES = [
    "ces",
    "dan",
    "deu",
    "eng",
    "fin",
    "fra",
    "hun",
    "ind",
    "ita",
    "lit",
    "nld",
    "pol",
    "por",
    "ron",
    "rus",
    "spa",
    "swe",
    "swh",
    "tur",
    "ukr",
]
CPU = torch.device("cpu")
VIEWS = {
    "plain": None,
    "random_deletion": TextViews(random_deletion=RandomDeletion()),
    "random_crop": TextViews(random_crop=RandomCrop()),
    "mask": TextViews(mask=Mask()),
    "character_noise": TextViews(character_noise=CharacterNoise()),
    "EDA: deletion, swap": TextViews(random_deletion=RandomDeletion(), random_swap=RandomSwap()),
    "preset: crop, noise": TextViews(
        random_crop=RandomCrop(scale=(0.7, 1.0)), character_noise=CharacterNoise()
    ),
    "all six": TextViews(
        random_crop=RandomCrop(),
        random_deletion=RandomDeletion(),
        random_swap=RandomSwap(),
        mask=Mask(),
        character_noise=CharacterNoise(),
        case=Case(),
    ),
}


def paragraphs() -> list[str]:
    """Return the paragraphs of the Declaration in some large languages."""
    return [
        text
        for language in languages()
        if language["code"] in LANGUAGES
        for article in language["articles"]
        for text in article
    ]


def as_split(texts: Sequence[str]) -> PackedSplit:
    """Return texts as a split."""
    arrays = [packed(text) for text in texts]
    shapes = np.array([[len(array)] for array in arrays], np.int32)
    names = [f"text/{row}" for row in range(len(arrays))]
    return PackedSplit(
        values=np.concatenate(arrays),
        form=TEXT,
        offsets=offsets_of(shapes, TEXT)[:-1],
        shapes=shapes,
        labels=np.zeros(len(arrays), np.int64),
        keys=np.array([sample_key(name) for name in names], np.uint64),
        digests=np.array([content_digest(array, 0) for array in arrays], np.uint64),
        names=Names.of(names),
    )


def word_piece(texts: Sequence[str], size: int = 30_000) -> TokenizerFile:
    """Return a WordPiece tokenizer with BERT's normaliser, splitter and special tokens, trained on "
    "texts."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=specials, show_progress=False)
    made.train_from_iterator(texts, trainer)
    ends = [(name, made.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return TokenizerFile(made.to_str().encode())


class Tokenised:
    """Views as strings, tokenised each time.

    Args:
        renderer: makes the views' words, and has the tokenizer.
    """

    def __init__(self, renderer: TextRenderer) -> None:
        from tokenizers import Tokenizer

        content = renderer.seen.tokenizer.file().decode()
        self._renderer, self._library = renderer, Tokenizer.from_str(content)
        self._library.enable_truncation(LENGTH)
        self._library.enable_padding(length=LENGTH)

    def strings(self, view: int, rows: Any) -> list[str]:
        """Return the views of rows as text, with the tokenizer's mask."""
        return [text.replace(MASK, "[MASK]") for text in self._renderer.words(view, rows).begun().texts()]

    def ids(self, strings: Sequence[str]) -> Any:
        """Return the ids (B, LENGTH) of strings."""
        return np.array([one.ids for one in self._library.encode_batch_fast(strings)], np.int32)


def processor_seconds(action: Callable[[], object]) -> float:
    """Return the processor time of an action."""
    start = time.process_time()
    action()
    return time.process_time() - start


def rendering(split: PackedSplit, tokenizer: TokenizerFile, rounds: int) -> dict[str, Any]:
    """Return views per second and ratios for every spec."""
    preprocessing = TextPreprocessing(tokenizer=tokenizer, max_length=LENGTH)
    return {
        name: _of_spec(TextRenderer(split, spec, preprocessing), split, rounds)
        for name, spec in VIEWS.items()
    }


def _of_spec(renderer: TextRenderer, split: PackedSplit, rounds: int) -> dict[str, Any]:
    """Return the fastest views per second, and how many times the seconds of each other way are ours."""
    other, batches = Tokenised(renderer), consecutive(len(split), BATCH)
    for rows in batches:
        np.testing.assert_array_equal(renderer.render(0, rows).numpy(), other.ids(other.strings(0, rows)))
    ours, again, tokenised, given = [], [], [], []
    for view in range(1, rounds + 1):
        strings = [other.strings(view, rows) for rows in batches]
        for seconds in (ours, again):
            seconds.append(
                processor_seconds(lambda view=view: [renderer.render(view, rows) for rows in batches])
            )
        tokenised.append(
            processor_seconds(lambda view=view: [other.ids(other.strings(view, rows)) for rows in batches])
        )
        given.append(processor_seconds(lambda some=strings: [other.ids(one) for one in some]))
    return {
        "views_per_second": len(split) / min(ours),
        "over_tokenised": spread([b / a for a, b in zip(ours, tokenised, strict=True)]),
        "over_strings_given": spread([b / a for a, b in zip(ours, given, strict=True)]),
        "again_over_tokenised": spread([b / a for a, b in zip(again, tokenised, strict=True)]),
    }


def steps(split: PackedSplit, tokenizer: TokenizerFile, rounds: int, count: int = 16) -> dict[str, Any]:
    """Return tokens and seconds of training steps, with batches padded in three ways."""
    preprocessing = TextPreprocessing(tokenizer=tokenizer, max_length=LENGTH)
    feed = Feed(split, None, preprocessing, device=CPU)
    rows = np.random.default_rng(0).permutation(len(split))[: count * BATCH // 4]
    random_batches = np.split(rows, count)
    sorted_batches = [batch.rows for batch in Loader(feed, None, batch_size=BATCH // 4, seed=0).epoch(0)][
        :count
    ]
    batches = {
        "to the maximum": [feed.pixels(0, some).long() for some in random_batches],
        "to the longest": [ids.clone() for ids in feed.batches(0, random_batches)],
        "by length": [ids.clone() for ids in feed.batches(0, sorted_batches)],
    }
    network = BertTiny(num_classes=8, vocabulary=tokenizer.size, pad=tokenizer.pad, max_length=LENGTH)

    def train(some: Sequence[torch.Tensor]) -> None:
        for ids in some:
            network.zero_grad()
            network(ids).sum().backward()

    times: dict[str, list[float]] = {arm: [] for arm in batches}
    train(batches["by length"][:2])
    for _ in range(rounds):
        for arm, some in batches.items():
            times[arm].append(processor_seconds(lambda some=some: train(some)))  # type: ignore[misc]
    most = times["to the maximum"]
    return {
        arm: {
            "tokens": sum(ids.numel() for ids in some),
            "times_faster": spread([a / b for a, b in zip(most, times[arm], strict=True)]),
        }
        for arm, some in batches.items()
    }


def measured(rounds: int, most: int | None = None) -> dict[str, Any]:
    """Measure everything."""
    texts = paragraphs()[:most]
    tokenizer, split = word_piece(texts), as_split(texts)
    words = [len(pieces_of(text)) for text in texts]
    return {
        "environment": environment(CPU),
        "texts": len(texts),
        "words_per_text": float(np.mean(words)),
        "rendering": rendering(split, tokenizer, rounds),
        "batches": steps(split, tokenizer, rounds),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    keep_freed_memory()
    text = json.dumps(measured(given.rounds), indent=1)
    print(text)
    if given.out:
        given.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
