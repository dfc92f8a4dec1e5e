"""A corpus of documents: read, tokenised by many processes, and written as Megatron's indexed data set."""
