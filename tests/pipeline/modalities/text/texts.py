"""Texts of several scripts as a split, and small tokenizers of the usual kinds, trained on them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.core.hashing import content_digest, sample_key
from pipeline.modalities.text.form import TEXT
from pipeline.modalities.text.tokenizer_files import TokenizerFile
from pipeline.modalities.text.words import packed
from pipeline.samples.packed import PackedSplit, offsets_of
from pipeline.samples.samples import Names

TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "  Don't stop,\n\nbelieving  in it!  ",
    "Σε μια νύχτα του χειμώνα, ένας ταξιδιώτης",
    "Всякий человек имеет право на жизнь",
    "東京に行きました。 Tokyo 2020年",
    "ทุกคนมีสิทธิ",
    "one",
    "مرحبا بالعالم الكبير",
    "a\u00a0b\tc d e f g h i j k l m n o p q r s t u v w x y z",
    "naïve café — déjà vu… [SEP] ok",
    "मनुष्य जन्म से स्वतंत्र है",
    "emoji 🙂🙃 and 👩‍👩‍👧 family",
)


def split_of(texts: Sequence[str | tuple[str, str]]) -> PackedSplit:
    """Return texts, or pairs of texts, as a split; the label is the position modulo 2."""
    arrays = [packed(*([text] if isinstance(text, str) else text)) for text in texts]
    shapes = np.array([[len(array)] for array in arrays], np.int32)
    labels = np.arange(len(arrays)) % 2
    names = [f"text/{row}" for row in range(len(arrays))]
    digests = [content_digest(a, int(label)) for a, label in zip(arrays, labels, strict=True)]
    return PackedSplit(
        values=np.concatenate(arrays),
        form=TEXT,
        offsets=offsets_of(shapes, TEXT)[:-1],
        shapes=shapes,
        labels=labels,
        keys=np.array([sample_key(name) for name in names], np.uint64),
        digests=np.array(digests, np.uint64),
        names=Names.of(names),
    )


def bert(*, vocabulary: int = 300) -> TokenizerFile:
    """Return a WordPiece tokenizer with BERT's normaliser, splitter and special tokens."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(
        TEXTS,
        trainers.WordPieceTrainer(vocab_size=vocabulary, special_tokens=specials, show_progress=False),
    )
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return TokenizerFile(tokenizer.to_str().encode())


def byte_level() -> TokenizerFile:
    """Return a byte-level BPE tokenizer with RoBERTa's special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return TokenizerFile(tokenizer.to_str().encode())


def metaspace() -> TokenizerFile:
    """Return a unigram tokenizer that writes white space as ▁."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<pad>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return TokenizerFile(tokenizer.to_str().encode())


def joined() -> TokenizerFile:
    """Return a BPE tokenizer without a pre-tokenizer: its tokens reach over white space."""
    from tokenizers import Tokenizer, models, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<pad>", "<unk>"], show_progress=False)
    tokenizer.train_from_iterator(["of the of the of the in the in the"] * 20 + list(TEXTS), trainer)
    return TokenizerFile(tokenizer.to_str().encode())
