// SPDX-License-Identifier: Apache-2.0
/*
 * Reports TCP connections of a cgroup: opened, and closed with what went over them.
 *
 * It runs when a connection changes its state, never for a packet, and changes nothing that others see: it
 * returns 1 and leaves the reply as it is, and adds its callback to those that a socket has already.
 */
#include <linux/bpf.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "connections.h"

char LICENSE[] SEC("license") = "Apache-2.0";

#define AF_INET 2
#define AF_INET6 10
#define GO_ON 1
#define MAPPED bpf_htonl(0x0000ffff)

const volatile struct settings settings;

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096); /* the loader sets it */
} connections SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, REPORTS);
	__type(key, __u32);
	__type(value, __u64);
} reports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct progress);
} progress SEC(".maps");

static __always_inline void count(__u32 report)
{
	__u64 *total = bpf_map_lookup_elem(&reports, &report);

	if (total)
		(*total)++;
}

static __always_inline int is_asked_for(__u8 event)
{
	return settings.events >> event & 1;
}

static __always_inline int is_wanted(__u32 local_port, __u32 remote_port)
{
	for (__u32 i = 0; i < MAX_FILTERS; i++) {
		const volatile struct filter *filter = &settings.filter[i];

		if (i >= settings.filters)
			break;
		if (local_port >= filter->local_first && local_port <= filter->local_last &&
		    remote_port >= filter->remote_first && remote_port <= filter->remote_last)
			return 1;
	}
	return 0;
}

static __always_inline void fill_addresses(struct bpf_sock_ops *ops, struct connection *report)
{
	if (ops->family == AF_INET) {
		report->local[0] = report->local[1] = 0;
		report->remote[0] = report->remote[1] = 0;
		report->local[2] = report->remote[2] = MAPPED;
		report->local[3] = ops->local_ip4;
		report->remote[3] = ops->remote_ip4;
		/* Keeps the two ways apart: joined, they would load from a context that was added to, which the
		 * verifier does not take. */
		asm volatile("" ::: "memory");
		return;
	}
	report->local[0] = ops->local_ip6[0];
	report->local[1] = ops->local_ip6[1];
	report->local[2] = ops->local_ip6[2];
	report->local[3] = ops->local_ip6[3];
	report->remote[0] = ops->remote_ip6[0];
	report->remote[1] = ops->remote_ip6[1];
	report->remote[2] = ops->remote_ip6[2];
	report->remote[3] = ops->remote_ip6[3];
}

/* A connection that begins. */
static __always_inline void remember_syn(struct bpf_sock *sock, __u8 event)
{
	struct progress *known = sock ? bpf_sk_storage_get(&progress, sock, 0, BPF_SK_STORAGE_GET_F_CREATE) : 0;

	if (known)
		known->syn_counts = event == CONNECTION_ACTIVE;
}

/* One whose FIN the other end has acknowledged, and that has had none itself. */
static __always_inline void remember_fin(struct bpf_sock_ops *ops)
{
	struct bpf_sock *sock = ops->sk;
	struct progress *known = sock ? bpf_sk_storage_get(&progress, sock, 0, 0) : 0;

	if (!known)
		return;
	known->fin_acked = 1;
	known->received_at_fin_wait2 = ops->bytes_received;
}

static __always_inline void fill_payload(struct bpf_sock_ops *ops, struct bpf_sock *sock, __u8 old_state,
					 struct connection *report)
{
	struct progress *known = sock ? bpf_sk_storage_get(&progress, sock, 0, 0) : 0;
	__u64 sent = ops->bytes_acked, received = ops->bytes_received;

	if (known) {
		sent -= known->syn_counts + known->fin_acked;
		/* The kernel may close here before it has had the other's FIN, when nobody holds the socket. */
		if (old_state == BPF_TCP_FIN_WAIT2 && received > known->received_at_fin_wait2)
			received--;
	}
	switch (old_state) {
	case BPF_TCP_LAST_ACK:
	case BPF_TCP_CLOSING:
		if (ops->snd_una == ops->snd_nxt)
			sent--;
		/* fall through */
	case BPF_TCP_CLOSE_WAIT:
		received--;
	}
	report->sent = (__s64)sent < 0 ? 0 : sent;
	report->received = (__s64)received < 0 ? 0 : received;
}

static __always_inline void fill_delivered(struct bpf_sock *sock, struct connection *report)
{
	struct bpf_tcp_sock *tcp = settings.has_tcp_sock && sock ? bpf_tcp_sock(sock) : 0;

	report->interface = sock ? sock->bound_dev_if : 0;
	report->delivered = tcp ? tcp->delivered : 0;
	report->delivered_ce = tcp ? tcp->delivered_ce : 0;
}

static __always_inline void report(struct bpf_sock_ops *ops, __u8 event, __u8 old_state, __u64 netns)
{
	struct bpf_sock *sock = ops->sk;
	struct connection *report;

	report = bpf_ringbuf_reserve(&connections, sizeof(*report), 0);
	if (!report) {
		count(REPORT_LOST);
		return;
	}
	report->cookie = bpf_get_socket_cookie(ops);
	report->netns = netns;
	report->when = bpf_ktime_get_ns();
	fill_payload(ops, sock, old_state, report);
	fill_addresses(ops, report);
	report->rtt = ops->srtt_us >> 3; /* the kernel keeps eighths */
	report->min_rtt = ops->rtt_min;
	report->mss = ops->mss_cache;
	report->congestion_window = ops->snd_cwnd;
	report->retransmitted = ops->total_retrans;
	report->lost = ops->lost_out;
	report->segments_sent = ops->segs_out;
	report->segments_received = ops->segs_in;
	report->local_port = ops->local_port;
	report->remote_port = bpf_ntohl(ops->remote_port);
	report->event = event;
	report->old_state = old_state;
	__builtin_memset(report->pad, 0, sizeof(report->pad));
	fill_delivered(sock, report);
	bpf_ringbuf_submit(report, 0);
	count(REPORT_WRITTEN);
}

SEC("sockops") int scitags_connections(struct bpf_sock_ops *ops)
{
	__u64 netns = 0;
	__u8 event;

	switch (ops->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		event = CONNECTION_OPENING;
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		event = CONNECTION_ACTIVE;
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		event = CONNECTION_PASSIVE;
		break;
	case BPF_SOCK_OPS_STATE_CB:
		if (ops->args[1] == BPF_TCP_FIN_WAIT2)
			remember_fin(ops);
		if (ops->args[1] != BPF_TCP_CLOSE)
			return GO_ON;
		/* A callback that somebody has asked for comes to all. */
		if (ops->args[0] == BPF_TCP_SYN_SENT && !is_asked_for(CONNECTION_OPENING))
			return GO_ON;
		event = CONNECTION_CLOSED;
		break;
	default:
		return GO_ON;
	}
	if (ops->family != AF_INET && ops->family != AF_INET6)
		return GO_ON;
	if (!is_wanted(ops->local_port, bpf_ntohl(ops->remote_port)))
		return GO_ON;
	if (settings.has_netns_cookie) {
		netns = bpf_get_netns_cookie(ops);
		if (settings.netns && netns != settings.netns)
			return GO_ON;
	}
	if (event == CONNECTION_OPENING && !is_asked_for(event))
		return GO_ON;
	/* So that the end is told of what has begun, and of nothing else. */
	if (event != CONNECTION_CLOSED && is_asked_for(CONNECTION_CLOSED)) {
		remember_syn(ops->sk, event);
		bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
	}
	if (is_asked_for(event))
		report(ops, event, event == CONNECTION_CLOSED ? ops->args[0] : 0, netns);
	return GO_ON;
}
