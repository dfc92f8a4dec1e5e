"""Rows of instructions and answers, in the forms that the field's data sets have."""
