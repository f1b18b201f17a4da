"""blocklist - answers in place of others for names that are on lists: domain lists, hosts files, policy zones (RPZ).

A name that is blocked never reaches a cache or an upstream. What is allowed is looked at first.

## Syntax

    blocklist [ZONES...] {
        file PATH... [format auto|domains|hosts|rpz]
        name NAME...
        allow NAME...
        allow_file PATH... [format auto|domains|hosts]
        action nxdomain|nodata|refused|address ADDRESS...
        ede blocked|censored|filtered
        exact
        cnames
        ttl DURATION
        reload DURATION
        namespaces NAMESPACE...
        except NAMESPACE...
    }

* ZONES are the zones it looks at. Default: the block's zones without those of `kubernetes` and `k8s_external`, so the
  cluster's own names cost nothing more. A zone that is written counts as it stands.
* `file`: lists. They are read again when they have changed, and what they say then counts at once. A file that is
  missing or cannot be read is said once and waited for; what was read of it before is kept. An empty file is an empty
  list. A file may have 128 MiB. For a list at a URL let something else download it into a local file.
* `format`: `auto` (default) tells by the first line that says something.
    * `domains`: a name a line blocks the name and all below it, `*.NAME` what is below it, `||NAME^` as the name alone.
      `@@||NAME^` lets a name and what is below it pass. Comments begin with `#` or `!`.
    * `hosts`: lines such as `0.0.0.0 NAME...` block exactly these names. Lines with other addresses than 0.0.0.0,
      127.0.0.1, :: and ::1 are left out.
    * `rpz`: a response policy zone, as a zone file. Triggers are names, exact or `*.NAME`; actions are NXDOMAIN
      (`CNAME .`), NODATA (`CNAME *.`), `rpz-passthru.`, `rpz-drop.` (no reply), `rpz-tcp-only.` (over UDP a truncated
      reply), and other records, which are given in place of the name's own. A CNAME to `*.NAME` leads to the asked name
      below NAME. `rpz-client-ip`, `rpz-ip`, `rpz-nsdname` and `rpz-nsip` are not supported: they are left out, counted
      and warned of. The zone's names begin below its `$ORIGIN`, or the owner of its SOA.
* `name`: names that are blocked with all below them; `*.NAME` what is below only, `.` everything that is not allowed.
* `allow`, `allow_file`: names that pass with all below them, whatever any list says.
* `action` is what a name of a list gets: `nxdomain` (default), `nodata`, `refused`, or these addresses, and nodata for
  other types. Names of policy zones get what the zone says.
* `ede` is the extended error (RFC 8914) for clients that use EDNS: 15 `blocked` (default: by who runs the server), 16
  `censored` (by order of others), 17 `filtered` (the client wants it so).
* `exact`: names of domain lists and of `name` without `*.` block themselves alone.
* `cnames`: a name whose CNAMEs lead to a blocked name is blocked too. Default: off, as it looks at every answer that is
  not repeated. Names that are allowed are not looked at.
* `ttl` is the TTL of what is given, and how long a denial may be kept (its SOA). Default: 60s: a name that was blocked
  by mistake is back within a minute. Records of a policy zone have their own.
* `reload` is how often files are looked at. Default: 5s; 0 never.
* `namespaces`: only clients of these namespaces, by the addresses of their Pods; `except`: all but those. Either needs
  `kubernetes` in the same server block and watches Pods. Clients that are not Pods are in no namespace.

Of several lists the first one with a name counts, those of the Corefile before files, files in their order; in a list
the closest name. The directive may stand more than once, such as with other lists for other namespaces. Lists of names
in other letters than those of host names are not understood: names are written in ASCII (`xn--`). A file with more
lines that are not understood than others is taken for no list, and what was read before is kept.

One million names take some 40 MiB, and twice that while they are read again; each worker of `multisocket` has its own.
A query that is not repeated costs a look-up for each label and list.

## Examples

~~~ corefile
.:1053 {
    blocklist {
        name ads.example.org tracker.example.net
        allow good.ads.example.org
        ttl 30s
    }
    whoami
}
~~~

## Metrics

* `kdns_blocklist_blocked_total{server,list,action}` - queries that got something else, by the list (its path, or
  `Corefile`) and by what they got: nxdomain, nodata, refused, address, drop, tcp-only or records.
* `kdns_blocklist_entries{list}` - names of each list.
* `kdns_blocklist_reload_timestamp_seconds{list}` - when the list last changed.
* `kdns_blocklist_reload_errors_total{list}` - how often it could not be read.
"""

from kdns.plugins.blocklist.plugin import Blocklist

__all__ = ["Blocklist"]
