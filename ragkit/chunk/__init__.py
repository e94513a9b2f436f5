"""A Document becomes chunks: exact spans within a budget of the encoder's own tokens, under their headings.

    chunk_document(document, chunker="sentences", tokens=256, overlap=32, encoder_tokens=encoder)  ->  [Chunk, ...]

The laws. Spans are offsets into the document's text, ascending by start, and begin and end at non-blank characters. They
hold every character that the encoder has a token for, with two exceptions: running headers and footers that only repeat an
earlier page's and page numbers (blocks "header" and "footer" of level 1) are in no chunk but "whole"; a user's own chunker may
leave text out. No chunk has more tokens than its budget, special tokens included, unless it is a single grapheme, or the chunker
is "whole". No cut stands inside a grapheme. Two neighbours share at most `overlap` tokens. A chunk's headings are those in force
at its first character.

`segment` finds where a text may be cut, `structure` adds the blocks and pages that the loader recorded, `pack` chooses among the
cuts, `chunkers` puts them together. Nothing here knows how vectors are made: any object that counts tokens will do.
"""

from ragkit.chunk.chunkers import CHUNKERS, Chunker, TokenCounter, chunk_document

__all__ = ["CHUNKERS", "Chunker", "TokenCounter", "chunk_document"]
