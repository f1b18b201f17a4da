"""Zones with every kind of node there is: after the examples of RFC 4592 (2.2.1), RFC 4035 and RFC 5155 (appendix A),
and of our own.
"""

_HEAD = "$TTL 3600\n$ORIGIN {zone}\n@ SOA ns1 bugs.x.w 1 3600 300 3600000 1800\n"

# RFC 4592, section 2.2.1.
WILDCARDS = (
    _HEAD.format(zone="wild.example.")
    + """\
@ NS ns.example.com.
@ NS ns.example.net.
* TXT "this is a wildcard"
* MX 10 host1
sub.* TXT "this is not a wildcard"
host1 A 192.0.2.1
_ssh._tcp.host1 SRV 0 0 22 host1
_ssh._tcp.host2 SRV 0 0 22 host1
subdel NS ns.example.com.
subdel NS ns.example.net.
"""
)

# The nodes of RFC 4035's and RFC 5155's example zone.
EXAMPLE = (
    _HEAD.format(zone="example.")
    + """\
@ NS ns1
@ NS ns2
@ MX 1 xx
a NS ns1.a
a NS ns2.a
a DS 57855 5 1 B6DCD485719ADCA18E5F3D48A2331627FDD3636B
ns1.a A 192.0.2.5
ns2.a A 192.0.2.6
ai A 192.0.2.9
ai HINFO "KLH-10" "ITS"
ai AAAA 2001:db8::f00:baa9
b NS ns1.b
b NS ns2.b
ns1.b A 192.0.2.7
ns2.b A 192.0.2.8
c NS ns1.c
c NS ns2.c
ns1.c A 192.0.2.7
ns2.c A 192.0.2.8
ns1 A 192.0.2.1
ns2 A 192.0.2.2
*.w MX 1 ai
x.w MX 1 xx
x.y.w MX 1 xx
xx A 192.0.2.10
xx HINFO "KLH-10" "TOPS-20"
xx AAAA 2001:db8::f00:baaa
ent.of.two.labels A 192.0.2.11
"""
)

# What those leave out: CNAME and DNAME chains, wildcards of every kind, glue of a sister, addresses of targets, odd
# types and labels.
MORE = (
    _HEAD.format(zone="more.example.")
    + """\
@ NS ns1
@ NS ns.sister
@ AAAA 2001:db8::1
ns1 A 192.0.2.1
alias CNAME ns1
chain CNAME alias
dangling CNAME nowhere
todata CNAME x.wild
outside CNAME www.example.net.
tocut CNAME host.sister
todname CNAME ns1.moved
loop1 CNAME loop2
loop2 CNAME loop1
self CNAME self
*.wild A 192.0.2.20
*.wild TXT "wild"
below.wild.x.wild TXT "an empty non-terminal blocks"
*.wcname CNAME ns1
*.wdangling CNAME nowhere
*.ent.went TXT "the wildcard below"
a.*.mid TXT "the wildcard is an empty non-terminal"
moved DNAME @
far DNAME other.test.
sister NS ns.sister
sister NS ns.other
sister NS ns.example.net.
ns.sister A 192.0.2.30
ns.other A 192.0.2.31
other NS ns.other
other DS 1 13 2 0102030405060708091011121314151617181920212223242526272829303132
mail MX 10 ns1
mail MX 20 alias
mail MX 30 x.wild
srv SRV 1 2 3 ns1
svcb HTTPS 1 . alpn=h2
svcb A 192.0.2.40
svcalias HTTPS 0 svcb
ptr PTR ns1
caa CAA 0 issue "ca.example.net"
t731 TYPE731 \\# 3 010203
\\042.lit TXT "an asterisk written as a number"
UPPER.case A 192.0.2.50
long TXT "{}" "{}" "{}"
""".format("x" * 250, "y" * 250, "z" * 250)
)

ZONES = {"wild.example.": WILDCARDS, "example.": EXAMPLE, "more.example.": MORE}
