// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/*
 * Puts the tag of known flows into extension headers at tc egress: Hop-by-Hop, Destination Options, or both.
 *
 * A packet is given its header only if it, or each segment that it will be cut into, still fits the path with it: none
 * is cut otherwise than it would have been. Whatever happens, the verdict is TC_ACT_UNSPEC (TCX_NEXT has the same
 * value): a packet is never dropped, delayed or kept from the programs after this one.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "extension_header.h"
#include "packet.h"

/* The kernel lets only programs under the GPL look into its sockets. */
char LICENSE[] SEC("license") = "GPL";

/* Enough for Ethernet with two tags, IPv6, extension headers of ordinary length, and TCP's. */
#define LINEAR_OCTETS 256
#define FIXED_OCTETS 40
#define UDP_OCTETS 8
#define TCP_OCTETS 20
#define HEADER_OCTETS 8
#define IPV6_MIN_MTU 1280
#define MAX_PAYLOAD 65535
#define JUMBO_PAYLOAD 0xc2
/* RFC 4727, for experiments: skip when unknown, does not change on the way. */
#define OPTION_TYPE 0x1e
#define OPTION_OCTETS 3

/* The kernel's own, as much as is looked at; libbpf finds where it is in the kernel that runs. */
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct inet_connection_sock {
	__u32 icsk_pmtu_cookie;
};

struct tcp_options_received {
	__u16 mss_clamp;
};

struct tcp_sock {
	struct inet_connection_sock inet_conn;
	struct tcp_options_received rx_opt;
};

struct tcp6_sock {
	struct tcp_sock tcp;
};
#pragma clang attribute pop

const volatile struct header_settings settings;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1); /* the loader sets it */
	__type(key, struct flow_key);
	__type(value, struct header_mark);
} marks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, HEADER_OUTCOMES);
	__type(key, __u32);
	__type(value, __u64);
} header_outcomes SEC(".maps");

struct header_state state;

/* An IPv6 header, and what is put behind it. */
struct headed {
	struct ipv6hdr ip;
	__u8 headers[2 * HEADER_OCTETS];
};

/* What was found out about a packet; all but the key is of a TCP or UDP packet of a known source port. */
struct packet {
	struct flow_key key;
	__u32 octets; /* of the packet on the wire, or of each that it will be cut into, from the IPv6 header on */
	__u32 outcome; /* HEADER_MARKED where nothing stands against it */
};

enum search { FOUND, NOT_OURS, TOO_SHORT };

static __always_inline int count(__u32 outcome)
{
	__u64 *total = bpf_map_lookup_elem(&header_outcomes, &outcome);

	if (total)
		(*total)++;
	return TC_ACT_UNSPEC;
}

static __always_inline int port_is_known(__be16 port)
{
	__u32 bit = bpf_ntohs(port);

	return state.source_ports[(bit >> 6) & (HEADER_PORTS / 64 - 1)] >> (bit & 63) & 1;
}

/* How long each packet on the wire is, from the IPv6 header on; 0 when that cannot be said. */
static __always_inline __u32 wire_octets(struct __sk_buff *skb, __u32 at, const struct ipv6hdr *ip, void *transport,
					 __u8 protocol)
{
	void *end = (void *)(long)skb->data_end;
	struct tcphdr *tcp = transport;
	__u32 octets = FIXED_OCTETS + bpf_ntohs(ip->payload_len);

	if (skb->len != at + octets)
		return 0;
	if (!skb->gso_size)
		return octets;
	if (protocol == IPPROTO_UDP)
		return FIXED_OCTETS + UDP_OCTETS + skb->gso_size;
	if ((void *)(tcp + 1) > end)
		return 0;
	return FIXED_OCTETS + 4 * tcp->doff + skb->gso_size;
}

/* Find the ports of an IPv6 TCP or UDP packet, and what stands against a header of ours in it. */
static __always_inline enum search look(struct __sk_buff *skb, __u32 at, struct packet *found)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	struct ipv6hdr *ip = data + at;
	void *next = ip + 1;
	__be16 *port;
	__u8 protocol;

	found->outcome = HEADER_MARKED;
	if (next > end)
		return TOO_SHORT;
	if (ip->version != 6)
		return NOT_OURS;
	protocol = ip->nexthdr;
#pragma unroll
	for (int i = 0; i < MAX_EXTENSION_HEADERS; i++) {
		struct extension *extension = next;
		struct fragment *fragment = next;

		if (has_ports(protocol))
			break;
		if (!is_extension(protocol))
			return NOT_OURS;
		if ((void *)(extension + 1) > end)
			return TOO_SHORT;
		if (protocol == IPPROTO_FRAGMENT) {
			if (fragment->offset & FRAGMENT_OFFSET)
				return NOT_OURS;
			next = fragment + 1;
			found->outcome = HEADER_FRAGMENT;
		} else {
			/* Ours, of an interface above this one (a VLAN on a bond), or set on the socket. */
			if (protocol != IPPROTO_ROUTING && extension->option == OPTION_TYPE &&
			    extension->option_length == OPTION_OCTETS)
				return NOT_OURS;
			if (found->outcome != HEADER_FRAGMENT)
				found->outcome = protocol == IPPROTO_HOPOPTS && extension->option == JUMBO_PAYLOAD ?
							 HEADER_BIG :
							 HEADER_OTHERS;
			next += (extension->length + 1) * 8;
		}
		protocol = extension->next;
	}
	if (!has_ports(protocol))
		return NOT_OURS;
	port = next;
	if ((void *)(port + 2) > end)
		return TOO_SHORT;
	if (!port_is_known(port[0]))
		return NOT_OURS;
	found->key.src = ip->saddr;
	found->key.dst = ip->daddr;
	found->key.sport = port[0];
	found->key.dport = port[1];
	found->key.protocol = bpf_htonl(protocol) | settings.place;
	if (found->outcome != HEADER_MARKED)
		return FOUND;
	if (!ip->payload_len && skb->gso_size) {
		found->outcome = HEADER_BIG;
		return FOUND;
	}
	found->octets = wire_octets(skb, at, ip, next, protocol);
	if (!found->octets)
		found->outcome = HEADER_MALFORMED;
	return FOUND;
}

/* The longest packet that the other end of a connection says it takes. The kernel keeps to it whatever the path, and
 * room that is kept free below the path MTU is none below this: it is told, so that the route can follow. */
static __always_inline __u32 peer_mtu(const struct tcp6_sock *tcp, struct header_mark *mark)
{
	__u32 peer = tcp->tcp.rx_opt.mss_clamp + FIXED_OCTETS + TCP_OCTETS;

	if (mark->reserved && peer < mark->path_mtu && peer > IPV6_MIN_MTU && mark->peer_mtu != peer) {
		mark->peer_mtu = peer;
		__sync_fetch_and_add(&state.narrowed, 1);
	}
	return peer;
}

/* How long a packet of the flow may be. What the kernel knows of the path of a TCP connection is asked of its socket:
 * it learns sooner than the agent that the path has become narrower. What it knows is what its route says, or less;
 * where the route says less than the path lets through, the difference is ours. */
static __always_inline __u32 longest(struct __sk_buff *skb, struct header_mark *mark)
{
	struct bpf_sock *sock = skb->sk;
	struct tcp6_sock *tcp = sock ? bpf_skc_to_tcp6_sock(sock) : 0;
	__u32 device = 0, longest = mark->path_mtu, known;

	if (tcp) {
		known = tcp->tcp.inet_conn.icsk_pmtu_cookie;
		if (!mark->reserved || known < mark->reserved)
			longest = known;
		known = peer_mtu(tcp, mark);
		if (known < longest)
			longest = known;
	}
	bpf_check_mtu(skb, 0, &device, 0, 0);
	if (device && device < longest)
		longest = device;
	/* Whatever lets IPv6 through lets this through (RFC 8200, section 5). */
	return longest < IPV6_MIN_MTU ? IPV6_MIN_MTU : longest;
}

static __always_inline __u8 *put_header(__u8 *at, __u8 next, __u32 tag)
{
	at[0] = next;
	at[1] = 0;
	at[2] = OPTION_TYPE;
	at[3] = OPTION_OCTETS;
	at[4] = tag >> 16;
	at[5] = tag >> 8;
	at[6] = tag;
	at[7] = 0;
	return at + HEADER_OCTETS;
}

/* Make room and fill it. What may fail comes first: a packet is either as it was, or whole. */
static __always_inline int insert(struct __sk_buff *skb, __u32 at, __u32 tag)
{
	__u32 room = HEADER_OCTETS * (settings.hop_by_hop + settings.destination);
	struct headed headed = {};
	__u8 *next = headed.headers;
	__u8 protocol;

	/* The header of the packet is ours alone from here on, so that writing to it takes no memory. */
	if (bpf_skb_pull_data(skb, at + FIXED_OCTETS + UDP_OCTETS) ||
	    bpf_skb_load_bytes(skb, at, &headed.ip, FIXED_OCTETS))
		return count(HEADER_FAILED);
	protocol = headed.ip.nexthdr;
	headed.ip.nexthdr = settings.hop_by_hop ? IPPROTO_HOPOPTS : IPPROTO_DSTOPTS;
	headed.ip.payload_len = bpf_htons(bpf_ntohs(headed.ip.payload_len) + room);
	if (settings.hop_by_hop)
		next = put_header(next, settings.destination ? IPPROTO_DSTOPTS : protocol, tag);
	if (settings.destination)
		put_header(next, protocol, tag);
	/* Segments stay as long as the kernel has made them: they have the room. */
	if (bpf_skb_adjust_room(skb, room, BPF_ADJ_ROOM_NET, BPF_F_ADJ_ROOM_FIXED_GSO))
		return count(HEADER_FAILED);
	if (bpf_skb_store_bytes(skb, at, &headed, FIXED_OCTETS + room, BPF_F_RECOMPUTE_CSUM)) {
		bpf_skb_adjust_room(skb, -(__s32)room, BPF_ADJ_ROOM_NET, BPF_F_ADJ_ROOM_FIXED_GSO);
		return count(HEADER_FAILED);
	}
	return count(HEADER_MARKED);
}

static __always_inline int mark(struct __sk_buff *skb, int ethernet)
{
	__u32 room = HEADER_OCTETS * (settings.hop_by_hop + settings.destination);
	struct packet packet = {};
	enum search result = TOO_SHORT;
	struct header_mark *wanted;
	int at = 0;

	/* The second round is for headers that are not in the linear part of the packet, which is rare. */
	for (int round = 0; round < 2; round++) {
		if (round && bpf_skb_pull_data(skb, skb->len < LINEAR_OCTETS ? skb->len : LINEAR_OCTETS))
			break;
		if (ethernet) {
			at = network_offset((void *)(long)skb->data, (void *)(long)skb->data_end);
			if (at == 0)
				return TC_ACT_UNSPEC;
			if (at < 0)
				continue;
		}
		result = look(skb, at & 0x3f, &packet);
		if (result != TOO_SHORT)
			break;
	}
	if (result != FOUND)
		return TC_ACT_UNSPEC;
	wanted = bpf_map_lookup_elem(&marks, &packet.key);
	if (!wanted)
		return TC_ACT_UNSPEC;
	if (packet.outcome != HEADER_MARKED)
		return count(packet.outcome);
	if (ethernet && at != ETH_HLEN)
		return count(HEADER_VLAN);
	if (skb->len - at - FIXED_OCTETS + room > MAX_PAYLOAD)
		return count(HEADER_BIG);
	if (packet.octets + room > IPV6_MIN_MTU && packet.octets + room > longest(skb, wanted))
		return count(HEADER_NO_ROOM);
	return insert(skb, ethernet ? ETH_HLEN : 0, wanted->tag);
}

/* Devices with a MAC header, Ethernet's. */
SEC("tc") int scitags_header(struct __sk_buff *skb)
{
	return mark(skb, 1);
}

/* Devices without one: tun, wireguard, IP tunnels. */
SEC("tc") int scitags_header_l3(struct __sk_buff *skb)
{
	return skb->protocol == bpf_htons(ETH_P_IPV6) ? mark(skb, 0) : TC_ACT_UNSPEC;
}
