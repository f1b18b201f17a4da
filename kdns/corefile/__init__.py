"""The Corefile: text in, server blocks out. Reading is pure: it opens nothing but what `import` names, through a
reader.
"""

from kdns.corefile.errors import CorefileError, Position
from kdns.corefile.keys import Key
from kdns.corefile.lexer import Token
from kdns.corefile.parser import Corefile, Directive, FileReader, Line, Reader, ServerBlock, parse

__all__ = [
    "Corefile", "CorefileError", "Directive", "FileReader", "Key", "Line", "Position", "Reader", "ServerBlock", "Token",
    "parse",
]  # fmt: skip
