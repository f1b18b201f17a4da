"""The record store: a label trie with an exact index in front. Pure data: no socket, loop or clock."""
