"""The tokenizer of a model that is made from nothing."""

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from bridle.core.errors import DataError
from bridle.core.timeline import timed
from bridle.models.files.chat_template import PLAIN_TEMPLATE, id_of
from bridle.models.template import END, PAD, START, Template, with_stops


@timed("tokenizer")
def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Template:
    """A byte-level BPE tokenizer (any language, any byte) with the plain template. `vocab_size` counts all tokens."""
    if vocab_size < 256 + 3:
        raise DataError(f"a byte-level vocabulary needs at least {256 + 3} entries, got {vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(t, special=True) for t in (PAD, END, START)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return with_stops(Template(tokenizer, PLAIN_TEMPLATE, START, END, PAD, frozenset({id_of(tokenizer, END)})))
