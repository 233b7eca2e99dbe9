/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * What packets on their way out look like, for the programs at tc: the link layer, and the headers in front of ports.
 */
#ifndef SCITAGS_PACKET_H
#define SCITAGS_PACKET_H

#define ETH_P_8021Q_BE bpf_htons(ETH_P_8021Q)
#define ETH_P_8021AD_BE bpf_htons(ETH_P_8021AD)
#define MAX_VLAN_TAGS 2
#define MAX_EXTENSION_HEADERS 6
#define FRAGMENT_OFFSET bpf_htons(0xfff8)

struct vlan {
	__be16 tci;
	__be16 protocol;
};

/* The first octets of each, which is no shorter than that: an option, or part of something else. */
struct extension {
	__u8 next;
	__u8 length; /* in 8 octets, without the first 8; not of a fragment header */
	__u8 option;
	__u8 option_length;
	__be32 more;
};

struct fragment {
	__u8 next;
	__u8 reserved;
	__be16 offset;
	__be32 id;
};

/* Step over the link layer. The offset of the IPv6 header, 0 when it is another protocol, -1 when too short. */
static __always_inline int network_offset(void *data, void *end)
{
	struct ethhdr *eth = data;
	struct vlan *tag = (void *)(eth + 1);
	__be16 protocol;

	if ((void *)(eth + 1) > end)
		return -1;
	protocol = eth->h_proto;
	for (int i = 0; i < MAX_VLAN_TAGS; i++) {
		if (protocol != ETH_P_8021Q_BE && protocol != ETH_P_8021AD_BE)
			break;
		if ((void *)(tag + 1) > end)
			return -1;
		protocol = tag->protocol;
		tag++;
	}
	return protocol == bpf_htons(ETH_P_IPV6) ? (void *)tag - data : 0;
}

static __always_inline int has_ports(__u8 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP;
}

/* Whether it is a header that is stepped over. Hop-by-Hop is also what BIG TCP puts in front. */
static __always_inline int is_extension(__u8 protocol)
{
	return protocol == IPPROTO_HOPOPTS || protocol == IPPROTO_ROUTING || protocol == IPPROTO_DSTOPTS ||
	       protocol == IPPROTO_FRAGMENT;
}

#endif
