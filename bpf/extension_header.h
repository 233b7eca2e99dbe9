/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* What extension_header.bpf.c shares with its loader; agent/scitags_agent/bpf/header_program.py mirrors it. */
#ifndef SCITAGS_EXTENSION_HEADER_H
#define SCITAGS_EXTENSION_HEADER_H

#include <linux/types.h>

#include "marker.h"

/* What a flow's packets bear, and how long they may become with it. Lengths are from the IPv6 header on. */
struct header_mark {
	__u32 tag;	/* experiment << 8 | activity */
	__u32 path_mtu; /* what the path is known to let through; 0: not known */
	__u32 reserved; /* what the route lets the kernel fill, where the room of our headers is kept free; else 0 */
	__u32 peer_mtu; /* the program tells: the other end takes no longer packets than this, which is less; or 0 */
};

/* What became of the packets of known flows. */
enum header_outcome {
	HEADER_MARKED,
	HEADER_NO_ROOM,	   /* it would not pass where the path is narrowest */
	HEADER_OTHERS,	   /* bears extension headers that are not ours */
	HEADER_BIG,	   /* BIG TCP, or too long to count its own length with a header more */
	HEADER_VLAN,	   /* a VLAN tag in the data: the kernel makes no room behind one */
	HEADER_FRAGMENT,   /* a first fragment; later ones have no ports, and are not known */
	HEADER_MALFORMED,  /* its lengths do not agree */
	HEADER_FAILED,	   /* the kernel would not make the room */
	HEADER_OUTCOMES,
};

/* Set before the program is loaded. */
struct header_settings {
	__u8 hop_by_hop;
	__u8 destination;
	__u8 pad[2];
	__be32 place; /* what keys of this network namespace have beside the protocol, as of the marker */
};

#define HEADER_PORTS 65536

/* What user space sees through a mapping.
 * Most packets belong to no known flow, and most of those are told by one load. */
struct header_state {
	__u64 source_ports[HEADER_PORTS / 64]; /* a bit for each source port of any flow; user space writes */
	__u64 narrowed;			/* how often a peer_mtu was told */
};

_Static_assert(sizeof(struct header_mark) == 16, "header_program.py");
_Static_assert(sizeof(struct header_settings) == 8, "header_program.py");

#endif
