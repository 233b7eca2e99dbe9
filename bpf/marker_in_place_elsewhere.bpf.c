// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* marker_elsewhere.bpf.c, beside a marker that writes labels in place. */
#define IN_PLACE
#include "marker_elsewhere.bpf.c"
