"""The master-file reader: every type there and back, beside dnspython; directives; what is wrong, with its place."""

import random
import tracemalloc
from pathlib import Path

import dns.rdataclass
import dns.rdatatype
import dns.zone
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdns.dns import iana
from kdns.dns.name import from_text
from kdns.zonefile import reader, types
from kdns.zonefile.errors import ZoneFileError
from kdns.zonefile.reader import MasterFile
from kdns.zonefile.words import split

ORIGIN = from_text("example.org.")
HEAD = "$TTL 3600\n@ IN SOA ns.example.org. hostmaster.example.org. 1 7200 3600 1209600 300\n@ IN NS ns\n"


def read(text: str | bytes, origin: bytes = ORIGIN, *, head: bool = True) -> MasterFile:
    data = text.encode() if isinstance(text, str) else text
    made = MasterFile(origin)
    made.read_text(HEAD.encode() + data if head else data, "db")
    made.finish()
    return made


def records(text: str, **options: bool) -> set[tuple[bytes, int, int, bytes]]:
    return {
        (owner, key & 0xFFFF, found[0], data)
        for owner, sets in read(text, **options).names.items()
        for key, found in sets.items()
        for data in found[1:]
    }


def complaint(text: str | bytes) -> str:
    with pytest.raises(ZoneFileError) as caught:
        read(text)
    return str(caught.value)


RDATA = [
    "A 192.0.2.1", "NS ns.example.net.", "CNAME @", "PTR host", "HINFO cpu \"an os\"", "MX 10 mail",
    'TXT "a b" c "\\"\\255;"',
    "RP mail. txt.example.org.", "AFSDB 1 afs", "KEY 256 3 13 AwEAAQ==", "AAAA 2001:db8::1", "X25 3110",
    "ISDN 150862 004", "RT 2 relay",
    "LOC 52 22 23.000 N 4 53 32.000 E -2.00m 0.00m 10000m 10m", "LOC 1 S 2 3 W 5m", "SRV 0 5 5060 sip",
    "PX 10 a.b. c.d.",
    'NAPTR 100 10 "u" "E2U+sip" "!^.*$!sip:info@example.com!" .', "KX 1 kx", "CERT PKIX 0 RSASHA256 AwEAAQ==",
    "DNAME other.example.",
    "APL 1:192.168.32.0/21 !1:192.168.38.0/28 2:ff00::/8", "DS 60485 5 1 2BB183AF5F22588179A53B0A98631FAD1A292118",
    "SSHFP 2 1 123456789abcdef67890123456789abcdef67890",
    "IPSECKEY 10 1 2 192.0.2.38 AQNRU3mG7TVTO2BkR47usntb102uFJtugbo6BSGvgqt4AQ==",
    "IPSECKEY 10 0 2 . AQNR", "IPSECKEY 10 3 2 gw AQNR", "IPSECKEY 10 2 2 2001:db8::1 AQNR",
    "RRSIG A 5 3 86400 20300322173103 20300220173103 2642 example.org. oJB1W6WNGv+ldvQ3WDG0MQkg5IEhjRip8WTr",
    "NSEC host.example.com. A MX RRSIG NSEC TYPE1234", "DNSKEY 256 3 ED25519 AwEAAQ==",
    "DHCID AAIBY2/AuCccgoJbsaxcQc9TUapptP69lOjxfNuVAA2kjEA=",
    "NSEC3 1 1 12 aabbccdd 2vptu5timamqttgl4luu9kg21e0aor3s MX RRSIG",
    "NSEC3 1 0 0 - 2vptu5timamqttgl4luu9kg21e0aor3s", "NSEC3PARAM 1 0 0 -", "TLSA 3 1 1 " + "d2" * 32,
    "SMIMEA 3 1 0 d2ab",
    "HIP 2 200100107B1A74DF365639CC39F1D578 AwEAAbdxyhNuSutc5EMzxTs9LBPCIkOFH8cIvM4p rvs.example.com.",
    "CDS 0 0 0 00", "CDNSKEY 0 3 0 AA==", "OPENPGPKEY AwEAAQ==", "CSYNC 66 3 A NS AAAA",
    "ZONEMD 2018031900 1 1 " + "ab" * 48,
    'SVCB 1 . alpn="h2,h3" port=8443 ipv4hint=192.0.2.1,192.0.2.2 ipv6hint=2001:db8::1 key667=hello', "SVCB 0 svc",
    "HTTPS 16 foo mandatory=alpn alpn=h2",
    'HTTPS 1 . dohpath="/q{?dns}"', "SPF \"v=spf1 -all\"", "EUI48 00-00-5e-00-53-2a",
    "GPOS -32.6882 116.8652 10.0", "NINFO \"a\" \"b\"",
    "NID 10 0014:4fff:ff20:ee64", "L32 10 192.0.2.1", "L64 10 2001:0db8:1140:1000", "LP 10 l64.example.",
    "AVC \"app-name:x\"", "AMTRELAY 10 0 1 203.0.113.15", "AMTRELAY 10 1 3 relay.example.", "AMTRELAY 128 0 0 .",
    "AMTRELAY 10 0 2 2001:db8::15", "RESINFO \"qnamemin\"", "WALLET \"x\" \"y\"",
    "DLV 12345 8 2 " + "ab" * 32, "EUI64 00-00-5e-ef-10-00-00-2a",
    'URI 10 1 "ftp://ftp1.example.com/public"', 'CAA 0 issue "ca.example.net; x=1"', "TYPE731 \\# 6 abcdef 012345",
    "TYPE62347 \\# 0",
    "A \\# 4 0A000001", "NSAP 0x47.0005.80.005a00.0000.0001.e133.ffffff000161.00", "NSAP-PTR host",
    "DSYNC CDS NOTIFY 5359 scanner.example.net.", "DSYNC TYPE65280 200 53 @",
]  # fmt: skip


@pytest.mark.parametrize(("text", "octets"), [
    ("EID 12 89 AB", "1289ab"), ("NIMLOC 12 89 AB", "1289ab"), ("TALINK . b.", "00016200"),
    ("RKEY 0 255 1 AQMF", "0000ff01010305"),
    ('DOA 0 1 2 "" aHR0', "0000000000000001020068" "7474"), ('DOA 1 2 3 "t"', "0000000100000002030174"),
    ("TA 1 13 2 ab", "00010d02ab"), ("HHIT aHR0", "687474"), ("BRID aHR0", "687474"),
])  # fmt: skip
def test_types_that_dnspython_does_not_know_are_read_and_printed(text: str, octets: str) -> None:
    word, _, rest = text.partition(" ")
    rtype = iana.type_number(word)
    assert rtype is not None
    made = types.read(rtype, split(rest.encode(), 0, ORIGIN))
    assert made.hex() == octets and types.fits(rtype, made)
    assert types.read(rtype, split(types.show(rtype, made).encode(), 0, b"\0")) == made


@pytest.mark.parametrize(("text", "expected"), [
    ("x NSAP 0x", "db:4:8: expected an address such as"), ("x NSAP 0x123", "expected an address such as"),
    ("x NSAP 47", "expected an address such as"),
    ("x DNSKEY 257 3 13", "db:4:16: expected octets in base64, found the end of the record"),
    ("x CERT 1 2 3 ; nothing", "db:4:12: expected octets in base64"),
    ("x TYPE731", "db:4:3: type TYPE731 has no text form"),
    ("x HTTPS 1 . port", "db:4:13: this parameter needs a value"),
    ("x HTTPS 1 . mandatory=alpn,alpn alpn=h2", "one of these stands twice"),
    (r"x HTTPS 1 . alpn=a\\b", "commas and backslashes are escaped"),
    (r"x HTTPS 1 . alpn=a\\", "commas and backslashes are escaped"),
    ("x NSEC3 1 0 0 - CPNMU", "a hash of SHA-1 has 20 octets"),
    ("x NSEC3 1 0 0 - 2T7B4G4VSA5SMI47K61MV5BV1A22BOJR A", ""), ("x NSEC3 2 0 0 - CPNMU", ""),
])  # fmt: skip
def test_what_is_missing_or_wrong_has_its_place(text: str, expected: str) -> None:
    if expected:
        assert expected in complaint(text + "\n")
    else:
        read(text + "\n")


def test_an_item_of_a_list_may_hold_a_comma_and_a_backslash() -> None:
    made = types.read(iana.HTTPS, split(rb'1 . alpn="f\\\\oo\\,bar,h2"', 0, ORIGIN))
    assert made == dns.rdata.from_text("IN", "HTTPS", r'1 . alpn="f\\\\oo\\,bar,h2"').to_wire()
    assert b"\x08f\\oo,bar\x02h2" in made


@pytest.mark.parametrize("text", RDATA)
def test_every_types_rdata_is_read_as_dnspython_reads_it_and_printed_so_that_it_is_read_again(text: str) -> None:
    word, _, rest = text.partition(" ")
    rtype = iana.type_number(word)
    assert rtype is not None
    made = types.read(rtype, split(rest.encode(), 0, ORIGIN))
    peer = dns.rdata.from_text(
        dns.rdataclass.IN, rtype, rest, origin=dns.name.from_text("example.org."), relativize=False
    )
    assert made == peer.to_wire()
    again = types.show(rtype, made)
    assert types.read(rtype, split(again.encode(), 0, b"\0")) == made
    assert types.read(rtype, split(f"\\# {len(made)} {made.hex()}".encode(), 0, b"\0")) == made
    assert types.fits(rtype, made)
    if rtype in types.LAYOUTS and word not in ("DHCID", "OPENPGPKEY", "NSAP"):  # any octets do
        assert not types.fits(rtype, made[:1])


def test_the_groups_of_a_service_are_numbers_of_two_octets() -> None:
    """dnspython 2.9 does not know this parameter by name."""
    for text in ("1 . alpn=h2 tls-supported-groups=4588,29,65535", '1 . tls-supported-groups="4588,29,65535" alpn=h2'):
        made = types.read(iana.HTTPS, split(text.encode(), 0, ORIGIN))
        peer = dns.rdata.from_text("IN", "HTTPS", "1 . alpn=h2 key9=\\017\\236\\000\\029\\255\\255")
        assert made == peer.to_wire()
        assert types.show(iana.HTTPS, made) == '1 . alpn="h2" tls-supported-groups=4588,29,65535'
    assert types.fits(iana.HTTPS, made) and not types.fits(iana.HTTPS, made[:-1])


@pytest.mark.parametrize(("value", "expected"), [
    ("", "needs a value"), ("=", "needs a value"), ("=29,29", "stands twice"), ("=29,", "expected a number"),
    ("=x25519", "expected a number"), ("=65536", "expected a number"), ("=29 key9=\\000\\029", "stands twice"),
])  # fmt: skip
def test_groups_of_a_service_that_are_none_are_named(value: str, expected: str) -> None:
    assert expected in complaint(f"svc HTTPS 1 . tls-supported-groups{value}\n")


ZONE = """\
$ORIGIN example.org.
@ 3600 IN SOA ns hostmaster ( 2024010101 ; serial
    2h 1h 2w
    5m )
  NS ns
$TTL 1h
ns A 192.0.2.1
   AAAA 2001:db8::1 ; a comment
www 300 IN CNAME ns
mail IN 600 A 192.0.2.2
@ MX 10 mail
  TXT ( "one"
        two )
\\065\\.b.c A 192.0.2.3
UPPER.Case A 192.0.2.4
$ORIGIN sub
x A 192.0.2.5
$ORIGIN .
y.example.org 5 IN AAAA ::1
*.example.org. IN A 192.0.2.9
_sip._tcp.example.org. SRV 0 5 5060 ns.example.org.
@.example.org. A 192.0.2.10
"""


def test_a_zone_is_read_as_dnspython_reads_it() -> None:
    peer = dns.zone.from_text(ZONE.replace("$ORIGIN sub", "$ORIGIN sub.example.org."), "example.org.", relativize=False)
    expected = {
        (owner.canonicalize().to_wire(), int(rdata.rdtype), ttl, rdata.to_wire())
        for owner, ttl, rdata in peer.iterate_rdatas()
    }
    assert records(ZONE, head=False) == expected


def test_crlf_a_byte_order_mark_and_a_missing_last_line_end_are_no_fault() -> None:
    odd = b"\xef\xbb\xbf" + (HEAD + "www A 192.0.2.1").replace("\n", "\r\n").encode()
    plain = read("www A 192.0.2.1\n").names
    made = MasterFile(ORIGIN)
    made.read_text(odd, "db")
    assert made.finish() == plain


LINES = st.lists(
    st.sampled_from([
        "www A 192.0.2.1", "  AAAA 2001:db8::1", "a.b 300 IN A 10.0.0.1", "@ MX 10 mail", "c CNAME www.example.org.",
        "\tTXT \"x y\"",
        "p PTR @", "_s._tcp 60 SRV 1 2 3 www", "d IN NS ns.d", "; nothing", "", "out.example.net. A 192.0.2.1",
        "www 300 A 192.0.2.7",
        "$TTL 5", "$ORIGIN x.example.org.", "bad A 1.2.3.256", "bad MX 70000 m", "e..f A 192.0.2.1",
        "*.w in A 192.0.2.3",
    "w 9999999999 A 1.1.1.1",
        "A A 192.0.2.1", "mx mx 10 mail", "x" * 64 + " A 192.0.2.1", "10 PTR ten", "  A 192.0.2.200 ; c", "t TXT \"\"",
        "C CNAME www.example.org.", "c2 CNAME x.Example.ORG.", "c2 CNAME y.Example.ORG.", "c2 NS x.y", "c2 NS z.y",
        "c2 NS x..y", "c2 NS .y", "c2 NS .", "c2 NS org.", "c2 NS @.y", "_s._tcp SRV 1  2\t3 x.y",
        "s SRV 1 2 99999 x.y",
        "s SRV 1 2 3 " + "x" * 64, "s MX 1 " + "x" * 64 + ".y", "WWW 300 TXT \"z\"",
        "$ORIGIN example.net.", "$ORIGIN Sub.Example.org.", "$ORIGIN " + "y" * 60 + "." + "z" * 60 + ".example.org.",
        "x" * 62 + "." + "y" * 63 + " NS " + "x" * 62 + "." + "y" * 63, "x" * 63 + " NS " + "x" * 63,
        "$ORIGIN " + ("z" * 59 + ".") * 3 + "example.org.",
    ]),
    max_size=12,
)  # fmt: skip
HEAD_OF_RRSIG = "13 3 300 20300101000000 20200101000000 40910"
PROOF = "2T7B4G4VSA5SMI47K61MV5BV1A22BOJR"
# What signed zones have, and what looks like it and is wrong or odd.
SIGNED_LINES = st.lists(
    st.sampled_from([
        f"www 300 IN RRSIG A {HEAD_OF_RRSIG} example.org. AAAA", f"www RRSIG AAAA {HEAD_OF_RRSIG} @ AAAA BBBB ; c",
        f"www 60 RRSIG A {HEAD_OF_RRSIG} example.org. CCCC", f"www RRSIG A {HEAD_OF_RRSIG} sub AAAA\t",
        f"www RRSIG NONE {HEAD_OF_RRSIG} @ AAAA", f"www RRSIG A {HEAD_OF_RRSIG} @ A",
        f"www RRSIG A {HEAD_OF_RRSIG} @ ==",
        f"www RRSIG A {HEAD_OF_RRSIG} e..f AAAA", f"www RRSIG A {HEAD_OF_RRSIG} @", "www RRSIG A 13 3 AAAA",
        "www RRSIG A ECDSAP256SHA256 3 300 1893456000 0 1 @ AAAA", "www RRSIG A 256 3 300 1 0 1 @ AAAA",
        "www RRSIG A 13 3 300 20301301000000 0 1 @ AAAA", "www RRSIG A 13 3 300 1 0 1 @ \\# AAAA",
        "www NSEC x A RRSIG NSEC", "  300 NSEC @ TYPE1234 A", "www NSEC e..f A", "www NSEC x", "www NSEC x AB NSEC",
        "www NSEC * A A ; c", "www NSEC a\\.b A", f"www NSEC {'x' * 64} A",
        f"h NSEC3 1 0 0 - {PROOF} A RRSIG", f"h 300 NSEC3 1 1 10 AABB {PROOF.lower()}", "h NSEC3 1 0 0 - A A",
        f"h NSEC3 256 0 0 - {PROOF} A", f"h NSEC3 1 0 0 XY {PROOF} A", f"h NSEC3 1 0 0 - {PROOF}1 A", "h NSEC3 1 0 0 -",
        "$ORIGIN sub.example.org.", "$TTL 7", "www A 192.0.2.1",
    ]),
    max_size=12,
)  # fmt: skip


@settings(max_examples=400)
@given(st.one_of(LINES, SIGNED_LINES))
def test_simple_lines_are_read_by_the_short_way_as_by_the_long_one(lines: list[str]) -> None:
    found = []
    data = (HEAD + "\n".join(lines)).encode()
    for short in (True, False):
        made = MasterFile(ORIGIN)
        usual = reader._FAST
        try:
            if not short:
                reader._FAST = reader.re.compile(b"(?!)")  # type: ignore[misc]
            made.read_text(data, "db")
        finally:
            reader._FAST = usual  # type: ignore[misc]
        found.append((made.names, sorted(made.problems), made.count))
    names, problems, count = found[0]
    assert {owner: sets for owner, sets in names.items() if sets} == {
        owner: sets for owner, sets in found[1][0].items() if sets
    }
    assert (problems, count) == found[1][1:]


@pytest.mark.parametrize(("text", "expected"), [
    ("www A 192.0.2.999\n", 'db:4:7: expected an IPv4 address, found "192.0.2.999"'),
    ("www A\n", "db:4:5: expected an address, found the end of the record"), ("www A 192.0.2.1 x\n",
    'db:4:17: unexpected "x" behind the record'),
    ("www BOGUS x\n", 'db:4:5: unknown type "BOGUS"'), ("a..b A 192.0.2.1\n", 'db:4:1: empty label in name "a..b"'),
    ("x" * 64 + " A 192.0.2.1\n", "db:4:1: label of 64 octets"), ("ok A 192.0.2.1\nwww CH A 192.0.2.1\n",
    "db:5:5: class CH: only IN is served"),
    ("www TXT (\n a\n", "db:4:9: a parenthesis that is not closed"), ("www TXT a )\n",
    "db:4:11: a parenthesis is closed that was not opened"),
    ('www TXT "abc\n', "db:4:9: a quote without its partner on the line"),
    ("www TXT a\\", "db:4:10: a backslash at the end of the line"),
    ("www TXT \\300\n", 'db:4:9: bad escape "\\300"'),
    ("www TXT " + "x" * 256 + "\n", "db:4:9: a string of 256 octets"),
    ("www MX 65536 m\n", 'db:4:8: expected a number up to 65535, found "65536"'), ("www 4294967295 A 192.0.2.1\n",
    "db:4:5: a TTL of 4294967295 seconds"),
    ("$BOGUS x\n", 'db:4:1: unknown directive "$BOGUS"'), ("$TTL x\n", "db:4:6: expected a TTL"),
    ("$ORIGIN\n", "db:4:1: expected a name"),
    ("www TYPE255 \\# 0\n", "db:4:5: a record of type ANY cannot stand in a zone"), ("www TYPE999 x\n",
    "type TYPE999 has no text form here"),
    ("www A \\# 3 010203\n", "db:4:10: these octets do not fit A"),
    ("www A \\# 4 0102\n", 'the length says "4", but 2 octets follow'),
    ("www A 192.0.2.1\nwww CNAME x\n", "db:5:1: www.example.org. has a CNAME beside A: a CNAME stands alone (RFC 1034, "
        "section 3.6.2)"),
    ("www CNAME x\nwww CNAME y\n", "www.example.org. has more than one CNAME (RFC 2181, section 10.1)"),
    ("@ SOA a b 2 1 1 1 1\n", "db:4:1: a second SOA of example.org.; the first is in line 2"),
    ("d DNAME a.\nd DNAME b.\n", "db:5:1: a second DNAME of d.example.org."), ("$INCLUDE nowhere\n",
    "db:4:10: $INCLUDE nowhere: No such file or directory"),
    ("$GENERATE 1-70000 h$ A 192.0.2.1\n", "db:4:11: a range of more than 65536 steps"),
    ("$GENERATE 5-1 h$ A 192.0.2.1\n",
    "leads nowhere"),
    ("$GENERATE 1-300 h$ A 192.0.2.$\n", 'db:4:1: $GENERATE: expected an IPv4 address, found "192.0.2.256"'),
    ("$GENERATE 1-3 h${x} A 192.0.2.$\n", "expected ${OFFSET,WIDTH,BASE}"),
    (b"\x00\x01\xff\x00 \x02\n", "unknown type"),
    ("www SVCB 1 . alpn=h2 alpn=h3\n", 'parameter "alpn" stands twice'), ("www SVCB 1 . mandatory=port\n",
    "a mandatory parameter is missing"),
    ("www LOC 91 N 0 E 0m\n", "expected a number up to 90"),
    ("www RRSIG A 5 3 1 20301322173103 1 1 . AA==\n", 'no time: "20301322173103"'),
    ("www NSEC3 1 0 0 - !!\n", "expected octets in base32"),
    ("www NSEC3 1 0 0 - 2vptu5timamqttgl4luu9kg21e0aor3s==== A\n", "expected octets in base32"),
    ("www APL 3:x/1\n", "expected a prefix such as"),
])  # fmt: skip
def test_what_is_wrong_is_named_with_its_place(text: str | bytes, expected: str) -> None:
    assert expected in complaint(text)


def test_all_faults_of_a_file_are_named_at_once_and_their_number_is_bounded() -> None:
    with pytest.raises(ZoneFileError) as caught:
        read("a A x\nb A 192.0.2.1\nc MX y z\n")
    assert [problem.line for problem in caught.value.problems] == [4, 6] and "(and 1 more)" in str(caught.value)
    with pytest.raises(ZoneFileError) as caught:
        read("a A x\n" * 10_000)
    assert len(caught.value.problems) == reader.MAX_PROBLEMS


def test_a_zone_needs_an_soa_at_its_apex() -> None:
    with pytest.raises(ZoneFileError, match=r"no SOA of example\.org\."):
        read("www 60 A 192.0.2.1\n", head=False)


def test_the_first_record_must_have_an_owner_and_a_ttl() -> None:
    with pytest.raises(ZoneFileError, match=r"db:1:4: the first record of a file must say its owner"):
        read("   A 192.0.2.1\n", head=False)
    with pytest.raises(ZoneFileError, match="db:1:1: no TTL"):
        read("www A 192.0.2.1\n", head=False)


def test_what_is_odd_is_served_and_named() -> None:
    made = read("a 60 A 192.0.2.1\na 30 A 192.0.2.2\na 60 A 192.0.2.1\nwww.example.net. A 192.0.2.1\n")
    assert made.names[from_text("a.example.org.")][iana.A][0] == 30
    said = [str(problem) for problem in made.warnings]
    assert any(
        "db:5:1: the A records of a.example.org. differ in TTL: the lowest counts, 30 seconds" in line for line in said
    )
    assert any("db:7:1: www.example.net. is not in zone example.org.: left out" in line for line in said)
    assert from_text("www.example.net.") not in made.names


def test_an_soa_without_any_ttl_gives_its_minimum() -> None:
    made = read("@ SOA a b 1 1 1 1 77\n@ NS ns\nwww A 192.0.2.1\n", head=False)
    assert made.names[from_text("www.example.org.")][iana.A][0] == 77


def test_a_records_ttl_counts_for_those_after_it_until_a_directive_says_one() -> None:
    made = read(
        "@ 50 SOA a b 1 1 1 1 77\n@ NS ns\na 20 A 192.0.2.1\nb A 192.0.2.1\n$TTL 9\nc 20 A 192.0.2.1\nd A 192.0.2.1\n",
        head=False,
    )
    ttls = {owner[1:2]: sets[iana.A][0] for owner, sets in made.names.items() if iana.A in sets}
    assert ttls == {b"a": 20, b"b": 20, b"c": 20, b"d": 9}


def test_generate_counts_pads_and_turns_nibbles_around() -> None:
    made = read(
        "$GENERATE 9-11/2 h$ A 192.0.2.$\n$GENERATE 1-1 x${9,3,x} TXT ${0,2}-$$-\\$\n$GENERATE 254-254 ${0,4,n} PTR p\n"
    ).names
    assert (
        from_text("h9.example.org.") in made
        and from_text("h11.example.org.") in made
        and from_text("h10.example.org.") not in made
    )
    assert made[from_text("x00a.example.org.")][iana.TXT][1] == b"\x0601-$-$"
    assert from_text("e.f.example.org.") in made


def test_an_included_file_has_an_origin_of_its_own_and_gives_back_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "db").write_text(HEAD + "$INCLUDE sub/a in\nwww A 192.0.2.1\n$INCLUDE sub/a\n  AAAA ::1\n")
    (tmp_path / "sub" / "a").write_text("x A 192.0.2.2\n$ORIGIN deep.example.org.\ny A 192.0.2.3\n")
    made = MasterFile(ORIGIN)
    made.read(str(tmp_path / "db"))
    names = made.finish()
    assert from_text("x.in.example.org.") in names and from_text("y.deep.example.org.") in names
    assert set(names[from_text("www.example.org.")]) == {iana.A, iana.AAAA}
    assert [Path(each.path).name for each in made.seen] == ["db", "a", "a"]


def test_files_that_include_themselves_end(tmp_path: Path) -> None:
    (tmp_path / "db").write_text(HEAD + "$INCLUDE db\n")
    made = MasterFile(ORIGIN)
    made.read(str(tmp_path / "db"))
    with pytest.raises(ZoneFileError, match="more than 7 deep"):
        made.finish()


def test_octets_of_any_kind_never_break_the_reader() -> None:
    chance = random.Random(7)
    for _ in range(300):
        data = bytearray(ZONE.encode())
        for _ in range(chance.randrange(1, 12)):
            data[chance.randrange(len(data))] = chance.choice(b'()";\\\n $@.\x00\xff')
        made = MasterFile(ORIGIN)
        made.read_text(bytes(data), "db")


def test_a_long_line_and_a_long_record_are_named_and_nothing_grows() -> None:
    assert "a word of 3000000 octets" in complaint(b"www TXT " + b"x" * 3_000_000)
    assert "a record of more than 40000 words" in complaint(b"www TXT (" + b"x\n" * 100_000 + b")\n")


def read_traced(data: bytes) -> tuple[MasterFile, int]:
    """A file that was read, and the most octets of memory that this took."""
    made = MasterFile(ORIGIN)
    tracemalloc.start()
    try:
        made.read_text(data, "db")
        return made, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("line", [
    b"www TXT %s", b'www TXT "%s"', b'www TXT "%s', b"$%s", b"%s A 192.0.2.1", b"www A ( %s", b"www RRSIG A 13 %s",
])  # fmt: skip
@pytest.mark.parametrize("octets", [b"x", b"\\x", b"\0", b"x ", b"A "])
def test_a_long_line_took_275_octets_of_memory_for_each_of_its_own(line: bytes, octets: bytes) -> None:
    data = HEAD.encode() + line % (octets * (1_000_000 // len(octets))) + b"\nok A 192.0.2.1\n"
    made, peak = read_traced(data)
    assert peak < 8_000_000 and made.problems and made.problems[0].line == 4
    assert b"(" in line or from_text("ok.example.org.") in made.names


@pytest.mark.parametrize("line", ["\n", "; nothing\n", " \t\r\n"])
def test_lines_with_nothing_in_them_took_275_octets_of_memory_each(line: str) -> None:
    made, peak = read_traced(HEAD.encode() + line.encode() * 300_000 + b"ok A 192.0.2.1\n")
    assert peak < 8_000_000 and from_text("ok.example.org.") in made.names and not made.problems
