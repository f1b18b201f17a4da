"""Negative answers are shared by all names of one length, so they may point into nothing but the zone's own suffix."""

import dns.message

from kdns.dns import iana, rdata, reply
from kdns.dns.answer import negative
from kdns.dns.name import from_text

ZONE = from_text("cluster.local.")
SOA = rdata.soa(b"\x02ns\x03dns" + ZONE, b"\x0ahostmaster" + ZONE, 7, 7200, 1800, 86400, 30)


def test_a_denial_made_for_a_name_with_hostmaster_in_it_was_malformed_for_others_of_its_length() -> None:
    for made_for in ("ab.hostmaster.cluster.local.", "nope.ns.dns.cluster.local.", "xdns.cluster.local."):
        name = from_text(made_for)
        body = negative(name, ZONE, iana.NXDOMAIN, iana.AA, 30, SOA).rendered(name)
        for other in (b"\x01x", b"\x03dns", b"\x0ahostmaster"):
            # Another name of that length below the zone, whose labels stand elsewhere.
            rest = len(name) - len(ZONE) - len(other) - 1
            asked = (
                other + bytes((rest,)) + b"y" * rest
                if rest > 0
                else bytes((len(other) + rest,)) + b"y" * (len(other) + rest)
            ) + ZONE
            if len(asked) != len(name):
                continue
            query = b"\0\1\1\0\0\1\0\0\0\0\0\0" + asked + b"\0\1\0\1"
            answer = negative(name, ZONE, iana.NXDOMAIN, iana.AA, 30, SOA)
            message = dns.message.from_wire(reply.pack(answer, body, query, len(query), 1, None, 512))
            record = message.authority[0][0]
            assert str(message.authority[0].name) == "cluster.local."
            assert (str(record.mname), str(record.rname)) == ("ns.dns.cluster.local.", "hostmaster.cluster.local.")  # type: ignore[attr-defined]
