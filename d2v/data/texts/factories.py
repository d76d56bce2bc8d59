"""Text by configuration: one factory for each kind, all of them making a ``TextData``.

A factory checks everything it can, so that a wrong path, column or size fails before training starts. Its keywords are
the keys of ``conf/data/<factory>.yaml``.
"""

from __future__ import annotations

from typing import Literal

from d2v.data.shards import SHARDED, Streaming
from d2v.data.texts.block_stream import BlockStream
from d2v.data.texts.blocks import TokenBlocks, cache_dir, cached_tokenizer, pack
from d2v.data.texts.data import TextData
from d2v.data.texts.documents import Documents, HFTexts, TextFiles
from d2v.data.texts.samples import SampleTexts
from d2v.data.texts.tables import LabelledTexts, read_table
from d2v.data.texts.tokenizer import Tokenizer, load_tokenizer
from d2v.values import BlockSize, Count, Fraction, Name, PathStr, PositiveInt, VocabSize, buildable


@buildable
def samples_text(
    *,
    tokenizer: PathStr | None = None,
    vocab_size: VocabSize = 4096,
    pad_id: Count = 1,
    mask_id: Count | None = None,
    block_size: BlockSize = 128,
    max_bad_fraction: Fraction = 0.01,
    cache: PathStr | None = None,
) -> TextData:
    """WordNet's glosses, which ship with the package; their lexical class is the probes' label.

    Args:
        tokenizer: as in :func:`text_files`, like all that follow.

    Raises:
        ValueError: a value is out of its range.
    """
    glosses = SampleTexts()
    chosen = fitting_tokenizer(glosses, tokenizer, vocab_size, pad_id, cache, mask_id)
    return TextData(
        train=_blocks(glosses, chosen, block_size, cache),
        tokenizer=chosen,
        documents=glosses,
        probe_train=glosses.labelled("train"),
        val=glosses.labelled("val"),
        block_size=block_size,
        max_bad_fraction=max_bad_fraction,
    )


@buildable
def text_files(
    root: PathStr | None,
    *,
    document: Literal["line", "file"] = "line",
    streaming: bool = False,
    shuffle_buffer: PositiveInt = 1000,
    tokenizer: PathStr | None = None,
    vocab_size: VocabSize = 32768,
    pad_id: Count = 1,
    mask_id: Count | None = None,
    block_size: BlockSize = 512,
    probe_train: PathStr | None = None,
    probe_val: PathStr | None = None,
    text_column: Name | None = None,
    label_column: Name | None = None,
    probe_limit: PositiveInt | None = None,
    max_bad_fraction: Fraction = 0.01,
    cache: PathStr | None = None,
) -> TextData:
    """Documents in text files.

    Args:
        root: a file, or a folder that is searched for .txt and .txt.gz; None for probes alone.
        document: a document is a line, or a whole file.
        streaming: read the files while training, instead of packing them once.
        shuffle_buffer: blocks that every worker holds to shuffle a stream.
        tokenizer: a ``tokenizer.json``, or a folder with one or with the released models' encoder.json, vocab.bpe and
            dict.txt; None to train one on the documents.
        vocab_size: ids the encoder knows, at least as many as the tokenizer has.
        pad_id: the tokenizer's id of padding.
        mask_id: its id of masked tokens, for data2vec 1.0; None: not needed.
        block_size: tokens a block.
        probe_train: .tsv or .csv of labelled texts to train probes on, or None.
        probe_val: likewise, to evaluate them on.
        text_column: of these tables; "sentence" or "text" if None.
        label_column: of these tables; "label" if None.
        probe_limit: at most so many texts to train probes on, evenly spaced.
        max_bad_fraction: highest tolerated share of documents that are no UTF-8.
        cache: folder for packed text and trained tokenizers; None for $D2V_CACHE or ~/.cache/d2v.

    Raises:
        FileNotFoundError: a file or folder does not exist, or holds no text file.
        ValueError: a value is out of its range, a column is missing, or the tokenizer does not fit.
    """
    documents = None if root is None else TextFiles(root, document)
    return _text_data(
        documents,
        streaming,
        shuffle_buffer,
        fitting_tokenizer(documents, tokenizer, vocab_size, pad_id, cache, mask_id),
        block_size,
        *_probe_tables(probe_train, probe_val, text_column, label_column, probe_limit),
        max_bad_fraction,
        cache,
    )


@buildable
def hf_text(
    path: Name,
    split: Name = "train",
    column: Name | None = None,
    *,
    streaming: Streaming = False,
    shuffle_buffer: PositiveInt = 1000,
    tokenizer: PathStr | None = None,
    vocab_size: VocabSize = 32768,
    pad_id: Count = 1,
    mask_id: Count | None = None,
    block_size: BlockSize = 512,
    probe_train: PathStr | None = None,
    probe_val: PathStr | None = None,
    text_column: Name | None = None,
    label_column: Name | None = None,
    probe_limit: PositiveInt | None = None,
    max_bad_fraction: Fraction = 0.01,
    cache: PathStr | None = None,
) -> TextData:
    """A Hugging Face data set of texts.

    Args:
        path: name on the Hub, a local directory of parquet, arrow, text or JSON files, or what ``save_to_disk`` wrote.
        split: to train on.
        column: of the texts; the only column of strings if None.
        streaming: read while training, instead of downloading and packing first; "sharded" lets every reader read a
            share of its own (docs/data.md).
        shuffle_buffer: as in :func:`text_files`, like all that follow.

    Raises:
        FileNotFoundError: no such data set, or no such table.
        ValueError: as :func:`text_files`, or ``datasets`` is not installed, or split or column do not exist.
    """
    documents = HFTexts(path, split, column, bool(streaming))
    return _text_data(
        documents,
        streaming,
        shuffle_buffer,
        fitting_tokenizer(documents, tokenizer, vocab_size, pad_id, cache, mask_id),
        block_size,
        *_probe_tables(probe_train, probe_val, text_column, label_column, probe_limit),
        max_bad_fraction,
        cache,
    )


def _text_data(
    documents: Documents | None,
    streaming: Streaming,
    shuffle_buffer: int,
    tokenizer: Tokenizer,
    block_size: int,
    probe_train: LabelledTexts | None,
    probe_val: LabelledTexts | None,
    max_bad_fraction: float,
    cache: str | None,
) -> TextData:
    train: TokenBlocks | BlockStream | None = None
    if documents is not None and streaming:
        _check(block_size)
        train = BlockStream(documents, tokenizer, block_size, streaming == SHARDED)
        next(iter(train))  # a text without one block fails here, and not in a data worker
    elif documents is not None:
        train = _blocks(documents, tokenizer, block_size, cache)
    return TextData(
        train=train,
        tokenizer=tokenizer,
        documents=documents,
        probe_train=probe_train,
        val=probe_val,
        block_size=block_size,
        max_bad_fraction=max_bad_fraction,
        shuffle_buffer=shuffle_buffer,
    )


def _blocks(documents: Documents, tokenizer: Tokenizer, block_size: int, cache: str | None) -> TokenBlocks:
    _check(block_size)
    return TokenBlocks(pack(documents, tokenizer, cache_dir(cache)), block_size, tokenizer.bos_id, documents.contents)


def _check(block_size: int) -> None:
    if block_size < 4:
        raise ValueError(f"data.block_size={block_size}: must be at least 4 tokens")


def fitting_tokenizer(
    documents: Documents | None,
    path: str | None,
    vocab_size: int,
    pad_id: int,
    cache: str | None,
    mask_id: int | None = None,
) -> Tokenizer:
    """The given tokenizer, or one trained on the documents, that the encoder's vocabulary holds."""
    if path is not None:
        tokenizer = load_tokenizer(path)
    elif documents is None:
        raise ValueError(
            "data.tokenizer=null: without data.root there is nothing to train one on; give a tokenizer.json"
        )
    else:
        tokenizer = cached_tokenizer(documents, vocab_size, cache_dir(cache))
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"data.vocab_size={vocab_size}: the tokenizer has {tokenizer.vocab_size} tokens; "
            f"set data.vocab_size={tokenizer.vocab_size}"
        )
    if tokenizer.pad_id != pad_id:
        raise ValueError(
            f"data.pad_id={pad_id}: the tokenizer's padding is {tokenizer.pad_id}; set data.pad_id={tokenizer.pad_id}"
        )
    if mask_id is not None and mask_id != tokenizer.mask_id:
        raise ValueError(
            f"data.mask_id={mask_id}: the tokenizer's mask token is {tokenizer.mask_id}; "
            + ("choose another tokenizer" if tokenizer.mask_id is None else f"set data.mask_id={tokenizer.mask_id}")
        )
    return tokenizer


def _probe_tables(
    train: str | None, val: str | None, text_column: str | None, label_column: str | None, limit: int | None
) -> tuple[LabelledTexts | None, LabelledTexts | None]:
    if (train is None) != (val is None):
        raise ValueError(f"data.probe_train={train}, data.probe_val={val}: give both tables or none")
    if train is None or val is None:
        return None, None
    labelled = read_table(train, "data.probe_train", text_column, label_column, limit)
    return labelled, read_table(val, "data.probe_val", text_column, label_column, None, labelled.class_names)
