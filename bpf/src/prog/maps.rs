//! Every map, once. Sizes are the defaults; the agent sets those of its configuration at load.

use super::balance::Choice;
use super::beside;
use super::fragment::Fragment;
use super::packet::Packet;
use super::pods::{self, Seen};
use super::policy::{Case, Search};
use super::report::Run;
use super::rewrite::Translation;
use super::sum::Summing;
use crate::Addr;
use crate::event::{Count, DropKey, path};
use crate::flow::{Flow, FlowKey, Limits, Share, Sweep, flow_count, sweep};
use crate::fragment::{
    DATAGRAMS, Datagram, FragmentKey, HELD_BYTES, HELD_GROUPS, HELD_SLOTS, HeldFrame, HeldRing,
};
use crate::pod::Pod;
use crate::policy::{Audit, Audited, IdentityRow, PolicyKey, PolicyRow, Range};
use crate::schema1;
use crate::service::{Affinity, AffinityKey, Backend, Frontend, FrontendKey};
use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, LruPerCpuHashMap, PerCpuArray, RingBuf};

#[map]
pub(super) static POD_BY_IFINDEX: HashMap<u32, Pod> = HashMap::with_max_entries(1024, 0);
#[map]
pub(super) static POD_BY_ADDR: HashMap<Addr, Pod> = HashMap::with_max_entries(2048, 0);
/// Has another value after each change of the two above, never 0 once an agent that knows it was there.
#[map]
pub(super) static POD_EPOCH: Array<u64> = Array::with_max_entries(1, 0);
#[map]
pub(super) static SEEN_INTERFACES: PerCpuArray<Seen> = PerCpuArray::with_max_entries(pods::INTERFACES + 1, 0);
#[map]
pub(super) static SEEN_ADDRESSES: PerCpuArray<Seen> = PerCpuArray::with_max_entries(pods::ADDRESSES + 1, 0);
#[map]
pub(super) static FRONTENDS: HashMap<FrontendKey, Frontend> = HashMap::with_max_entries(65_536, 0);
#[map]
pub(super) static SLOTS: Array<u32> = Array::with_max_entries(262_144, 0);
#[map]
pub(super) static BACKENDS: Array<Backend> = Array::with_max_entries(65_536, 0);
#[map]
pub(super) static AFFINITY: LruHashMap<AffinityKey, Affinity> = LruHashMap::with_max_entries(65_536, 0);
#[map]
pub(super) static POLICY: HashMap<PolicyKey, PolicyRow> =
    HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);
#[map]
pub(super) static RANGES: Array<Range> = Array::with_max_entries(65_536, 0);
#[map]
pub(super) static IDENTITIES: HashMap<Addr, IdentityRow> =
    HashMap::with_max_entries(131_072, BPF_F_NO_PREALLOC);
/// Keys as in [`crate::policy::Block`].
#[map]
pub(super) static BLOCKS: LpmTrie<Addr, u64> = LpmTrie::with_max_entries(16_384, 0);
/// Has another value after each change by which a verdict may be another one.
#[map]
pub(super) static POLICY_EPOCH: Array<u64> = Array::with_max_entries(1, 0);
#[map]
pub(super) static AUDIT: Array<Audit> = Array::with_max_entries(1, 0);
#[map]
pub(super) static AUDITED: PerCpuArray<Audited> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub(super) static NURSERY: LruHashMap<FlowKey, Flow> = LruHashMap::with_max_entries(131_072, 0);
#[map]
pub(super) static ESTABLISHED: HashMap<FlowKey, Flow> = HashMap::with_max_entries(262_144, 0);
#[map]
pub(super) static SHARES: HashMap<u32, Share> = HashMap::with_max_entries(1024, 0);
/// The agent's passes over the tables of flows; its own, not pinned.
#[map]
pub(super) static SWEEPS: Array<Sweep> = Array::with_max_entries(sweep::COUNT, 0);
/// Since when the agent's passes meet rows of pods that have no share, by endpoint, in seconds since boot; likewise.
#[map]
pub(super) static GONE: HashMap<u32, u32> = HashMap::with_max_entries(4096, 0);
#[map]
pub(super) static FLOW_COUNTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(flow_count::COUNT, 0);
#[map]
pub(super) static FRAGMENTS: LruHashMap<FragmentKey, Datagram> = LruHashMap::with_max_entries(DATAGRAMS, 0);
#[map]
pub(super) static HELD: Array<HeldRing> = Array::with_max_entries(HELD_GROUPS, 0);
#[map]
pub(super) static HELD_FRAMES: Array<HeldFrame> = Array::with_max_entries(HELD_GROUPS * HELD_SLOTS, 0);
/// Nothing but the numbers of a ring's slots, to go through them.
#[map]
pub(super) static HELD_PLACES: Array<u32> = Array::with_max_entries(HELD_SLOTS, 0);
#[map]
pub(super) static DROPS: LruPerCpuHashMap<DropKey, Count> = LruPerCpuHashMap::with_max_entries(1024, 0);
#[map]
pub(super) static DROP_TOTALS: PerCpuArray<Count> =
    PerCpuArray::with_max_entries(crate::event::DROP_TOTALS, 0);
#[map]
pub(super) static PATHS: PerCpuArray<Count> = PerCpuArray::with_max_entries(path::COUNT, 0);
#[map]
pub(super) static EVENTS: RingBuf = RingBuf::with_byte_size(256 * 1024, 0);

/// The packet in hand, by CPU: programs of one CPU never interrupt each other (they run with softirqs off),
/// but where one makes the kernel run another ([`work::NESTED`]). What is in a map the verifier does not
/// follow value by value, which keeps its work small, and it takes no stack.
#[map]
pub(super) static WORK: PerCpuArray<Work> = PerCpuArray::with_max_entries(work::COUNT, 0);

/// Rows of [`WORK`].
pub(super) mod work {
    /// The packet in hand.
    pub(in crate::prog) const OUTER: u32 = 0;
    /// One that is sent in its midst and passes the same hook ([`super::Work::sending`]).
    pub(in crate::prog) const NESTED: u32 = 1;
    /// A held fragment that is given up.
    pub(in crate::prog) const GIVEN_UP: u32 = 2;
    /// The packet of an explain run, which packets may interrupt: some kernels leave softirqs on.
    pub(in crate::prog) const EXPLAIN: u32 = 3;
    /// Number of rows.
    pub(in crate::prog) const COUNT: u32 = 4;
}

/// What is known of the packet in hand.
pub(super) struct Work {
    pub(super) run: Run,
    pub(super) packet: Packet,
    /// The packet that an ICMP error quotes.
    pub(super) quoted: Packet,
    pub(super) to: Translation,
    pub(super) choice: Choice,
    pub(super) case: Case,
    pub(super) summing: Summing,
    pub(super) fragment: Fragment,
    /// A run within this run is to be expected: it takes the other row.
    pub(super) sending: bool,
}

/// The first fragment's bytes while the held ones are sent on, by CPU.
#[map]
pub(super) static FIRST: PerCpuArray<[u8; HELD_BYTES]> = PerCpuArray::with_max_entries(1, 0);

/// When each pod's share of ICMP errors is used up; see [`super::reject`].
#[map]
pub(super) static REJECTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(REJECT_ROWS, 0);
/// Pods whose numbers differ by a multiple of this have one share.
pub(super) const REJECT_ROWS: u32 = 256;

/// Rows in the making, likewise: of packets, and of explain runs.
#[map]
pub(super) static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(2, 0);

/// Two flow rows, near leg and far leg, and rows of the agent's tables at one moment.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Scratch {
    pub(super) key: FlowKey,
    pub(super) flow: Flow,
    pub(super) other_key: FlowKey,
    pub(super) other: Flow,
    pub(super) frontend: Frontend,
    pub(super) identity: IdentityRow,
    pub(super) policy: PolicyRow,
    pub(super) search: Search,
}

/// The tables of the programs that run [`beside`] these, while there are any; else of one row, and unused.
#[map]
pub(super) static OLD_FLOWS: LruHashMap<FlowKey, schema1::Flow> = LruHashMap::with_max_entries(1, 0);
#[map]
pub(super) static OLD_NURSERY: LruHashMap<FlowKey, Flow> = LruHashMap::with_max_entries(1, 0);
#[map]
pub(super) static OLD_ESTABLISHED: HashMap<FlowKey, Flow> = HashMap::with_max_entries(1, 0);
#[map]
pub(super) static BESIDE_ROWS: PerCpuArray<beside::Rows> = PerCpuArray::with_max_entries(1, 0);

/// Which programs run [`beside`] these ([`crate::flow::beside`]); set at load.
#[unsafe(no_mangle)]
pub(super) static BESIDE: u32 = crate::flow::beside::ALONE;

/// The configuration's limits; set at load.
#[unsafe(no_mangle)]
pub(super) static LIMITS: Limits = Limits::DEFAULT;

/// The agent's secret for explain runs (see [`crate::event::EXPLAIN_WORDS`]); set at load, zero: none.
#[unsafe(no_mangle)]
pub(super) static EXPLAIN_SECRET: [u32; crate::event::EXPLAIN_WORDS] = [0; crate::event::EXPLAIN_WORDS];
