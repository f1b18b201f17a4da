"""A label trie, root first, with an exact-name index in front of it.

    index[b"\\x03web\\x02n1\\x03svc\\x07cluster\\x05local\\0"] -> Node
    Node.children[b"web"]                                     -> Node, one label further from the root

Laws: a node exists only if it or something below it does, so a node without RRsets and answers is an empty
non-terminal (RFC 8020, section 2). Nodes are lean: a dict only when it has something in it, RRsets a tuple.
`generation` grows with every change. Nothing here decides what an answer is; that is `Zone`'s and its users'.
"""

from collections.abc import Iterator
from typing import Final, final

from kdns.dns.answer import Answer
from kdns.dns.name import ROOT, labels
from kdns.dns.rrset import RRset

APEX: Final = 1  # a zone begins here
CUT: Final = 2  # NS below the apex: a delegation (RFC 1034, section 4.2.1)
WILDCARD: Final = 4  # has a child `*` (RFC 4592)
_NONE: Final[dict[int, Answer]] = {}


@final
class Node:
    """One name: its RRsets by type, and answers rendered for it by query type."""

    __slots__ = ("answers", "children", "flags", "label", "name", "parent", "rrsets")

    def __init__(self, name: bytes, label: bytes, parent: "Node | None") -> None:
        self.name = name
        self.label = label
        self.parent = parent
        self.children: dict[bytes, Node] | None = None
        self.rrsets: tuple[RRset, ...] = ()
        self.answers: dict[int, Answer] = _NONE
        self.flags = 0

    def rrset(self, rtype: int) -> RRset | None:
        """The RRset of this type, if there is one."""
        for rrset in self.rrsets:
            if rrset.type == rtype:
                return rrset
        return None

    def keep(self, rtype: int, answer: Answer) -> None:
        """Remembers a rendered answer for a query type, until the node changes or goes; it is alive until then."""
        old = self.answers.get(rtype)
        if old is not None and old is not answer:
            old.alive = False
        answer.alive = True
        if self.answers is _NONE:
            self.answers = {rtype: answer}
        else:
            self.answers[rtype] = answer

    def forget(self) -> None:
        """Drops the rendered answers."""
        for answer in self.answers.values():
            answer.alive = False
        self.answers = _NONE


@final
class Store:
    """The trie and its index. Names are lower-cased wire names."""

    def __init__(self) -> None:
        self.root = Node(ROOT, b"", None)
        self.index: dict[bytes, Node] = {}
        self.generation = 0

    def get(self, name: bytes) -> Node | None:
        """The node of exactly this name."""
        return self.index.get(name)

    def closest(self, name: bytes) -> tuple[Node, int]:
        """The closest encloser (RFC 4592, section 3.3.1) and the offset in `name` where it begins; the root at worst."""
        index = self.index
        off = 0
        while size := name[off]:
            node = index.get(name[off:] if off else name)
            if node is not None:
                return node, off
            off += size + 1
        return self.root, off

    def add(self, name: bytes, flags: int = 0) -> Node:
        """The node of this name, made with all that lead to it where it is missing."""
        node = self.index.get(name)
        if node is None:
            node = self.root
            parts = labels(name)
            size = 1
            for i in range(len(parts) - 1, -1, -1):
                part = parts[i]
                size += len(part) + 1
                child = node.children.get(part) if node.children is not None else None
                if child is None:
                    child = Node(name[len(name) - size :], part, node)
                    if node.children is None:
                        node.children = {}
                    node.children[part] = child
                    self.index[child.name] = child
                    if part == b"*":
                        node.flags |= WILDCARD
                node = child
            self.generation += 1
        node.flags |= flags
        return node

    def put(self, rrset: RRset) -> Node:
        """Sets an RRset, in the place of one of the same owner and type."""
        node = self.add(rrset.owner.lower())
        node.rrsets = (*(old for old in node.rrsets if old.type != rrset.type), rrset)
        node.forget()
        self.generation += 1
        return node

    def discard(self, name: bytes, rtype: int | None = None) -> None:
        """Removes an RRset, or all of a name's; nodes that then hold nothing go too."""
        node = self.index.get(name)
        if node is None:
            return
        node.rrsets = tuple(r for r in node.rrsets if rtype is not None and r.type != rtype)
        node.forget()
        if not node.rrsets:
            node.flags &= ~APEX
        self.generation += 1
        self._prune(node)

    def drop(self, name: bytes) -> None:
        """Removes a name and everything below it at once; parents that then hold nothing go too."""
        node = self.index.get(name)
        if node is None:
            return
        self.generation += 1
        parent = node.parent
        pending = [node]
        while pending:
            gone = pending.pop()
            self.index.pop(gone.name, None)
            gone.forget()
            if gone.children is not None:
                pending.extend(gone.children.values())
            gone.parent = gone.children = None
        if parent is not None and parent.children is not None:
            parent.children.pop(node.label, None)
            if node.label == b"*":
                parent.flags &= ~WILDCARD
            self._prune(parent)

    def walk(self, name: bytes) -> Iterator[Node]:
        """A node and all below it, parents first."""
        node = self.root if name == ROOT else self.index.get(name)
        pending = [node] if node is not None else []
        while pending:
            node = pending.pop()
            yield node
            if node.children is not None:
                pending.extend(node.children.values())

    def _prune(self, node: Node) -> None:
        while not (node.children or node.rrsets or node.answers or node.flags & APEX) and node.parent is not None:
            parent = node.parent
            del self.index[node.name]
            assert parent.children is not None
            del parent.children[node.label]
            if not parent.children:
                parent.children = None
            if node.label == b"*":
                parent.flags &= ~WILDCARD
            node.parent = None
            node = parent
