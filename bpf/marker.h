/* SPDX-License-Identifier: Apache-2.0 */
/* What marker.bpf.c shares with its loader; agent/scitags_agent/bpf/layout.py mirrors it. */
#ifndef SCITAGS_MARKER_H
#define SCITAGS_MARKER_H

#include <linux/in6.h>
#include <linux/types.h>

/* The 5-tuple as it stands in the packet, in network order. */
struct flow_key {
	struct in6_addr src;
	struct in6_addr dst;
	__be16 sport;
	__be16 dport;
	__u8 protocol;
	__u8 zero[3];
} __attribute__((aligned(8)));

/* What happened to packets that got as far as a decision. A packet of no known flow is not counted: that is
 * the common case, and it shall cost nothing. */
enum outcome {
	OUTCOME_MARKED,
	OUTCOME_FRAGMENT,  /* a later fragment: it has no ports */
	OUTCOME_TRUNCATED, /* ends within its headers */
	OUTCOME_HEADERS,   /* more extension headers than are looked at */
	OUTCOME_FAILED,    /* the kernel would not let it be written to */
	OUTCOMES,
};

#define PORTS 65536
/* Flows live in a table of sets of a few slots each, which costs no call to look into; a flow whose set is full
 * goes to the map of flows. */
#define SETS 4096
#define WAYS 4

/* A label of 0 is an empty slot: no tag has it. */
struct slot {
	struct flow_key key;
	__be32 label;
	__u32 zero;
};

/* What user space writes through a mapping while packets pass.
 * A slot is filled key first, label last, and emptied label first; the program takes a label only if it is the
 * same before and after the comparison of the key. */
struct state {
	__u64 source_ports[PORTS / 64]; /* a bit for each source port of any flow */
	__u32 overflowing;              /* how many flows are in the map */
	__u32 zero;
	struct slot slots[SETS * WAYS];
};

#endif
