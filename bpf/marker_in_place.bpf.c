// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/*
 * The marker for kernels that say whether a packet is a clone (BTF, and bpf_cast_to_kern_ctx(): Linux 6.2): the same
 * source, whose labels are written in place where that is safe. An object of its own, as libbpf loads none that
 * asks for the kernel's types where the kernel does not tell them.
 */
#define IN_PLACE
#include "marker.bpf.c"
