"""What commands, methods and training can be told: dataclasses whose fields are options.

Nothing here imports torch, so that the help and a typing error need not wait for it. The lines of
the docstrings are the help of the flags.
"""
