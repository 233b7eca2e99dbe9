// SPDX-License-Identifier: Apache-2.0
/*
 * Writes the IPv6 flow label of known flows at tc egress.
 *
 * A packet is never dropped, delayed or kept from the programs after this one: whatever happens, the verdict
 * is TC_ACT_UNSPEC (TCX_NEXT has the same value).
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "marker.h"

char LICENSE[] SEC("license") = "Apache-2.0";

#define ETH_P_8021Q_BE bpf_htons(ETH_P_8021Q)
#define ETH_P_8021AD_BE bpf_htons(ETH_P_8021AD)
#define MAX_VLAN_TAGS 2
#define MAX_EXTENSION_HEADERS 6
/* Enough for Ethernet with two tags, IPv6, extension headers of ordinary length, and the ports. */
#define HEADER_OCTETS 256
#define LABEL_MASK bpf_htonl(0x000fffff)

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1); /* the loader sets it */
	__type(key, struct flow_key);
	__type(value, __be32);
} overflow SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, OUTCOMES);
	__type(key, __u32);
	__type(value, __u64);
} outcomes SEC(".maps");

/* The label, without entropy, of what goes to a network by an interface. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_STATIC);
	__type(key, struct static_key);
	__type(value, __be32);
} static_labels SEC(".maps");

/* Most packets belong to no known flow, and most of those are told by one load from the ports. */
struct state state;

/* Keep the compiler from moving loads across. */
#define barrier() asm volatile("" ::: "memory")

struct extension {
	__u8 next;
	__u8 length;
};

struct fragment {
	__u8 next;
	__u8 reserved;
	__be16 offset;
	__be32 id;
};

struct vlan {
	__be16 tci;
	__be16 protocol;
};

/* What became of the search for a packet's ports. */
enum search {
	FOUND,
	NOT_IPV6,
	NOT_OURS, /* its source port is that of no flow, or it has none */
	TOO_SHORT,
	LATER_FRAGMENT,
	TOO_MANY_HEADERS,
};

static __always_inline void count(__u32 outcome)
{
	__u64 *total = bpf_map_lookup_elem(&outcomes, &outcome);

	if (total)
		(*total)++;
}

static __always_inline int port_is_known(__be16 port)
{
	__u32 bit = bpf_ntohs(port);

	return state.source_ports[(bit >> 6) & (PORTS / 64 - 1)] >> (bit & 63) & 1;
}

/* The set of a key; layout.py computes the same. */
static __always_inline __u32 set_of(const __u64 *words)
{
	return (words[0] ^ words[1] ^ words[2] ^ words[3] ^ words[4]) * 0x9e3779b97f4a7c15ULL >> 50;
}

/* The label of a flow, 0 when it is not known. */
static __always_inline __be32 find_label(const __u64 *wanted)
{
	__u32 set = set_of(wanted) & (SETS - 1);
	__be32 *found;

#pragma unroll
	for (int way = 0; way < WAYS; way++) {
		struct slot *slot = &state.slots[set * WAYS + way];
		const __u64 *words = (const void *)&slot->key;
		__u64 mark = slot->mark;

		barrier();
		if (!(__u32)mark || words[4] != wanted[4])
			continue;
		if ((words[0] ^ wanted[0]) | (words[1] ^ wanted[1]) | (words[2] ^ wanted[2]) | (words[3] ^ wanted[3]))
			continue;
		barrier();
		if (slot->mark >> 32 == mark >> 32)
			return mark;
	}
	if (!state.overflowed[set])
		return 0;
	found = bpf_map_lookup_elem(&overflow, wanted);
	return found ? *found : 0;
}

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

/* Two words of a packet, in their order, as one. */
static __always_inline __u64 join(__u32 first, __u32 second)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	return first | (__u64)second << 32;
#else
	return (__u64)first << 32 | second;
#endif
}

/* The first of two words that were joined. */
static __always_inline __u32 first(__u64 word)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	return word;
#else
	return word >> 32;
#endif
}

static __always_inline void fill_addresses(const struct ipv6hdr *ip, __u64 *key)
{
	const __be32 *source = ip->saddr.in6_u.u6_addr32;
	const __be32 *destination = ip->daddr.in6_u.u6_addr32;

	key[0] = join(source[0], source[1]);
	key[1] = join(source[2], source[3]);
	key[2] = join(destination[0], destination[1]);
	key[3] = join(destination[2], destination[3]);
}

/* Fill in the key (struct flow_key) of an IPv6 TCP or UDP packet whose source port is known. By words of 64 bits,
 * as it is compared: a processor that reads what it has just written in smaller pieces has to wait for them.
 * Asked for all, fill in as much as there is of any IPv6 packet. */
static __always_inline enum search find_key(struct __sk_buff *skb, __u32 at, __u64 *key, int all,
					    int *fragmented)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	struct ipv6hdr *ip = data + at;
	void *next = ip + 1;
	__be16 *ports;
	__u8 protocol;

	if (next > end)
		return TOO_SHORT;
	if (ip->version != 6)
		return NOT_IPV6;
	if (all)
		fill_addresses(ip, key);
	protocol = ip->nexthdr;
#pragma unroll
	for (int i = 0; i < MAX_EXTENSION_HEADERS; i++) {
		struct extension *extension = next;
		struct fragment *fragment = next;

		if (protocol == IPPROTO_TCP || protocol == IPPROTO_UDP)
			break;
		/* Hop-by-Hop is also what BIG TCP puts in front. */
		if (protocol != IPPROTO_HOPOPTS && protocol != IPPROTO_ROUTING && protocol != IPPROTO_DSTOPTS &&
		    protocol != IPPROTO_FRAGMENT)
			return NOT_OURS;
		if ((void *)(fragment + 1) > end)
			return TOO_SHORT;
		if (protocol == IPPROTO_FRAGMENT) {
			if (fragment->offset & bpf_htons(0xfff8))
				return LATER_FRAGMENT;
			next = fragment + 1;
			*fragmented = 1;
		} else {
			next += (extension->length + 1) * 8;
		}
		protocol = extension->next;
	}
	if (protocol != IPPROTO_TCP && protocol != IPPROTO_UDP)
		return TOO_MANY_HEADERS;
	ports = next;
	if ((void *)(ports + 2) > end)
		return TOO_SHORT;
	if (!all && !port_is_known(ports[0]))
		return NOT_OURS;
	if (!all)
		fill_addresses(ip, key);
	key[4] = join(*(__u32 *)ports, bpf_htonl(protocol));
	return all && !port_is_known(ports[0]) ? NOT_OURS : FOUND;
}

/* The label of what belongs to no known flow, by where it goes; 0 for none. The entropy is made of both ends, so that
 * a flow keeps it, and its other direction has the same; layout.py computes it too. Only first fragments bear ports,
 * so that those of fragments do not count. */
static __always_inline __be32 find_static(struct __sk_buff *skb, const __u64 *key, int fragmented)
{
	struct static_key where = { .prefix = 32 + 128, .interface = skb->ifindex };
	__u32 ports = fragmented ? 0 : first(key[4]);
	__u32 entropy;
	__be32 *found;

	__builtin_memcpy(&where.network, &key[2], sizeof(where.network));
	found = bpf_map_lookup_elem(&static_labels, &where);
	if (!found)
		return 0;
	ports ^= ports << 16 | ports >> 16;
	entropy = (key[0] ^ key[1] ^ key[2] ^ key[3] ^ ports) * 0x9e3779b97f4a7c15ULL >> 59;
	return *found | bpf_htonl((entropy & 0x18) << 15 | (entropy & 0x4) << 6 | (entropy & 0x3));
}

/* One 32-bit word holds version, traffic class and label: all but the label stays as it is. Written by helper
 * rather than in place: a program that writes in place has every packet made writable before it starts, those
 * of unknown flows too. */
static __always_inline void write_label(struct __sk_buff *skb, __u32 at, __be32 label, __u32 outcome)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	__be32 word;

	if (data + at + sizeof(word) > end)
		return;
	word = (*(__be32 *)(data + at) & ~LABEL_MASK) | label;
	/* A packet that came in by another interface may still bear the sum that the hardware made of it. */
	count(bpf_skb_store_bytes(skb, at, &word, sizeof(word), BPF_F_RECOMPUTE_CSUM) ? OUTCOME_FAILED : outcome);
}

static __always_inline int mark(struct __sk_buff *skb, int ethernet, int all)
{
	__u64 key[KEY_WORDS] = {};
	enum search result = TOO_SHORT;
	int at = 0, fragmented = 0;
	__be32 label = 0;

	/* The second round is for headers that are not in the linear part of the packet, which is rare. */
	for (int round = 0; round < 2; round++) {
		if (round && bpf_skb_pull_data(skb, skb->len < HEADER_OCTETS ? skb->len : HEADER_OCTETS))
			break;
		if (ethernet) {
			at = network_offset((void *)(long)skb->data, (void *)(long)skb->data_end);
			if (at == 0)
				return TC_ACT_UNSPEC;
			if (at < 0)
				continue;
		}
		result = find_key(skb, at & 0x3f, key, all, &fragmented);
		if (result != TOO_SHORT)
			break;
	}
	if (result == NOT_IPV6 || (!all && result == NOT_OURS))
		return TC_ACT_UNSPEC;
	if (result == FOUND)
		label = find_label(key);
	if (label) {
		write_label(skb, at & 0x3f, label & LABEL_MASK, OUTCOME_MARKED);
		return TC_ACT_UNSPEC;
	}
	if (all && result != TOO_SHORT) {
		label = find_static(skb, key, fragmented);
		if (label) {
			write_label(skb, at & 0x3f, label & LABEL_MASK, OUTCOME_STATIC);
			return TC_ACT_UNSPEC;
		}
	}
	if (result != FOUND && result != NOT_OURS)
		count(result == LATER_FRAGMENT				  ? OUTCOME_FRAGMENT :
		      result == TOO_SHORT && skb->len <= HEADER_OCTETS ? OUTCOME_TRUNCATED :
									 OUTCOME_HEADERS);
	return TC_ACT_UNSPEC;
}

/* Devices with a MAC header, Ethernet's; VLAN tags may stand in it. */
SEC("tc") int scitags_label(struct __sk_buff *skb)
{
	return mark(skb, 1, 0);
}

/* Devices without one: tun, wireguard, IP tunnels. */
SEC("tc") int scitags_label_l3(struct __sk_buff *skb)
{
	return skb->protocol == bpf_htons(ETH_P_IPV6) ? mark(skb, 0, 0) : TC_ACT_UNSPEC;
}

/* The same where there are static labels. Programs of their own: the others bear no cost of it. */
SEC("tc") int scitags_label_all(struct __sk_buff *skb)
{
	return mark(skb, 1, 1);
}

SEC("tc") int scitags_label_all_l3(struct __sk_buff *skb)
{
	return skb->protocol == bpf_htons(ETH_P_IPV6) ? mark(skb, 0, 1) : TC_ACT_UNSPEC;
}
