"""``TextData``: text and its batches, the interface of text data to the trainer."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from d2v.data.bad_samples import BadSampleCounter
from d2v.data.contents import distinct
from d2v.data.datasets import EqualSamples, EvalCollate, EvalSamples, PretrainSamples
from d2v.data.measures import Measures
from d2v.data.samplers import BatchPlan
from d2v.data.shards import ShardedBatches, stream_batches
from d2v.data.streams import StreamBatches
from d2v.data.texts.block_stream import BlockStream
from d2v.data.texts.blocks import TokenBlocks
from d2v.data.texts.documents import Documents
from d2v.data.texts.measures import TextMeasures
from d2v.data.texts.tables import LabelledTexts
from d2v.data.texts.tokenizer import Tokenizer
from d2v.data.texts.whole_documents import PackedDocuments
from d2v.objective.masking import MaskGenerator

log = logging.getLogger(__name__)

MODALITY = "text"
INPUT_KEYS = ("tokenizer", "vocab_size", "pad_id", "mask_id", "block_size")


def _block_view(block: np.ndarray, rng: np.random.Generator) -> Tensor:
    """A block as it is: text has no augmentation."""
    return torch.from_numpy(block)


@dataclass(frozen=True)
class EvalView:
    """A text between the tokens that open and close one, cut to what the encoder can read.

    Attributes:
        tokenizer: encodes it.
        max_tokens: longest text, tokens, the opening and closing ones included.
    """

    tokenizer: Tokenizer
    max_tokens: int

    def __call__(self, text: str) -> Tensor:
        """Return (T,) int64."""
        (ids,) = self.tokenizer.encode([text])
        return torch.tensor([self.tokenizer.bos_id, *ids[: self.max_tokens - 2].tolist(), self.tokenizer.eos_id])


@dataclass(frozen=True)
class DocumentView:
    """Tokens between the ones that open and close a text.

    Attributes:
        bos_id: opens it.
        eos_id: closes it.
    """

    bos_id: int
    eos_id: int

    def __call__(self, ids: np.ndarray) -> Tensor:
        """Return (T + 2,) int64."""
        return torch.from_numpy(np.concatenate([[self.bos_id], ids, [self.eos_id]]))


def eval_collate(pad_id: int) -> EvalCollate:
    """Texts to a batch, padded to the longest by the token ``pad_id``."""
    return EvalCollate(MODALITY, (1,), torch.int64, num_tokens=int, pad_value=pad_id)


@dataclass(frozen=True, kw_only=True)
class TextData(EqualSamples):
    """Text and its batches for pretraining, evaluation and fine-tuning.

    Attributes:
        train: blocks to pretrain on; a stream has no length; None where there is only text to probe with.
        tokenizer: what made their ids.
        documents: what ``train`` was packed from, or None.
        probe_train: labelled texts to train probes on, or None.
        val: labelled texts to evaluate probes on, or None.
        block_size: tokens a block, and at most of a text to evaluate.
        max_bad_fraction: highest tolerated share of documents that cannot be read.
        shuffle_buffer: blocks that every worker holds to shuffle a stream; unused otherwise.

    Raises:
        ValueError: values do not fit each other.
        TooManyBadSamples: more documents cannot be read than ``max_bad_fraction`` allows.
    """

    modality: ClassVar[str] = MODALITY
    input_keys: ClassVar[tuple[str, ...]] = INPUT_KEYS
    input_name: ClassVar[str] = "TF-IDF of words"
    eval_batch_size: ClassVar[int] = 64

    train: TokenBlocks | BlockStream | None
    tokenizer: Tokenizer
    documents: Documents | None = None
    probe_train: LabelledTexts | None = None
    val: LabelledTexts | None = None
    block_size: int = 512
    max_bad_fraction: float = 0.01
    shuffle_buffer: int = 1000

    def __post_init__(self) -> None:
        if isinstance(self.train, TokenBlocks):
            for entry in BadSampleCounter(self.max_bad_fraction, self.train.num_documents).update(self.train.bad):
                log.warning("skipped %s", entry)

    @property
    def streaming(self) -> bool:
        """Return whether to train on ``pretrain_stream`` and not on ``pretrain_dataset``."""
        return isinstance(self.train, BlockStream)

    @property
    def size(self) -> float | None:
        """Blocks to pretrain on; None for a stream."""
        return None if self.streaming else len(self._blocks())

    @property
    def token_grid(self) -> tuple[int]:
        """Tokens of a block."""
        return (self.block_size,)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Name of every label, or None where there are none."""
        labelled = self.probe_train or self.val
        return None if labelled is None else labelled.class_names

    def pretrain_dataset(self, seed: int) -> PretrainSamples[np.ndarray]:
        """Blocks by SampleKey. Raises ValueError if the data is a stream."""
        return PretrainSamples(self._blocks(), _block_view, seed)

    def check_mask(self, mask: MaskGenerator | None) -> None:
        """Raise ValueError if no such masks exist, or there is no block."""
        if self.train is None:
            raise ValueError("root=null: there is no text to pretrain on; give a file or a folder")
        if not self.streaming:
            self._blocks()
        super().check_mask(mask)

    def pretrain_stream(self, mask: MaskGenerator | None, seed: int, plan: BatchPlan) -> StreamBatches | ShardedBatches:
        """Batches of blocks with masks, for a ``DataLoader`` with ``batch_size=None``."""
        if not isinstance(self.train, BlockStream):
            raise ValueError("streaming=false: use pretrain_dataset")
        collate = self.pretrain_collate(mask, seed)
        return stream_batches(self.train, _block_view, collate, seed, plan, self.shuffle_buffer)

    def eval_dataset(self, split: str) -> EvalSamples[np.ndarray] | EvalSamples[str]:
        """Texts for a ``DataLoader`` with ``eval_collate``.

        Args:
            split: "train" (``probe_train``, or all documents of the training text where there is none) or "val".
                Texts longer than ``block_size`` are cut to it.

        Raises:
            ValueError: there is no such split.
        """
        if split == "train" and self.probe_train is None and self.train is not None:
            return EvalSamples(self._documents(), DocumentView(self.tokenizer.bos_id, self.tokenizer.eos_id))
        return EvalSamples(self._labelled(split), EvalView(self.tokenizer, self.block_size))

    @property
    def eval_collate(self) -> EvalCollate:
        """Texts to a padded batch."""
        return eval_collate(self.tokenizer.pad_id)

    def raw(self, split: str) -> tuple[list[str], Tensor]:
        """Texts and their labels, for the baseline that a representation has to beat; empty texts are left out."""
        source = self._labelled(split)
        pairs = [(text, label) for text, label in zip(source.texts, source.labels, strict=True) if text.strip()]
        return [text for text, _ in pairs], torch.tensor([label for _, label in pairs])

    def assets(self) -> dict[str, str]:
        """Values that must go with an encoder: they take the place of this data's keys wherever it is read again."""
        return {"tokenizer": self.tokenizer.to_json()}

    def bad_sample_counter(self) -> BadSampleCounter:
        """A counter for ``Batch.skipped`` with this data's limit."""
        return BadSampleCounter(self.max_bad_fraction, None if self.streaming else len(self._blocks()))

    def measures(self) -> dict[str, Measures[Any]]:
        """Measurements to be made for ``d2v check``, by the name of the source; a stream has none."""
        blocks = self.train if isinstance(self.train, TokenBlocks) else None
        tables = distinct({"probe_train": self.probe_train, "val": self.val})
        by_source: dict[str, Measures[Any]] = {}
        if blocks is not None:  # a run counts documents, which are more or fewer than blocks
            by_source["train"] = TextMeasures(blocks, "tokens", len, blocks.bad, blocks.num_documents)
        return by_source | {name: TextMeasures(texts, "characters", len) for name, texts in tables.items()}

    def _blocks(self) -> TokenBlocks:
        if not isinstance(self.train, TokenBlocks):
            what = (
                "streaming=true: use pretrain_stream" if self.streaming else "root=null: there is no text to train on"
            )
            raise ValueError(what)
        self.train.check_not_empty()
        return self.train

    def _documents(self) -> PackedDocuments:
        """The training text by document."""
        if not isinstance(self.train, TokenBlocks):
            raise ValueError("streaming=true: a stream is read in blocks; set streaming=false for documents")
        if self.documents is None:
            raise ValueError("split 'train': this data does not know its documents; set probe_train to a table")
        documents = PackedDocuments(self.train, self.documents, self.tokenizer.eos_id, self.block_size)
        if documents.num_cut:
            log.warning(
                "cut %d of %d documents to block_size=%d tokens",
                documents.num_cut,
                len(documents),
                self.block_size,
            )
        return documents

    def _labelled(self, split: str) -> LabelledTexts:
        source: Any = {"train": self.probe_train, "val": self.val}.get(split)
        if source is None:
            raise ValueError(
                f"split {split!r}: this data has no such labelled texts; set probe_train and probe_val to "
                "tables with a header"
            )
        return source
