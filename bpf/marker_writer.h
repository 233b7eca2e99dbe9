/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* What marker_writer.bpf.c shares with its loader; agent/scitags_agent/bpf/layout.py mirrors it. */
#ifndef SCITAGS_MARKER_WRITER_H
#define SCITAGS_MARKER_WRITER_H

#include "marker.h"

/* One direction of a connection, and the label in network order that its packets shall bear. */
struct request {
	struct flow_key key;
	__be32 label;
	__u32 error; /* 0, or why it was refused: an errno */
};

enum request_kind {
	REQUEST_PUT,    /* mark, or mark with another label than before */
	REQUEST_REMOVE, /* mark no more; nothing happens when it was not marked */
};

#define MAX_REQUESTS 4096

/* What user space writes through a mapping before the program is run, and reads afterwards. */
struct requests {
	__u32 count;
	__u32 kind; /* of all of them */
	__u32 refused;
	__u32 max_flows;
	__u32 flows;  /* that are marked */
	__u32 in_map; /* those of them that are not in the table, as both of their sets are full */
	__u32 unused[2];
	struct request all[MAX_REQUESTS];
};

_Static_assert(sizeof(struct request) == 48, "layout.py");
_Static_assert(offsetof(struct requests, all) == 32, "layout.py");

#endif
