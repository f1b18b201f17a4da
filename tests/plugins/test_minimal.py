"""minimal: answers without what nobody needs."""

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.rrset

from kdns.testing import answer, block, code, data, soa
from tests.fixtures import Serve, Start


def test_minimal_leaves_positive_answers_only_their_answer(serve: Serve, upstream: Start) -> None:
    def script(query: dns.message.Message, proto: str) -> dns.message.Message:
        none = query.question[0].name.to_text().startswith("no")
        reply = soa(answer(query)) if none else answer(query, "A 192.0.2.1")
        if not none:
            reply.authority.append(dns.rrset.from_text("org.", 60, "IN", "NS", "ns.org."))
            reply.additional.append(dns.rrset.from_text("ns.org.", 60, "IN", "A", "192.0.2.53"))
        return reply

    server = serve(block("minimal", f"forward . {upstream(script).address}"))
    reply = server.ask("yes.org.")
    assert data(reply) == ["192.0.2.1"] and not reply.authority and not reply.additional
    assert code(server.ask("no.org.")) == "NODATA"
