"""rewrite - changes questions on their way in and answers on their way out.

## Syntax

    rewrite [continue|stop] FIELD ...
    rewrite [continue|stop] { FIELD ... }

* `name [exact|prefix|suffix|substring|regex] FROM TO [metadata] [answer auto | answer name REGEX TO | answer value
  REGEX TO]` changes the name that is asked. Without a kind it is `exact`. Regular expressions are RE2's; `{1}` in TO is
  a group. `answer auto` maps names in the answer back (`exact` always does); `answer name` and `answer value` change
  owners, or names in the data. With `metadata` (for `regex`) TO may also hold labels, such as
  `{kubernetes/client-namespace}`; a rule whose label has no value for a query does not fit it.
* `type FROM TO`, `class FROM TO` change the type or class that is asked.
* `edns0 local set|append|replace CODE DATA [revert]`, `edns0 local unset CODE`: an EDNS option of the query that goes
  upstream. DATA is text, octets in hexadecimal (`0x...`), or a variable: `{qname} {qtype} {client_ip} {client_port}
  {server_ip} {server_port} {protocol}`, or metadata as `{kubernetes/namespace}`.
* `edns0 nsid set|append|replace [revert]|unset` asks upstreams for their name (RFC 5001).
* `edns0 subnet set|append|replace V4 V6 [revert]|unset` tells upstreams the first bits of the client's address (RFC
  7871).
* `ttl [exact|prefix|suffix|substring|regex] NAME SECONDS|A-B|A-|-B` bounds the TTLs of answers.
* `rcode [exact|prefix|suffix|substring|regex] NAME FROM TO` changes the response code.
* `cname [exact|prefix|suffix|substring|regex] FROM TO` gives a CNAME in the answer another target, and resolves that
  (not where the CNAME itself was asked for).

Names are compared in lower case, with their final dot; FROM and TO get one if it is missing (a regular expression does
not). With `stop` (default) the first rule that fits is the last; with `continue` the next is tried. The client sees
the question it asked.

`set` puts an option in the place of one there may be, `append` adds one, `replace` does only where there is one (of the
client's, or of a rule above). A variable or a subnet is appended only where there is none: with `subnet append` a
client's own subnet goes upstream. Options go upstream and nowhere else: the client's reply shows none of them, with
`revert` or without, and no client's own option goes upstream unless a rule says so. What an option depends on, the
cache keys on.

## Examples

~~~ corefile
.:1053 {
    rewrite name exact old.example.org new.example.org
    rewrite continue {
        ttl suffix .example.org 30-300
    }
    rewrite name regex (.*)\\.coffee\\.rush {1}.default.svc.cluster.local answer auto
    whoami
}
~~~

~~~ corefile
.:1053 {
    metadata
    rewrite name regex ^([^.]+)\\.mine\\.$ {1}.{kubernetes/client-namespace}.svc.cluster.local. metadata answer auto
    kubernetes cluster.local {
        pods verified
        endpoint http://127.0.0.1:8001
    }
}
~~~

~~~ corefile
.:1053 {
    rewrite continue edns0 subnet set 24 56
    rewrite continue edns0 local set 0xffee {client_ip}
    rewrite cname suffix .cdn.example.net .cdn.example.org
    forward . 127.0.0.1:5301
}
~~~
"""

from kdns.plugins.rewrite.handler import Rewrite

__all__ = ["Rewrite"]
