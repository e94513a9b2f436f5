"""ragkit inside other frameworks: `langchain`, `haystack`, `llama_index`, each an extra of its own.

The adapters are thin: every class holds an Index and translates names. A framework is imported with its module only.
"""
