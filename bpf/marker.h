/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
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
	__be32 protocol;
} __attribute__((aligned(8)));

#define KEY_WORDS 5

/* What happened to packets that got as far as a decision. A packet of no known flow is not counted: that is
 * the common case, and it shall cost nothing. */
enum outcome {
	OUTCOME_MARKED,
	OUTCOME_FRAGMENT,  /* a later fragment: it has no ports */
	OUTCOME_TRUNCATED, /* ends within its headers */
	OUTCOME_HEADERS,   /* more or longer extension headers than are looked at */
	OUTCOME_FAILED,    /* the kernel would not let it be written to */
	OUTCOME_STATIC,    /* of no known flow, marked by where it goes */
	OUTCOMES,
};

/* A flow as it is compared, where TCP or UDP is next to the IPv6 header: the packet's octets in words of 64 bits, of which
 * one overlaps the next so that they are few, and none has to be put together.
 *   0  next header, instead of the hop limit the place (0 for the agent's own network namespace), source 0..5
 *   1  source 4..11
 *   2  source 12..15, destination 0..3
 *   3  destination 4..11
 *   4  destination 12..15, both ports
 * What belongs to a flow's place is all but the first.
 */
#define LINE_WORDS 5

/* Flows live in a table of lines of the cache, one in each, which costs no call to look into. A flow is in the line that it
 * belongs to, or where another is in that already, in one of the next few. One that finds them all taken goes to where
 * another hash says, and one for which those are taken too to the map of flows. What is looked at first is one line: the
 * flow that is in it, and what there is to say of others that belong to it.
 *
 * mark: the label in network order in the lower half, never 0 while there is a flow in the line; in the upper half a
 * number that is another one for every flow that the line has had. */
#define WAYS 5
#define OTHERS (WAYS - 1)
struct line {
	__u64 words[LINE_WORDS];
	__u64 mark;
	__u8 hints[OTHERS]; /* some bits of the ports, never 0, of a flow that belongs here and is so many lines on; or 0 */
	__u32 elsewhere;    /* how many flows that belong here are in none of these lines */
	__u32 in_map;       /* how many of them are in the map */
	__u32 unused;
};

/* Kernels before (about) 5.16 take no more than 4 MiB of global data. */
#define MAX_LINE_BITS 18
#ifdef IN_PLACE
#define LINE_BITS MAX_LINE_BITS
#else
#define LINE_BITS 15
#endif
#define LINES (1 << LINE_BITS)

#define MAX_CPUS 1024 /* two processors whose numbers are that far apart would lose a count now and then */

/* A line of the cache for each processor. */
struct counters {
	__u64 packets[8]; /* by outcome */
};

/* What user space reads and writes through mappings while packets pass.
 * A line is emptied by its first word, which becomes one that no packet has (layout.py: EMPTY), and then gets a new number
 * with label 0. It is filled in this order: the other words, the label, the first word. The program takes a label only if
 * the mark was the same before and after the comparison, so that it never compares with half a flow.
 */
struct state {
	struct line lines[LINES + OTHERS];
};

struct all_counters {
	struct counters of[MAX_CPUS];
};

/* Where a packet of no known flow goes, for the labels that whatever goes there bears. The interface always counts
 * whole, so that the length of a prefix is 32 and that of the network. */
struct static_place {
	__u32 prefix;
	__u32 interface;
	struct in6_addr network;
};

#define MAX_STATIC 4096

/* What those that are attached go on in, in the map of programs. */
enum go_on_in {
	IN_PLACE_ETHERNET,
	IN_PLACE_L3,
	BY_HELPER_ETHERNET,
	BY_HELPER_L3,
	GO_ON_IN,
};

_Static_assert(sizeof(struct static_place) == 24, "layout.py");
_Static_assert(sizeof(struct flow_key) == KEY_WORDS * sizeof(__u64), "read as words");
_Static_assert(sizeof(struct line) == 64, "layout.py; a line of the cache");
_Static_assert(sizeof(struct counters) >= OUTCOMES * sizeof(__u64), "one for each outcome");

#endif
