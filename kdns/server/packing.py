"""From an outcome to the octets of a reply: header, question as asked, body, OPT; truncated to fit, padded, signed.

What the way of a query adds is here too: the EDNS options for cookies and idle connections, and padding.
"""

from collections.abc import Callable, Iterator
from random import random
from typing import Final, final

from kdns.dns import edns as _edns
from kdns.dns import iana, reply
from kdns.dns.answer import Answer
from kdns.dns.errors import FormatError
from kdns.dns.query import parse_opt
from kdns.dns.render import render
from kdns.net import Address, MessageStream
from kdns.plugin.base import ServerCookies
from kdns.plugin.outcome import Drop, Outcome, RcodeOnly, Transfer
from kdns.plugin.request import Request
from kdns.server.accept import UPDATE

# How the COOKIE option of a reply begins, and what of a reply's end it is.
_COOKIE_HEAD: Final = _edns.COOKIE.to_bytes(2, "big") + _edns.COOKIE_SIZE.to_bytes(2, "big")
_COOKIE_END: Final = _edns.COOKIE_SIZE + len(_COOKIE_HEAD)


def ends_with_cookie(made: bytes) -> bool:
    """Whether a reply ends with a COOKIE option of full size, where another one fits."""
    return made[-_COOKIE_END : -_edns.COOKIE_SIZE] == _COOKIE_HEAD


@final
class Packer:
    """Makes the replies of one listener. `label` as the dispatcher has it.

    `failed` makes a failure of an exception, `panicked` counts and logs one that comes too late for that.
    """

    def __init__(
        self,
        label: str,
        failed: Callable[[Request, BaseException], RcodeOnly],
        panicked: Callable[[BaseException], None],
    ) -> None:
        self.failed = failed
        self.panicked = panicked
        # Whether a reply may be several messages: a request over HTTP has one answer.
        self.transfers = label.startswith(("dns://", "tls://"))
        self.secure = not label.startswith("dns://")  # encrypted, by us or by a proxy in front
        self.keepalive = b""  # the EDNS option that says how long connections are kept (RFC 7828)
        self.cookies: ServerCookies | None = None

    def close(self) -> None:
        """Lets go of who is told of exceptions: a dispatcher that its packer holds would be garbage only a long pass
        finds.
        """
        self.failed = _failed_late
        self.panicked = _unheard
        self.cookies = None

    def reply(self, request: Request, outcome: Outcome) -> bytes | MessageStream | None:
        """The reply that an outcome is, signed where the query was; None for none."""
        made = self._unsealed(request, outcome)
        seal = request.seal
        if seal is None or made is None:
            return made
        return seal(made) if type(made) is bytes else made

    def _unsealed(self, request: Request, outcome: Outcome) -> bytes | MessageStream | None:
        if type(outcome) is Answer:
            try:
                rotations = outcome.rotations
                if rotations:
                    outcome = rotations[int(random() * len(rotations))]
                return self.answer(request, outcome)
            except Exception as error:
                outcome = self.failed(request, error)
        if type(outcome) is Drop:
            return None
        if type(outcome) is Transfer:
            if request.transport == "tcp" and self.transfers:
                return MessageStream(_messages(request, outcome, self._added(request)[1]), self.panicked)
            if request.transport == "tcp":
                outcome = RcodeOnly(iana.NOTIMP, "a zone transfer needs TCP or TLS")
            else:
                outcome = self.failed(request, TypeError("a plugin gave a zone transfer over UDP"))
        assert type(outcome) is RcodeOnly
        added, padded = self._added(request)
        options = outcome.options + added
        made = reply.bare(request._data, request._end, outcome.rcode, request.edns, options, request.limit, padded)
        if request._data[2] & 0x78 == UPDATE:
            made = made[:2] + bytes((made[2] | iana.AA >> 8,)) + made[3:]
        return made

    def answer(self, request: Request, answer: Answer) -> bytes:
        """The whole reply of an answer. A body fits one question's name; for another one it is rendered anew."""
        asked = request.asked
        if answer.name:
            body = answer.rendered(asked.name)
        elif request.question is asked or request.question.name == asked.name:
            body = answer.body or answer.rendered(asked.name)
        else:
            body = render(asked.name, answer.sections)
        if answer.flags & iana.AD and not request.shows_ad:
            answer = answer.replace(flags=answer.flags & ~iana.AD)
        added, padded = self._added(request)
        return reply.pack(
            answer, body, request._data, request._end, request.reply_flags, request.edns, request.limit, added, padded
        )

    def cookie_alone(self, data: bytes, client: Address) -> bytes:
        """The reply to a query without a question that asks for a server cookie (RFC 7873, section 5.4)."""
        try:
            edns, options = parse_opt(data)
        except FormatError:
            return reply.refusal(data, iana.FORMERR, False)
        cookie = self._cookie(_edns.options(options), client)
        if not cookie:
            return reply.refusal(data, iana.FORMERR, False)
        return reply.bare(data, 12, iana.NOERROR, edns, cookie)

    def _added(self, request: Request) -> tuple[bytes, bool]:
        """What the way of a query adds to its reply: options, and whether it is padded."""
        tcp = request.transport == "tcp"
        if not request._options or not (tcp or self.cookies is not None):
            return b"", False
        options = _edns.options(request._options)
        codes = [code for code, _ in options]
        # RFC 7828, section 3.3.2; RFC 7830, section 4: replies are padded where the query was, and only if nobody can
        # look in.
        added = self.keepalive if tcp and _edns.KEEPALIVE in codes else b""
        if self.cookies is not None:
            added += self._cookie(options, request._client)  # the last: the reply cache puts another in its place
        return added, tcp and self.secure and _edns.PADDING in codes

    def _cookie(self, options: list[tuple[int, bytes]], client: Address) -> bytes:
        """The COOKIE option for a reply to a query with these options."""
        sent = next((payload for code, payload in options if code == _edns.COOKIE), b"")
        made = self.cookies(sent, client) if sent and self.cookies is not None else b""
        return _edns.option(_edns.COOKIE, made) if made else b""


def _failed_late(request: Request, error: BaseException) -> RcodeOnly:
    return RcodeOnly(iana.SERVFAIL, "the configuration was replaced")


def _unheard(error: BaseException) -> None:
    """An exception in what a replaced configuration still sends: its plugins may have lost what they need."""


def _messages(request: Request, transfer: Transfer, padded: bool) -> Iterator[bytes]:
    """The messages of a zone transfer, each with the question (RFC 5936, section 2.2), perhaps padded (RFC 9103)."""
    for records in transfer.messages:
        answer = Answer(iana.NOERROR, transfer.flags, records)
        body = answer.rendered(request.asked.name)
        made = reply.pack(
            answer, body, request._data, request._end, request.reply_flags, request.edns, 65535, padded=padded
        )
        yield made if request.seal is None else request.seal(made)
