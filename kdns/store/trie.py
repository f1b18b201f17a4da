"""A label trie, root first, with an exact-name index in front of it.

    index[b"\\x03web\\x02n1\\x03svc\\x07cluster\\x05local\\0"] -> Node
    Node.children[b"web"]                                     -> Node, one label further from the root

Laws: a node exists only if it or something below it does, so a node without RRsets and answers is an empty non-terminal
(RFC 8020, section 2). Nodes are lean: a dict only when it has something in it, RRsets a tuple. A node owns the validity
of what is rendered for it: whatever replaces or removes any of that ends it.
"""

from typing import Final, final

from kdns.dns.answer import Answer, Validity
from kdns.dns.name import ROOT, labels
from kdns.dns.rrset import RRset

_NONE: Final[dict[int, Answer]] = {}


@final
class Node:
    """One name: its RRsets by type, and the answers rendered for it.

    `answers` holds what was rendered, by query type. Once `nodata` is set, `types` are all the types there are, and
    every other one gets that answer. A node does not refer to the one above it: that would be a cycle, which only the
    collector frees.
    """

    __slots__ = ("_validity", "answers", "children", "label", "name", "nodata", "rrsets", "types")

    def __init__(self, name: bytes, label: bytes) -> None:
        self.name = name
        self.label = label
        self.children: dict[bytes, Node] | None = None
        self.rrsets: tuple[RRset, ...] = ()
        self.answers: dict[int, Answer] = _NONE
        self.types: tuple[int, ...] = ()
        self.nodata: Answer | None = None
        self._validity: Validity | None = None

    def rrset(self, rtype: int) -> RRset | None:
        """The RRset of this type, if there is one."""
        for rrset in self.rrsets:
            if rrset.type == rtype:
                return rrset
        return None

    @property
    def validity(self) -> Validity:
        """How long what is said of this name holds: until the node changes or goes."""
        made = self._validity
        if made is None:
            made = self._validity = Validity()
        return made

    def find(self, qtype: int) -> Answer | None:
        """The answer for a query type, if it was rendered before or there is no such type here."""
        answer = self.answers.get(qtype)
        if answer is None and self.nodata is not None and qtype not in self.types:
            return self.nodata
        return answer

    def put(self, qtype: int, answer: Answer) -> None:
        """Holds a rendered answer for a query type, until the node changes or goes."""
        if qtype in self.answers:
            self.invalidate()
        answer.validity = self.validity
        if self.answers is _NONE:
            self.answers = {qtype: answer}
        else:
            self.answers[qtype] = answer

    def put_types(self, types: tuple[int, ...], nodata: Answer) -> None:
        """Says which types there are, and what all others get."""
        if self.nodata is not None:
            self.invalidate()
        nodata.validity = self.validity
        self.types = types
        self.nodata = nodata

    def invalidate(self) -> None:
        """Drops all that was rendered; none of it holds any more."""
        if self._validity is not None:
            self._validity.end()
            self._validity = None
        self.answers = _NONE
        self.types = ()
        self.nodata = None


@final
class Store:
    """The trie and its index. Names are lower-cased wire names."""

    def __init__(self) -> None:
        self.root = Node(ROOT, b"")
        self.index: dict[bytes, Node] = {}

    def __len__(self) -> int:
        return len(self.index)

    def get(self, name: bytes) -> Node | None:
        """The node of exactly this name."""
        return self.index.get(name)

    def above(self, node: Node) -> Node | None:
        """The node one label nearer the root; None above the root, and for one that went.

        It is looked up: nodes that held the one above them would be cycles, and no reference count would free a store.
        """
        name = node.name
        if name == ROOT or self.index.get(name) is not node:
            return None
        rest = name[name[0] + 1 :]
        return self.root if rest == ROOT else self.index.get(rest)

    def closest(self, name: bytes) -> tuple[Node, int]:
        """The closest encloser (RFC 4592, section 3.3.1) and the offset in `name` where it begins; the root at
        worst.
        """
        index = self.index
        off = 0
        while size := name[off]:
            node = index.get(name[off:] if off else name)
            if node is not None:
                return node, off
            off += size + 1
        return self.root, off

    def add(self, name: bytes) -> Node:
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
                    child = Node(name[len(name) - size :], part)
                    if node.children is None:
                        node.children = {}
                    node.children[part] = child
                    self.index[child.name] = child
                node = child
        return node

    def put(self, rrset: RRset) -> Node:
        """Sets an RRset, in the place of one of the same owner and type."""
        node = self.add(rrset.owner.lower())
        node.rrsets = (*[old for old in node.rrsets if old.type != rrset.type], rrset)
        node.invalidate()
        return node

    def remove(self, name: bytes, rtype: int | None = None) -> None:
        """Removes an RRset, or all of a name's; nodes that then hold nothing go too."""
        node = self.index.get(name)
        if node is None:
            return
        node.rrsets = tuple([r for r in node.rrsets if rtype is not None and r.type != rtype])
        node.invalidate()
        self._prune(node)

    def remove_subtree(self, name: bytes) -> None:
        """Removes a name and everything below it at once; parents that then hold nothing go too."""
        node = self.index.get(name)
        if node is None:
            return
        parent = self.above(node)
        pending = [node]
        while pending:
            gone = pending.pop()
            self.index.pop(gone.name, None)
            gone.invalidate()
            if gone.children is not None:
                pending.extend(gone.children.values())
            gone.children = None
        if parent is not None:
            _part(parent, node)
            self._prune(parent)

    def popitem(self) -> tuple[bytes, Node]:
        """Removes the name that came last, below which there is nothing. Raises KeyError where there is none."""
        node = self.index[next(reversed(self.index), ROOT)]
        above = self.above(node)
        del self.index[node.name]
        node.invalidate()
        if above is not None:
            _part(above, node)
        return node.name, node

    def _prune(self, node: Node) -> None:
        while not (node.children or node.rrsets or node.answers or node.nodata is not None):
            above = self.above(node)
            if above is None:
                return
            del self.index[node.name]
            node.invalidate()
            _part(above, node)
            node = above


def _part(above: Node, node: Node) -> None:
    """Takes a node away from the one above it."""
    if above.children is not None:
        above.children.pop(node.label, None)
        if not above.children:
            above.children = None
