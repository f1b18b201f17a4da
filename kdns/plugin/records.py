"""dnslib's records, for plugins that would rather write `A("10.0.0.1")` than octets.

Not on the way of a query that kdns answers itself: decoding costs some 40 µs. Every byte has been through our own
scanner before dnslib sees it, and whatever dnslib raises is a FormatError.
"""

from typing import Any

from dnslib import RR, DNSHeader, DNSQuestion, DNSRecord

from kdns.dns import reply
from kdns.dns.answer import Answer, Validity
from kdns.dns.edns import Edns
from kdns.dns.errors import FormatError
from kdns.dns.message import pack_query, parse_reply
from kdns.dns.query import Question


def decode(data: bytes) -> Any:
    """A `dnslib.DNSRecord` of a message that the scanner has accepted. Raises FormatError."""
    try:
        return DNSRecord.parse(data)
    except Exception as error:  # dnslib lets UnicodeDecodeError and others through
        raise FormatError(f"dnslib cannot read the message: {error}") from None


def record_of(answer: Answer, question: Question, reply_flags: int = 0, edns: Edns | None = None) -> Any:
    """The `dnslib.DNSRecord` of a reply to a question. Raises FormatError.

    `reply_flags` (REPLY_*) and `edns` are those of the query.
    """
    query = pack_query(0, question)
    body = answer.rendered(question.name)
    return decode(reply.pack(answer, body, query, 12 + len(question.wire), reply_flags, edns, 65535))


def answered(*lines: str, aa: bool = True, validity: Validity | None = None) -> Answer:
    """An Answer with records such as `www.example.org. 60 IN A 192.0.2.1`, as in a zone file. Raises FormatError.

    `validity` says how long the same question may get it (kdns.plugin.ALWAYS: as long as the configuration serves);
    without one it is given once.
    """
    made = DNSRecord(DNSHeader(qr=1, aa=int(aa)), q=DNSQuestion("."))
    for line in lines:
        try:
            made.add_answer(*RR.fromZone(line))
        except Exception as error:
            raise FormatError(f"{line!r} is not a record: {error}") from None
    return answer_of(made, validity=validity)


def answer_of(record: Any, *, local: bool = True, validity: Validity | None = None) -> Answer:
    """The Answer that a `dnslib.DNSRecord` reply holds. Raises FormatError where it cannot be packed."""
    try:
        packed = bytes(record.pack())
    except Exception as error:
        raise FormatError(f"dnslib cannot pack the reply: {error}") from None
    return parse_reply(packed).answer.replace(local=local, validity=validity)
