// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/*
 * The marker for one other network namespace: loaded once for each, with the maps of the marker of the agent's own, and
 * attached there alone. It finds the flows of that namespace, and no equal ones of others.
 */
#include <linux/types.h>

const volatile __u32 place;

#define PLACE place
#include "marker.bpf.c"
