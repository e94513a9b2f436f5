"""A few sentences of our own, from which the tiny tokenizers are made. Not everything in the tests' texts is in them."""

SENTENCES = (
    "Represent the query for retrieving evidence documents: where is the bridge?",
    "Represent the document for retrieval: the bridge of Bern stands over the river Aare.",
    "Query: how deep is the lake? Passage: the lake is 212 metres deep. Describe the image.",
    "Late chunking embeds the whole document first, and pools its token states afterwards.",
    "A chunk's vector knows what the words around it say; 43 of 100 readers did not know.",
    "The retrieval of documents needs queries, passages, and a model which has seen both.",
    "def add(left: int, right: int) -> int:\n    return left + right  # the sum",
    "a photo of a cat, a photo of a dog, a page of text, a red square and a blue one",
    "Die Brücke über die Aare steht seit 1844. Wie tief ist der See? Größe und Übermaß.",
    "Le café est fermé à Noël; où est la gare, s'il vous plaît ?",
    "¿Dónde está la biblioteca? La niña vive en España desde el año 2003.",
    "首都は東京です。北京是中国的首都。日本語の文書を検索する。",
    "Река Аара течёт через Берн. מים עמוקים. نهر في سويسرا.",
    "user system assistant You are a helpful assistant.",
)
