"""Text in, packed token rows out. `open_corpus(spec)` and `pack_corpus` are the way in."""

from sae.corpus.pack import PackedCorpus, pack_corpus
from sae.corpus.sources import Corpus, Document, open_corpus, split_of

__all__ = ["Corpus", "Document", "PackedCorpus", "open_corpus", "pack_corpus", "split_of"]
