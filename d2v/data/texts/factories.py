"""Factories of text data sets for configurations; each returns a ``TextData``.

A factory checks everything it can, so that a wrong path, column or size fails before training starts. Its keywords are
the keys of ``conf/data/<factory>.yaml``.
Ranges stand in the annotations: ``build`` and the command line check them, a direct call does not.
"""

from __future__ import annotations

from typing import Literal, TypedDict, Unpack

from d2v.data.shards import SHARDED, Streaming
from d2v.data.texts.block_stream import BlockStream
from d2v.data.texts.blocks import TokenBlocks, cache_dir, cached_tokenizer, pack
from d2v.data.texts.data import TextData
from d2v.data.texts.documents import Documents, HFTexts, TextFiles
from d2v.data.texts.samples import SampleTexts
from d2v.data.texts.tables import LabelledTexts, read_table
from d2v.data.texts.tokenizer import Tokenizer, load_tokenizer
from d2v.values import BlockSize, Count, Fraction, Name, PathStr, PositiveInt, VocabSize, buildable


class TokenizerOptions(TypedDict, total=False):
    """Options of a tokenizer, with their ranges.

    Attributes:
        tokenizer: a ``tokenizer.json``, or a folder with one or with the released models' encoder.json, vocab.bpe and
            dict.txt; None to train one on the documents.
        vocab_size: ids the encoder knows, at least as many as the tokenizer has.
        pad_id: the tokenizer's id of padding.
        mask_id: its id of masked tokens, for data2vec 1.0; None: not needed.
    """

    tokenizer: PathStr | None
    vocab_size: VocabSize
    pad_id: Count
    mask_id: Count | None


class TextOptions(TokenizerOptions, total=False):
    """Options of every factory of text to pretrain on.

    Attributes:
        block_size: tokens a block.
        max_bad_fraction: highest tolerated share of documents that are no UTF-8.
        cache: folder for packed text and trained tokenizers; None for $D2V_CACHE or ~/.cache/d2v.
    """

    block_size: BlockSize
    max_bad_fraction: Fraction
    cache: PathStr | None


class StreamOptions(TextOptions, total=False):
    """Options of text that may be read while training.

    Attributes:
        shuffle_buffer: blocks that every worker holds to shuffle a stream.
    """

    shuffle_buffer: PositiveInt


class CorpusOptions(StreamOptions, total=False):
    """Options of text that has no labels of its own.

    Attributes:
        probe_train: .tsv or .csv of labelled texts to train probes on, or None.
        probe_val: another table, to evaluate them on.
        text_column: of these tables; "sentence" or "text" if None.
        label_column: of these tables; "label" if None.
        probe_limit: at most so many texts to train probes on, evenly spaced.
    """

    probe_train: PathStr | None
    probe_val: PathStr | None
    text_column: Name | None
    label_column: Name | None
    probe_limit: PositiveInt | None


@buildable
def samples_text(**options: Unpack[TextOptions]) -> TextData:
    """Build data from the shipped WordNet glosses; their lexical class is the label of probes.

    Args:
        **options: see :class:`TextOptions`; by default 4,096 ids and blocks of 128 tokens.

    Raises:
        ValueError: values do not fit each other.
    """
    defaults: TextOptions = {"vocab_size": 4096, "block_size": 128}
    glosses = SampleTexts()
    return _text_data(glosses, glosses.labelled("train"), glosses.labelled("val"), **(defaults | options))


@buildable
def text_files(
    root: PathStr | None,
    *,
    document: Literal["line", "file"] = "line",
    streaming: bool = False,
    **options: Unpack[CorpusOptions],
) -> TextData:
    """Build data from documents in text files.

    Args:
        root: a file, or a folder that is searched for .txt and .txt.gz; None for probes alone.
        document: a document is a line, or a whole file.
        streaming: read the files while training, instead of packing them once.
        **options: see :class:`CorpusOptions`.

    Raises:
        FileNotFoundError: a file or folder does not exist, or holds no text file.
        ValueError: values do not fit each other, a column is missing, or the tokenizer does not fit.
    """
    return _corpus(None if root is None else TextFiles(root, document), streaming, **options)


@buildable
def hf_text(
    path: Name,
    split: Name = "train",
    column: Name | None = None,
    *,
    streaming: Streaming = False,
    **options: Unpack[CorpusOptions],
) -> TextData:
    """Build data from a Hugging Face data set of texts.

    Args:
        path: name on the Hub, a local directory of parquet, arrow, text or JSON files, or what ``save_to_disk`` wrote.
        split: to train on.
        column: of the texts; the only column of strings if None.
        streaming: read while training, instead of downloading and packing first; "sharded" lets every reader read a
            share of its own (docs/data.md).
        **options: see :class:`CorpusOptions`.

    Raises:
        FileNotFoundError: no such data set, or no such table.
        ValueError: as :func:`text_files`, or ``datasets`` is not installed, or split or column do not exist.
    """
    return _corpus(HFTexts(path, split, column, bool(streaming)), streaming, **options)


def _corpus(
    documents: Documents | None,
    streaming: Streaming,
    *,
    probe_train: str | None = None,
    probe_val: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    probe_limit: int | None = None,
    **options: Unpack[StreamOptions],
) -> TextData:
    tables = _probe_tables(probe_train, probe_val, text_column, label_column, probe_limit)
    return _text_data(documents, *tables, streaming, **options)


def _text_data(
    documents: Documents | None,
    probe_train: LabelledTexts | None,
    val: LabelledTexts | None,
    streaming: Streaming = False,
    *,
    block_size: int = TextData.block_size,
    max_bad_fraction: float = TextData.max_bad_fraction,
    shuffle_buffer: int = TextData.shuffle_buffer,
    cache: str | None = None,
    **options: Unpack[TokenizerOptions],
) -> TextData:
    tokenizer = fitting_tokenizer(documents, cache, **options)
    train: TokenBlocks | BlockStream | None = None
    if documents is not None and streaming:
        train = BlockStream(documents, tokenizer, block_size, streaming == SHARDED)
        next(iter(train))  # a text without one block fails here, and not in a data worker
    elif documents is not None:
        packed = pack(documents, tokenizer, cache_dir(cache))
        train = TokenBlocks(packed, block_size, tokenizer.bos_id, documents.contents)
    return TextData(
        train=train,
        tokenizer=tokenizer,
        documents=documents,
        probe_train=probe_train,
        val=val,
        block_size=block_size,
        max_bad_fraction=max_bad_fraction,
        shuffle_buffer=shuffle_buffer,
    )


def fitting_tokenizer(
    documents: Documents | None,
    cache: str | None = None,
    *,
    tokenizer: str | None = None,
    vocab_size: int = 32768,
    pad_id: int = 1,
    mask_id: int | None = None,
) -> Tokenizer:
    """Return the given tokenizer, or one trained on the documents, that the encoder's vocabulary holds.

    Args:
        documents: to train it on, or None.
        cache: folder for trained tokenizers.
        tokenizer: as in :class:`TokenizerOptions`, like all that follow.
        vocab_size: ids the encoder knows.
        pad_id: id of padding.
        mask_id: id of masked tokens, or None.

    Raises:
        ValueError: the tokenizer has other ids, or there is nothing to train one on.
    """
    if tokenizer is not None:
        chosen = load_tokenizer(tokenizer)
    elif documents is None:
        raise ValueError("tokenizer=null: without root=... there is nothing to train one on; give a tokenizer.json")
    else:
        chosen = cached_tokenizer(documents, vocab_size, cache_dir(cache))
    if chosen.vocab_size > vocab_size:
        raise ValueError(
            f"vocab_size={vocab_size}: the tokenizer has {chosen.vocab_size} tokens; set vocab_size={chosen.vocab_size}"
        )
    if chosen.pad_id != pad_id:
        raise ValueError(f"pad_id={pad_id}: the tokenizer's padding is {chosen.pad_id}; set pad_id={chosen.pad_id}")
    if mask_id is not None and mask_id != chosen.mask_id:
        raise ValueError(
            f"mask_id={mask_id}: the tokenizer's mask token is {chosen.mask_id}; "
            + ("choose another tokenizer" if chosen.mask_id is None else f"set mask_id={chosen.mask_id}")
        )
    return chosen


def _probe_tables(
    train: str | None, val: str | None, text_column: str | None, label_column: str | None, limit: int | None
) -> tuple[LabelledTexts | None, LabelledTexts | None]:
    if (train is None) != (val is None):
        raise ValueError(f"probe_train={train}, probe_val={val}: give both tables or none")
    if train is None or val is None:
        return None, None
    labelled = read_table(train, "probe_train", text_column, label_column, limit)
    return labelled, read_table(val, "probe_val", text_column, label_column, None, labelled.class_names)
