"""Foreign text on its way to a terminal: what a terminal would obey is shown, not sent.

Controls move the cursor and colour the screen, C1 controls (U+0080 to U+009F) as well as C0; bidirectional controls let
a name read as another (Unicode Technical Report 36). So whatever is not printable is escaped, as Python writes it in a
string.
"""


def printable(text: str) -> str:
    """A text with all that is not printable escaped (`\\n`, `\\x9b`, `\\u202e`), so that it is one line. Tabs stay."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode("ascii") for c in text)
