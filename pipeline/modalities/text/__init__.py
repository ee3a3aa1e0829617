"""Texts: any script, views by words, any tokenizer."""
