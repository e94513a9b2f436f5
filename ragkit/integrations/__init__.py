"""ragkit inside other people's frameworks: `langchain`, `haystack`, `llama_index`, each an extra of its own.

Thin: every class here holds an Index and translates names. Nothing is imported before its module is.
"""
