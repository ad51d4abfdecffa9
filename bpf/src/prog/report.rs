//! What one run of a program tells: counters, drop events, or the answer of an explain run.

use super::maps;
use super::packet::Packet;
use super::policy::Case;
use super::table::now;
use crate::event::{Count, Drop, DropKey, EXPLAIN_WORDS, OPENED, total_index};
use crate::policy::Audit;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::programs::TcContext;
use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

/// One packet on its way through one program.
pub(super) struct Run {
    /// An explain run: changes nothing that another run or the agent would see ([`crate::event::EXPLAIN_WORDS`]).
    pub(super) explain: bool,
    pub(super) stage: u8,
    pub(super) ifindex: u32,
    pub(super) endpoint: u32,
    pub(super) service: u32,
    pub(super) backend: u32,
    /// The policy rule that denied the packet.
    pub(super) rule: u32,
    /// The policy rule that was the last to allow it.
    pub(super) allowed_by: u32,
    /// The policy set that did not allow the packet.
    pub(super) set: u64,
    /// The packet is an ICMP error about a packet of a known flow.
    pub(super) related: bool,
    /// The packet answers one that the node's own stack brought, and goes back there.
    pub(super) to_stack: bool,
    reason: u8,
}

impl Run {
    #[inline(always)]
    pub(super) fn start(&mut self, ctx: &TcContext, stage: u8, explain: bool) {
        // SAFETY: the context is valid for the whole run.
        self.set(stage, unsafe { (*ctx.skb.skb).ifindex });
        self.explain = explain;
    }

    /// As if nothing else were known.
    #[inline(always)]
    pub(super) fn set(&mut self, stage: u8, ifindex: u32) {
        *self = Self {
            explain: false,
            stage,
            ifindex,
            endpoint: 0,
            service: 0,
            backend: 0,
            rule: 0,
            allowed_by: 0,
            set: 0,
            related: false,
            to_stack: false,
            reason: 0,
        };
    }

    /// Counts how the packet left; the last thing a run does.
    #[inline(always)]
    pub(super) fn left_by(&self, ctx: &TcContext, path: u32, ifindex: u32) {
        if self.explain {
            self.answer(ctx, path, ifindex);
            return;
        }
        if let Some(count) = maps::PATHS.get_ptr_mut(path) {
            add(count, ctx.len());
        }
    }

    /// The reason told last, 0: none.
    #[inline(always)]
    pub(super) const fn reason(&self) -> u8 {
        self.reason
    }

    /// Counts a drop and sends the event.
    #[inline(always)]
    pub(super) fn dropped(&mut self, ctx: &TcContext, packet: &Packet, reason: u8) {
        self.reason = reason;
        if self.explain {
            return;
        }
        self.tell(packet, reason, ctx.len(), super::packet::ethertype(ctx));
    }

    /// The same of a packet of `length` bytes, which need not be the one in hand.
    #[inline(never)]
    pub(super) fn tell(&self, packet: &Packet, reason: u8, length: u32, ethertype: u16) {
        if let Some(count) = maps::DROP_TOTALS.get_ptr_mut(total_index(self.stage, reason)) {
            add(count, length);
        }
        let key = DropKey {
            reason,
            stage: self.stage,
            pad: 0,
            endpoint: self.endpoint,
            service: self.service,
            rule: self.rule,
        };
        if let Some(count) = maps::DROPS.get_ptr_mut(key) {
            add(count, length);
        } else {
            let first = Count { packets: 1, bytes: u64::from(length) };
            // A table without room loses the counter, not the verdict.
            maps::DROPS.insert(key, first, 0).ok();
        }
        self.send(packet, reason, length, ethertype, (self.rule, 0));
    }

    /// Tells of a flow that the packet opened, if flows are audited and this CPU has not told enough of them.
    #[inline(never)]
    pub(super) fn opened(&self, ctx: &TcContext, packet: &Packet, case: &Case) {
        let Some(&Audit { per_second }) = maps::AUDIT.get(0) else { return };
        if per_second == 0 || self.explain {
            return;
        }
        let Some(audited) = maps::AUDITED.get_ptr_mut(0) else { return };
        // SAFETY: a per-CPU value; programs of one CPU and hook do not preempt one another.
        let audited = unsafe { &mut *audited };
        let second = now();
        if audited.second != second {
            audited.second = second;
            audited.told = 0;
        }
        if audited.told >= per_second {
            audited.untold += 1;
            return;
        }
        audited.told += 1;
        let rules = (case.egress_rule, case.ingress_rule);
        if !self.send(packet, OPENED, ctx.len(), super::packet::ethertype(ctx), rules) {
            audited.untold += 1;
        }
    }

    /// Writes an event, with the rules as its fields have them; false if the ring has no room.
    #[inline(always)]
    fn send(
        &self,
        packet: &Packet,
        reason: u8,
        length: u32,
        ethertype: u16,
        (rule, ingress_rule): (u32, u32),
    ) -> bool {
        let Some(mut entry) = maps::EVENTS.reserve::<Drop>(0) else { return false };
        let event = entry.as_mut_ptr();
        // SAFETY: the reserved record; every field is written, and the struct has no padding.
        unsafe {
            (*event).time = bpf_ktime_get_ns();
            (*event).set = self.set;
            (*event).source = packet.source;
            (*event).destination = packet.original_destination;
            (*event).source_port = packet.source_port;
            (*event).destination_port = packet.original_destination_port;
            (*event).proto = packet.proto;
            (*event).tcp_flags = packet.tcp_flags;
            (*event).reason = reason;
            (*event).stage = self.stage;
            (*event).ifindex = self.ifindex;
            (*event).endpoint = self.endpoint;
            (*event).service = self.service;
            (*event).rule = rule;
            (*event).ingress_rule = ingress_rule;
            (*event).length = length;
            (*event).ethertype = u32::from(ethertype);
            (*event).backend = self.backend;
        }
        entry.submit(0);
        true
    }

    /// Writes [`crate::event::Explained`] into the words that asked for it.
    #[inline(never)]
    fn answer(&self, ctx: &TcContext, path: u32, ifindex: u32) {
        let rule = if self.reason == 0 { self.allowed_by } else { self.rule };
        let outcome = path | u32::from(self.reason) << 8 | u32::from(self.stage) << 16;
        let skb = ctx.skb.skb;
        // SAFETY: `cb` is writable context memory; each word at its own constant offset.
        unsafe {
            write_volatile(addr_of_mut!((*skb).cb[0]), outcome);
            write_volatile(addr_of_mut!((*skb).cb[1]), self.service);
            write_volatile(addr_of_mut!((*skb).cb[2]), self.backend);
            write_volatile(addr_of_mut!((*skb).cb[3]), rule);
            write_volatile(addr_of_mut!((*skb).cb[4]), ifindex);
        }
    }
}

#[inline(always)]
fn add(count: *mut Count, bytes: u32) {
    // SAFETY: a per-CPU value; programs of one CPU and hook do not preempt one another.
    unsafe {
        (*count).packets += 1;
        (*count).bytes += u64::from(bytes);
    }
}

/// True when the packet carries the agent's secret.
#[inline(always)]
pub(super) fn asked_to_explain(ctx: &TcContext) -> bool {
    let skb = ctx.skb.skb;
    // SAFETY: `cb` is readable context memory, the secret is read-only data; volatile, because the loader
    // puts the secret's real value in after the compiler has seen zeros.
    unsafe {
        let secret: [u32; EXPLAIN_WORDS] = read_volatile(addr_of!(maps::EXPLAIN_SECRET));
        secret[0] != 0
            && read_volatile(addr_of!((*skb).cb[0])) == secret[0]
            && read_volatile(addr_of!((*skb).cb[1])) == secret[1]
            && read_volatile(addr_of!((*skb).cb[2])) == secret[2]
            && read_volatile(addr_of!((*skb).cb[3])) == secret[3]
    }
}
