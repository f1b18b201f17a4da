"""The DNS protocol: names, messages, records, answers. Bytes in, bytes out.

Nothing here takes a socket, a loop, a clock or a source of chance; time and order are arguments.
"""
