"""Server blocks from tokens: snippets, `import`, environment, directives.

Theory of operation. Tokens keep the file and line they were written in, through every import. "Same line" means
same file and same line number; that is how CoreDNS tells a directive's arguments from the next directive, and
what plugins rely on. The parser turns each directive into `Directive(name, args, body)`: arguments on its line,
then, if the line ends with `{`, the lines up to the matching `}`.

Repeats of a directive in one block stay apart as a list, in order; the plugin decides what a repeat means.

For a tool that says all errors (`errors` of `parse`) it reads past each; kdns.corefile.stream says how.
"""

import fnmatch
import os
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from kdns.corefile import keys as _keys
from kdns.corefile import source
from kdns.corefile.errors import CorefileError, Position, did_you_mean
from kdns.corefile.keys import Key
from kdns.corefile.lexer import Token, tokens
from kdns.corefile.stream import Stream

MAX_SNIPPETS: Final = 10_000  # as CoreDNS: a snippet that multiplies itself ends here
MAX_IMPORTS: Final = 100_000  # as CoreDNS: expansions of files; a glob counts once
MAX_TOKENS: Final = 1_000_000  # what both may add up to; a 100 KB Corefile has some 15,000
MAX_DEPTH: Final = 50  # blocks within blocks; plugins use two, and each is a call of the parser's
# Directives that CoreDNS once had, and what to do about them (its own migration tool says the same).
REMOVED: Final = {
    "proxy": "it was removed in CoreDNS 1.5; `forward` takes its place",
    "federation": "it was removed in CoreDNS 1.7; remove the lines",
    "startup": "it was removed in CoreDNS 1.0; run that program beside the server",
    "shutdown": "it was removed in CoreDNS 1.0; run that program beside the server",
    "reverse": "it was removed in CoreDNS 1.2; `template` can do it",
    "external": "it is called `k8s_external`",
}
_MAX_EXPANSIONS: Final = 64  # a variable whose value holds itself would never end
_NOWHERE: Final = Position("", 1)


class Reader(Protocol):
    """The file access of `import`; a test may give one without a disk."""

    def read(self, path: str) -> str:
        """A file's text. Raises OSError or CorefileError."""

    def list(self, folder: str) -> list[str]:
        """The names in a folder. Raises OSError."""

    def shown(self, path: str) -> str:
        """A file's name in errors."""


class FileReader:
    """Files as they are on this machine."""

    def read(self, path: str) -> str:
        return source.read(path)

    def list(self, folder: str) -> list[str]:
        return os.listdir(folder)

    def shown(self, path: str) -> str:
        return path


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a directive's block: its first word, the others, and the lines of its own block if it has one."""

    name: Token
    args: tuple[Token, ...]
    body: tuple["Line", ...] | None = None

    @property
    def at(self) -> Position:
        return self.name.at

    def words(self) -> list[str]:
        """The arguments' texts."""
        return [arg.text for arg in self.args]


class Directive(Line):
    """A plugin's directive in a server block."""

    __slots__ = ()


@dataclass(slots=True)
class ServerBlock:
    """Keys, and directives by name in the order of their first use."""

    keys: list[Key]
    directives: dict[str, list[Directive]] = field(default_factory=dict)
    at: Position = _NOWHERE
    faults: list[str] = field(default_factory=list)  # directives that were left out (empty: something else was)

    @property
    def zones(self) -> list[str]:
        """The zones of all keys, without repeats."""
        return list(dict.fromkeys(key.zone for key in self.keys))


@dataclass(slots=True)
class Corefile:
    """A parsed file with its imports. `warnings` are lines for the log; `sources` every token as it counts."""

    name: str
    blocks: list[ServerBlock]
    warnings: list[str]
    fingerprint: str


def parse(
    text: str,
    name: str = "Corefile",
    *,
    default_port: int = 53,
    known: Container[str] | None = None,
    suggestions: Iterable[str] = (),
    environ: Mapping[str, str] | None = None,
    reader: Reader | None = None,
    errors: list[CorefileError] | None = None,
) -> Corefile:
    """Reads a Corefile. Raises CorefileError with file, line and column.

    `default_port` stands in keys without one (`-dns.port`). `known` holds the directives there are (None: any).
    `environ` is what `{$NAME}` and `{%NAME%}` are replaced from (default: none). `errors`: takes all that is wrong;
    nothing is raised then, and the blocks are what could be read.
    """
    stream = tokens(text, name)

    def reading(*, again: bool = False) -> _Parser:
        words = (default_port, known, tuple(suggestions), environ or {}, reader or FileReader())
        parser = _Parser(list(stream), *words)
        parser.again = again
        parser.errors = None if errors is None else []
        parser.reading.append([(-1, os.path.abspath(name))])
        try:
            parser.blocks()
        except CorefileError as error:
            parser.note(error)
        return parser

    parser = reading()
    if parser.unbalanced:
        parser = reading(again=True)
    if errors is not None:
        errors += parser.errors or ()
    return Corefile(name, parser.found, parser.warnings, "\n".join(parser.seen))


class _Parser(Stream):
    def __init__(
        self,
        stream: list[Token],
        default_port: int,
        known: Container[str] | None,
        suggestions: tuple[str, ...],
        environ: Mapping[str, str],
        reader: Reader,
    ) -> None:
        super().__init__(stream, known)
        self.default_port = default_port
        self.suggestions = suggestions
        self.environ = environ
        self.reader = reader
        self.found: list[ServerBlock] = []
        self.closed: tuple[Position, Position] | None = None  # where the last server block begins and ends
        self.snippets: dict[str, list[Token]] = {}
        self.warnings: list[str] = []
        self.seen: list[str] = []
        self.depth = 0  # of blocks that are open within a server block
        self.snippet_uses = 0
        self.imports = 0
        self.unread = False  # whether an import failed, which may have had snippets
        self.files: dict[str, list[Token]] = {}  # what was imported: one state of each file, read once
        # Files that are being read, those of the outermost import first: how many tokens follow a file's last, and its
        # path. What is put in the stream shifts places from its start, and none from its end. Of one import's files,
        # which are listed from the last to the first, the last in the list is the one that is being read.
        self.reading: list[list[tuple[int, str]]] = []

    # Environment.

    def expand(self, token: Token) -> Token:
        text = self._replace(self._replace(token.text, "{%", "%}", token), "{$", "}", token)
        return token if text == token.text else token._replace(text=text, quoted=True)

    def _replace(self, text: str, opening: str, closing: str, token: Token) -> str:
        for _ in range(_MAX_EXPANSIONS):
            begin = text.find(opening)
            end = text.find(closing, begin + len(opening)) if begin >= 0 else -1
            if begin < 0 or end < 0 or end == begin + len(opening):
                return text  # `{$}` stays, and substitution of this token stops there
            name = text[begin + len(opening) : end]
            text = text[:begin] + self.environ.get(name, "") + text[end + len(closing) :]
        self.note(CorefileError(token.at, f'the environment variables in "{token.text}" lead to themselves'))
        return ""

    # Blocks.

    def blocks(self) -> None:
        while self.peek() is not None:
            token = self.expand(self.stream[self.at])
            if token.text == "import" and not token.quoted:
                self._import()
                continue
            self.first = None
            block = self._block()
            if block is not None:
                self.found.append(block)

    def _block(self) -> ServerBlock | None:
        first = self.peek()
        assert first is not None
        noted = len(self.errors or ())
        names, braced = self._keys()
        self.first = first
        if len(names) == 1 and names[0].text.startswith("(") and names[0].text.endswith(")"):
            self._snippet(names[0], braced)
            return None
        block = ServerBlock([], at=first.at)
        broken = False
        for name in names:
            self.seen.append(f"{name.at} {name.text}")
            try:
                block.keys += _keys.keys(name, self.default_port)
            except CorefileError as error:
                self.note(error)
                broken = True
        self.indented = (token := self.peek()) is not None and token.at.column > first.at.column
        what = f"the server block that begins at {first.at}"
        while True:
            token = self.peek()
            if token is None:
                if braced:
                    self.end(what)
                break
            if braced and self.cuts(what):
                break
            if token.text == "}" and not token.quoted:
                if not braced:
                    return self._stray(token, names, block, noted)
                self.take()
                self.closed = (first.at, token.at)
                if not self.begins_line() and self.peek() is not None:
                    self.note(self.fail(self.peek(), "expected a new line after the server block's '}'"))
                    self.skip_line()
                break
            if token.text == "{" and not token.quoted:
                self.note(self.fail(token, "unexpected '{': a directive's block opens on the directive's own line"))
                self.skip_block()
                block.faults.append("")
                continue
            token = self.expand(token)
            if token.text == "import":
                self._import()
                continue
            self._directive(block, token)
        if len(self.errors or ()) > noted and not block.faults:
            block.faults.append("")
        return block if block.keys or broken else None

    def _stray(self, brace: Token, names: list[Token], block: ServerBlock, noted: int) -> ServerBlock | None:
        """A `}` where no block is open: what stands before it belonged to the block above, or lacks its `{`."""
        self.take()
        self.unbalanced = True
        above = self.known is not None and bool(names) and names[0].text in self.known
        hint = ""
        if above and self.closed is not None:
            hint = f" (the server block that begins at {self.closed[0]} ends at {self.closed[1]})"
            if self.errors is not None:
                del self.errors[noted:]  # of directives that were read as keys
        elif names:
            hint = f" (is '{{' missing after \"{names[-1].text}\" at {names[-1].at}?)"
        self.note(self.fail(brace, f"unexpected '}}': no block is open{hint}"))
        self.skip_line()
        block.faults.append("")
        return block if names and not above else None

    def _keys(self) -> tuple[list[Token], bool]:
        names: list[Token] = []
        more = True  # a comma, or the beginning: another key may stand on the next line
        while True:
            token = self.peek()
            if token is None:
                if more and names:
                    self.note(self.fail(None, "expected another key after the comma, found the end of the file"))
                return names, False
            if token.text == "{" and not token.quoted:
                if more and names:
                    self.note(self.fail(token, "expected another key after the comma, found '{'"))
                self.take()
                return names, True
            if names and not more and self.begins_line():
                return names, False
            if token.text == "}" and not token.quoted:
                return names, False  # what is wrong with it is said where the block is read
            started = bool(names) or self.begins_line() is False
            key = self.expand(self.take())
            text = key.text
            if self.glued(key):
                names.append(key._replace(text=text[:-1]))
                return names, True
            more = text.endswith(",")
            if more:
                text = text[:-1]
            if text:
                names.append(key._replace(text=text))
            elif not more and not started:
                # An empty key (an unset variable): the line may still hold others, or open a block with no keys.
                more = not self.begins_line() or (self.peek() is not None and self.stream[self.at].text == "{")
                if not more:
                    return names, False

    def _snippet(self, name: Token, braced: bool) -> None:
        label = name.text[1:-1]
        if not braced:
            self.note(self.fail(name, f"expected '{{' after the snippet's name {name.text}"))
            self.skip_block()
            return
        if label in self.snippets:
            self.note(self.fail(name, f'snippet "{label}" is defined twice'))
        begin = self.at
        depth = 1
        self.indented = (token := self.peek()) is not None and token.at.column > name.at.column
        what = f"the snippet that begins at {name.at}"
        while depth:
            token = self.peek()
            if token is None:
                self.end(what)
                self.snippets.setdefault(label, self.stream[begin : self.at])
                return
            if self.cuts(what):
                self.snippets.setdefault(label, self.stream[begin : self.at])
                return
            if not token.quoted:
                depth += (token.text == "{") - (token.text == "}")
                if token.text == "import" and self.begins_line():
                    target = self.stream[self.at + 1] if self.at + 1 < len(self.stream) else None
                    if target is not None and target.text == label:
                        self.note(self.fail(target, f'snippet "{label}" imports itself'))
                        self.snippets[label] = []  # whoever imports it goes on without
            self.take()
        self.snippets.setdefault(label, self.stream[begin : self.at - 1])

    # Directives.

    def _directive(self, block: ServerBlock, name: Token) -> None:
        if self.known is not None and name.text not in self.known:
            hint = did_you_mean(name.text, self.suggestions)
            if name.text.endswith("{"):
                hint = ' (a space is missing before "{")'
            removed = REMOVED.get(name.text)
            self.note(self.fail(name, f'unknown directive "{name.text}"{f": {removed}" if removed else hint}'))
            block.faults.append(name.text)
            self._line(name)
            return
        line = self._line(name)
        directive = Directive(line.name, line.args, line.body)
        block.directives.setdefault(name.text, []).append(directive)

    def _line(self, name: Token) -> Line:
        """A line from its first token (still to be taken): arguments, and a block if it opens one."""
        self.take()
        self.seen.append(f"{name.at} {name.text}")
        args: list[Token] = []
        body: tuple[Line, ...] | None = None
        if name.text.endswith("{") and len(name.text) > 1 and not name.quoted and self.errors and self.begins_line():
            return Line(name, (), self._body(name, name) or None)  # it was said what is wrong with it
        while self.peek() is not None and not self.begins_line():
            token = self.take()
            if token.text == "{" and not token.quoted:
                body = self._body(name, token)
                break
            if token.text == "}" and not token.quoted:
                self.note(self.fail(token, "unexpected '}': write it on its own line"))
                self.at -= 1
                break
            if self.glued(token):
                args.append(self.expand(token._replace(text=token.text[:-1])))
                body = self._body(name, token)
                break
            args.append(self.expand(token))
            self.seen.append(f"{token.at} {args[-1].text}")
        return Line(name, tuple(args), body or None)

    def _body(self, name: Token, brace: Token) -> tuple[Line, ...]:
        lines: list[Line] = []
        token = self.peek()
        if token is not None and not self.begins_line() and token.text != "}":
            self.note(
                self.fail(token, f"expected a new line after '{{': write each option of {name.text} on its own line")
            )
            self.skip_line()
        self.seen.append("{")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.fail(brace, f"blocks are nested more than {MAX_DEPTH} deep")
        what = f"the block of {name.text} that begins at {brace.at}"
        while True:
            token = self.peek()
            if token is None:
                self.end(what)
                break
            if self.cuts(what, name if lines and lines[0].at.column > name.at.column else None):
                break
            if token.text == "}" and not token.quoted:
                self.take()
                self.seen.append("}")
                after = self.peek()
                if after is not None and not self.begins_line():
                    self.note(self.fail(after, f"expected a new line after the '}}' of {name.text}"))
                    self.skip_line()
                break
            if token.text == "{" and not token.quoted:
                self.note(self.fail(token, "unexpected '{'"))
                self.skip_block()
                continue
            if token.text == "import" and not token.quoted:
                self._import()
                continue
            lines.append(self._line(self.expand(token)))
        self.depth -= 1
        return tuple(lines)

    # Imports.

    def _import(self) -> None:
        """Puts what an `import` names in the stream, in the place of the two tokens."""
        begin = self.at
        word = self.take()
        if self.peek() is None or self.begins_line():
            self.note(self.fail(word, "expected a file, a pattern or a snippet after import"))
            return
        target = self.expand(self.take())
        if self.peek() is not None and not self.begins_line():
            self.note(self.fail(self.peek(), "import takes one argument"))
            self.skip_line()
            return
        if not target.text:
            self.note(self.fail(target, "import of an empty name"))
            return
        self.seen.append(f"{word.at} import {target.text}")
        found: list[Token] = []
        ends: list[tuple[int, str]] = []
        if target.text in self.snippets:
            self.snippet_uses += 1
            if self.snippet_uses > MAX_SNIPPETS:
                raise self.fail(target, f"more than {MAX_SNIPPETS} snippets imported: does one import itself?")
            found = self.snippets[target.text]
        else:
            self.imports += 1
            if self.imports > MAX_IMPORTS:
                raise self.fail(target, f"more than {MAX_IMPORTS} files imported: does one import itself?")
            open_files = self._open_files(begin)
            for path in self._files(target):
                if path in open_files:
                    self.note(self.fail(target, f"{path} imports itself"))
                    continue
                if path not in self.files:
                    self.files[path] = self._read(target, path)
                found += self.files[path]
                ends.append((len(found), path))
        if len(self.stream) + len(found) > MAX_TOKENS:
            raise self.fail(target, f"imports add up to over {MAX_TOKENS} words: does one import itself?")
        if ends:
            after = len(self.stream) - self.at + len(found)
            self.reading.append([(after - end, path) for end, path in reversed(ends)])
        self.stream[begin : self.at] = found
        self.at = begin

    def _read(self, target: Token, path: str) -> list[Token]:
        """A file's tokens; none where it cannot be read."""
        try:
            return tokens(self.reader.read(path), self.reader.shown(path))
        except OSError as error:
            # A name that is no path may be a snippet's, of a file that could not be read.
            if not (self.unread and not any(sign in target.text for sign in "./")):
                self.note(self.fail(target, f"cannot import {path}: {error.strerror or error}"))
        except CorefileError as error:
            self.note(error)
        self.unread = True
        return []

    def _open_files(self, at: int) -> list[str]:
        """The files that the token at this place was read in and through, the outermost first."""
        rest = len(self.stream) - at
        while True:
            group = self.reading[-1]
            while group and group[-1][0] >= rest:
                group.pop()
            if group:
                return [files[-1][1] for files in self.reading]
            self.reading.pop()

    def _files(self, target: Token) -> list[str]:
        text = target.text
        path = text if os.path.isabs(text) else os.path.join(os.path.dirname(os.path.abspath(target.at.file)), text)
        if text.count("*") > 1 or text.count("?") > 1 or ("[" in text and "]" in text):
            self.note(self.fail(target, f'pattern "{text}" holds more than one "*" or "?", or brackets'))
            return []
        if "*" not in text and "?" not in text:
            return [path]
        folders = [os.path.dirname(path)]
        if any(sign in folders[0] for sign in "*?"):
            above, pattern = os.path.split(folders[0])
            folders = [os.path.join(above, name) for name in self._names(above, pattern)]
        last = os.path.basename(path)
        # In lexical order, dot-files too, as Go's filepath.Glob does.
        out = sorted(os.path.join(folder, name) for folder in folders for name in self._names(folder, last))
        if not out:
            self.warnings.append(f"No files matching import glob pattern: {text}")
        return out

    def _names(self, folder: str, pattern: str) -> list[str]:
        try:
            names = self.reader.list(folder)
        except OSError:
            return []
        return [name for name in names if fnmatch.fnmatchcase(name, pattern)]
