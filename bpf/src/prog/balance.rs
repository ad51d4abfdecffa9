//! Services: from a frontend to one of its backends, all with the same probability.

use super::affinity;
use super::maps;
use super::packet::{Packet, TCP, UDP};
use super::report::Run;
use super::table;
use super::to_code;
use crate::Addr;
use crate::event::reason;
use crate::flow::{Flow, flow_flag};
use crate::service::{Backend, Frontend, FrontendKey, backend_state, frontend_flag, kind, scope, seal};
use aya_ebpf::bindings::{BPF_F_CURRENT_NETNS, bpf_sock_tuple};
use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_sk_lookup_tcp, bpf_sk_lookup_udp, bpf_sk_release};
use aya_ebpf::programs::TcContext;

/// How often a row that changes while it is read is read again. Each change takes the agent a system call.
const READ_TRIES: u32 = 4;

/// The backend a new flow goes to.
#[derive(Default)]
pub(super) struct Choice {
    pub(super) addr: Addr,
    pub(super) port: u16,
    pub(super) backend: u32,
    pub(super) generation: u32,
    pub(super) service: u32,
    /// A listener of this node ([`kind::LOCAL_REDIRECT`]).
    pub(super) local_redirect: bool,
    /// No Service: straight to a backend that the client also reaches through one ([`crate::flow::leg::ASIDE`]).
    pub(super) aside: bool,
}

impl Choice {
    /// Forgets the packet before.
    #[inline(always)]
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Fills `choice` if the destination is a Service; else its Service stays 0. Gives [`to_code`].
#[inline(never)]
pub(super) fn choose(ctx: &TcContext, run: &mut Run, packet: &Packet, choice: &mut Choice) -> u8 {
    to_code(choose_one(ctx, run, packet, choice))
}

#[inline(always)]
fn choose_one(ctx: &TcContext, run: &mut Run, packet: &Packet, choice: &mut Choice) -> Result<(), u8> {
    let key = FrontendKey {
        addr: packet.destination,
        port: packet.destination_port,
        proto: packet.proto,
        scope: scope::INTERNAL,
    };
    let Some(scratch) = table::scratch_of(run) else { return Ok(()) };
    let frontend = &mut scratch.frontend;
    if !read_frontend(&key, frontend)? {
        return Ok(());
    }
    run.service = frontend.service;
    choice.service = frontend.service;
    let mut first = frontend.slot_base;
    if frontend.kind == kind::LOCAL_REDIRECT {
        if pick(choice, first) && listening(ctx, packet, &choice.addr, choice.port) {
            choice.local_redirect = true;
            run.backend = choice.backend;
            return Ok(());
        }
        first += 1;
    }
    if frontend.backends == 0 {
        return Err(reason::NO_BACKEND);
    }
    // An explain run must not even look: that marks the row as recently used.
    let sticky = frontend.flags & frontend_flag::AFFINITY != 0 && !run.explain;
    if !(sticky && affinity::recall(&packet.source, frontend, choice)) {
        if !pick(choice, first + draw(frontend)) {
            return Err(reason::NO_BACKEND);
        }
        if sticky {
            affinity::remember(&packet.source, choice);
        }
    }
    run.backend = choice.backend;
    Ok(())
}

/// Copies a frontend's row; false if there is none. The kernel may give a replaced row's memory to the next
/// one while a program still reads it: then the seal is broken, and the table holds the row that is valid now.
#[inline(always)]
fn read_frontend(key: &FrontendKey, into: &mut Frontend) -> Result<bool, u8> {
    let mut missed = false;
    for _ in 0..READ_TRIES {
        // SAFETY: copied at once.
        let Some(row) = (unsafe { maps::FRONTENDS.get(key) }) else {
            // A row that is replaced is put at its bucket's head before the old one goes: who is past the head
            // by then, and not yet at the old one, sees neither.
            if missed {
                return Ok(false);
            }
            missed = true;
            continue;
        };
        *into = *row;
        if into.seal == seal(key, into) {
            return Ok(true);
        }
    }
    Err(reason::TORN_SERVICE)
}

/// A number below the frontend's count of backends: the high word of a 32×32-bit product, which is even
/// to one part in 2¹⁶ for the largest count.
#[inline(always)]
fn draw(frontend: &Frontend) -> u32 {
    // SAFETY: a helper without arguments.
    let random = unsafe { bpf_get_prandom_u32() };
    ((u64::from(random) * u64::from(frontend.backends)) >> 32) as u32
}

/// Takes the backend of a slot; false if there is none.
#[inline(always)]
fn pick(choice: &mut Choice, slot: u32) -> bool {
    let Some(&id) = maps::SLOTS.get(slot) else { return false };
    let Some(backend) = maps::BACKENDS.get(id) else { return false };
    if backend.state == backend_state::FREE {
        return false;
    }
    take(choice, id, backend);
    true
}

/// Takes the backend that a client had before; false if it no longer is this Service port's.
#[inline(always)]
pub(super) fn take_again(choice: &mut Choice, id: u32, generation: u32, service: u32) -> bool {
    let Some(backend) = maps::BACKENDS.get(id) else { return false };
    if !is(backend, generation) || backend.service != service {
        return false;
    }
    take(choice, id, backend);
    true
}

#[inline(always)]
fn take(choice: &mut Choice, id: u32, backend: &Backend) {
    choice.addr = backend.addr;
    choice.port = backend.port;
    choice.backend = id;
    choice.generation = backend.generation;
}

/// True if the backend still is the one that had this generation, and in use.
#[inline(always)]
fn is(backend: &Backend, generation: u32) -> bool {
    backend.state == backend_state::ACTIVE && backend.generation == generation
}

/// True if a flow's backend still takes the packets of its Service port, and if it is a listener of this node,
/// still listens. Number 0 is any: so a former agent's rows are, until they get their numbers.
#[inline(always)]
pub(super) fn still_there(ctx: &TcContext, flow: &Flow, packet: &Packet) -> bool {
    let in_use = maps::BACKENDS.get(flow.backend).is_some_and(|backend| {
        is(backend, flow.backend_generation) && (backend.service == flow.service || backend.service == 0)
    });
    in_use
        && (flow.flags & flow_flag::LOCAL_REDIRECT == 0
            || listening(ctx, packet, &flow.xlat_addr, flow.xlat_port))
}

/// True if a socket of this node takes the packet at this address.
#[inline(never)]
fn listening(ctx: &TcContext, packet: &Packet, addr: &Addr, port: u16) -> bool {
    // SAFETY: an all-zero value of a plain C struct.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    let size = if packet.v6 {
        tuple.__bindgen_anon_1.ipv6.saddr = packet.source.0;
        tuple.__bindgen_anon_1.ipv6.daddr = addr.0;
        tuple.__bindgen_anon_1.ipv6.sport = packet.source_port;
        tuple.__bindgen_anon_1.ipv6.dport = port;
        36
    } else {
        tuple.__bindgen_anon_1.ipv4.saddr = packet.source.v4_word();
        tuple.__bindgen_anon_1.ipv4.daddr = addr.v4_word();
        tuple.__bindgen_anon_1.ipv4.sport = packet.source_port;
        tuple.__bindgen_anon_1.ipv4.dport = port;
        12
    };
    let skb = ctx.skb.skb.cast();
    let netns = BPF_F_CURRENT_NETNS as u64;
    // SAFETY: the context is valid, `tuple` holds `size` bytes; what is found is released at once.
    unsafe {
        let socket = match packet.proto {
            TCP => bpf_sk_lookup_tcp(skb, &raw mut tuple, size, netns, 0),
            UDP => bpf_sk_lookup_udp(skb, &raw mut tuple, size, netns, 0),
            _ => return false,
        };
        if socket.is_null() {
            return false;
        }
        bpf_sk_release(socket.cast());
    }
    true
}
