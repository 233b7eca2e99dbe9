/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* What kernel_label.bpf.c shares with its loader; agent/scitags_agent/bpf/kernel_label.py mirrors it. */
#ifndef SCITAGS_KERNEL_LABEL_H
#define SCITAGS_KERNEL_LABEL_H

#include <linux/types.h>

#include "marker.h"

/* What became of a socket that has a label to bear, or to give back. */
enum socket_state {
	SOCKET_WAITING,	 /* its next packet bears the label, whatever that packet is */
	SOCKET_LABELLED, /* the kernel writes the label */
	SOCKET_GIVEN_BACK,
	SOCKET_OWN_LABEL, /* the application has chosen a label itself, which is left alone */
	SOCKET_REFUSED,	  /* the kernel would not be asked for the callback */
};

/* What is known of a socket. */
struct labelled {
	__be32 label;	    /* 0 when it is to be given back */
	__u8 state;	    /* enum socket_state */
	__u8 asked_before;  /* somebody else wants the callback that we use: it stays on */
	__s8 rehash_before; /* SO_TXREHASH, as it was */
	__u8 pad;
};

/* What the walk over the sockets says of each that has to do with us. */
struct report {
	struct flow_key key; /* from this host's end */
	__be32 label;
	__u32 state;
	__s32 error; /* negative errno of SOCKET_REFUSED */
	__u32 callbacks; /* that are asked for of the socket, by anybody */
};

/* Set before the programs are loaded. */
struct kernel_label_settings {
	__u64 netns; /* label the sockets of this network namespace alone; 0 for all */
	__u8 has_netns_cookie;
	__u8 pad[7];
};

_Static_assert(sizeof(struct labelled) == 8, "kernel_label.py");
_Static_assert(sizeof(struct report) == 56, "kernel_label.py");
_Static_assert(sizeof(struct kernel_label_settings) == 16, "kernel_label.py");

#endif
