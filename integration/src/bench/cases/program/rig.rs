//! A datapath of its own with pods and Services, without agent or traffic: frames are run through its program.
//!
//! | what | which |
//! |---|---|
//! | pod *i* | 10.244.1.2 + *i*, at the interface `pod`*i* |
//! | clients | the first four pods |
//! | servers | the others, four of them behind each Service of [`crate::services`] |
//! | source ports | below 49 152 of new connections, above of those that are established beforehand |

use crate::cases::frames::{REDIRECTED, Segment, ends, frame};
use crate::services::{PORT, Services};
use crate::subjects::tables_for;
use anyhow::{Context as _, Result, ensure};
use aya::programs::ProgramInfo;
use netd::datapath::config::{Audit, Config, Timeouts};
use netd::datapath::test_run::{Ran, Stage};
use netd::datapath::{Datapath, Sets};
use netd_bpf::pod::Pod;
use netd_bpf::service::{Backend, Frontend, FrontendKey, backend_state, kind, scope};
use netd_integration::lab::Namespace;
use netd_integration::node::Tables;
use nix::net::if_::if_nametoindex;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

const CLIENTS: u32 = 4;
const SERVERS: u32 = 64;
const FIRST_POD: u32 = u32::from_be_bytes([10, 244, 1, 2]);
const SERVER_PORT: u16 = 8080;
const TCP: u8 = 6;

const FIRST_NEW: u32 = 1_024;
const FIRST_ESTABLISHED: u32 = 49_152;
/// Flows to one Service that can be established beforehand.
const FLOWS_EACH: u32 = CLIENTS * (65_536 - FIRST_ESTABLISHED);
/// New connections by [`Rig::connect`], and as many by [`Rig::syn`] at most: they fit into their table, two rows
/// each.
pub(super) const NEW: u32 = 60_000;

/// An established flow: a frame of each way, and at which interfaces they come in.
#[derive(Clone, Debug)]
pub(super) struct Flow {
    pub(super) client: u32,
    pub(super) forth: Vec<u8>,
    pub(super) server: u32,
    pub(super) back: Vec<u8>,
}

/// The datapath. Its test-runs are for threads in the namespace of its interfaces.
#[derive(Debug)]
pub(super) struct Rig {
    datapath: Datapath,
    program: PathBuf,
    /// Of pods, by number.
    interfaces: Vec<u32>,
    vips: Vec<Ipv4Addr>,
    flows: Vec<Flow>,
    new: AtomicU32,
}

fn ip(pod: u32) -> Ipv4Addr {
    Ipv4Addr::from(FIRST_POD + pod)
}

impl Rig {
    /// Makes the interfaces.
    pub(super) fn links(namespace: &Namespace) -> Result<()> {
        (0..CLIENTS + SERVERS)
            .try_for_each(|i| namespace.ip(&format!("link add pod{i} type veth peer name eth{i}")).map(drop))
    }

    /// Opens a datapath below `bpffs` with a number of Services.
    pub(super) fn new(bpffs: &Path, services: u32) -> Result<Self> {
        let Tables { flows, frontends, backends, slots, pods } = tables_for(services);
        let config = Config {
            bpffs: bpffs.to_path_buf(),
            flows,
            flows_per_pod: 65_536,
            nursery: 262_144,
            affinity: 65_536,
            frontends,
            backends,
            slots,
            pods,
            policy_rows: 65_536,
            policy_ranges: 65_536,
            identities: 131_072,
            blocks: 16_384,
            timeouts: Timeouts::default(),
            audit: Audit::default(),
        };
        let (datapath, _) = Datapath::open(&config)?;
        let mut interfaces = Vec::new();
        for i in 0..CLIENTS + SERVERS {
            let ifindex = if_nametoindex(format!("pod{i}").as_str())?;
            interfaces.push(ifindex);
            let [_, _, high, low] = i.to_be_bytes();
            datapath.set_policy(i + 1, Sets::OPEN)?;
            datapath.upsert_pod(&Pod {
                v4: IpAddr::V4(ip(i)).into(),
                ifindex,
                endpoint: i + 1,
                pod_mac: [2, 0, 0, 1, high, low],
                host_mac: [2, 0x6e, 0x65, 0x74, 0x64, 1],
                ..Pod::default()
            })?;
        }
        let vips = write(&datapath, services)?;
        let program = bpffs.join(format!("v{}/programs/pod_egress", netd_bpf::SCHEMA));
        Ok(Self { datapath, program, interfaces, vips, flows: Vec::new(), new: AtomicU32::new(0) })
    }

    /// Counters of the program.
    pub(super) fn info(&self) -> Result<ProgramInfo> {
        ProgramInfo::from_pin(&self.program).with_context(|| format!("opening {}", self.program.display()))
    }

    /// Where the program is pinned.
    pub(super) fn program(&self) -> &Path {
        &self.program
    }

    /// Number of Services.
    pub(super) fn services(&self) -> u32 {
        u32::try_from(self.vips.len()).unwrap_or(u32::MAX)
    }

    /// Number of established flows.
    pub(super) fn flows(&self) -> u32 {
        u32::try_from(self.flows.len()).unwrap_or(u32::MAX)
    }

    /// An established flow.
    pub(super) fn flow(&self, flow: u32) -> Result<&Flow> {
        self.flows.get(flow as usize).context("no such flow")
    }

    fn vip(&self, service: u32) -> Result<SocketAddrV4> {
        let vip = self.vips.get(service as usize).context("no such Service")?;
        Ok(SocketAddrV4::new(*vip, PORT))
    }

    fn interface(&self, pod: u32) -> Result<u32> {
        self.interfaces.get(pod as usize).copied().context("no such pod")
    }

    /// Sends a frame from a pod, to be delivered into another.
    pub(super) fn send(&self, ifindex: u32, frame: &[u8]) -> Result<Ran> {
        let ran = self.datapath.test_run(Stage::PodEgress, frame, ifindex, false, 1)?;
        ensure!(ran.verdict == REDIRECTED, "the verdict was {}", ran.verdict);
        Ok(ran)
    }

    /// Sends the first packet of a new connection to a Service.
    pub(super) fn connect(&self, service: u32) -> Result<()> {
        let n = self.new.fetch_add(1, Ordering::Relaxed);
        ensure!(n < NEW, "no source port is left");
        let (client, port) = (n % CLIENTS, FIRST_NEW + n / CLIENTS);
        let source = SocketAddrV4::new(ip(client), u16::try_from(port)?);
        self.send(self.interface(client)?, &frame(source, self.vip(service)?, Segment::Syn)?).map(drop)
    }

    /// Shakes hands over at most `count` flows, spread over all clients and Services.
    pub(super) fn establish(&mut self, count: u32) -> Result<()> {
        let services = self.services();
        for n in 0..count.min(services.saturating_mul(FLOWS_EACH)) {
            let (client, service) = (n % CLIENTS, n / CLIENTS % services);
            let port = u16::try_from(FIRST_ESTABLISHED + n / CLIENTS / services)?;
            self.flows.push(self.shake_hands(client, port, self.vip(service)?)?);
        }
        let mut rows = 0;
        for endpoint in 1..=CLIENTS + SERVERS {
            rows += self.datapath.share(endpoint)?.unwrap_or(0);
        }
        let all = 2 * u64::from(self.flows());
        ensure!(rows == all, "{rows} rows of {all} are established");
        Ok(())
    }

    /// An established flow from the first client to the first server, without a Service.
    pub(super) fn direct(&self) -> Result<Flow> {
        self.shake_hands(0, u16::try_from(FIRST_ESTABLISHED)?, SocketAddrV4::new(ip(CLIENTS), 80))
    }

    /// The first packet of a connection to the first Service, from a pod that has no others and is no server of
    /// that, and its interface.
    pub(super) fn syn(&self) -> Result<(u32, Vec<u8>)> {
        let pod = CLIENTS + SERVERS - 1;
        let source = SocketAddrV4::new(ip(pod), u16::try_from(FIRST_NEW)?);
        Ok((self.interface(pod)?, frame(source, self.vip(0)?, Segment::Syn)?))
    }

    fn shake_hands(&self, client: u32, port: u16, vip: SocketAddrV4) -> Result<Flow> {
        let source = SocketAddrV4::new(ip(client), port);
        let client = self.interface(client)?;
        let arrived = self.send(client, &frame(source, vip, Segment::Syn)?)?;
        let (_, backend) = ends(&arrived.packet)?;
        let pod = u32::from(*backend.ip()).checked_sub(FIRST_POD).context("sent to no pod")?;
        let server = self.interface(pod)?;
        let answered = self.send(server, &frame(backend, source, Segment::SynAck)?)?;
        ensure!(ends(&answered.packet)? == (vip, source), "the answer does not come from {vip}");
        self.send(client, &frame(source, vip, Segment::Ack)?)?;
        let flow = Flow {
            client,
            forth: frame(source, vip, Segment::Data)?,
            server,
            back: frame(backend, source, Segment::Data)?,
        };
        let arrived = self.send(client, &flow.forth)?;
        ensure!(ends(&arrived.packet)? == (source, backend), "{source} changed its server");
        let answered = self.send(server, &flow.back)?;
        ensure!(ends(&answered.packet)? == (vip, source), "the answer does not come from {vip}");
        Ok(flow)
    }
}

/// Writes the Services; their addresses.
fn write(datapath: &Datapath, count: u32) -> Result<Vec<Ipv4Addr>> {
    let mut vips = Vec::new();
    let (mut backend, mut slot) = (0, 0);
    for service in Services::new(count, ip(CLIENTS)).all() {
        let mut ids = Vec::new();
        for _ in &service.endpoints {
            // No two have one address and port: they would have to tell flows of one client port apart.
            let (server, port) =
                (CLIENTS + backend % SERVERS, SERVER_PORT + u16::try_from(backend / SERVERS)?);
            backend += 1;
            ids.push(backend);
            let row = Backend {
                addr: IpAddr::V4(ip(server)).into(),
                port: port.to_be(),
                proto: TCP,
                state: backend_state::ACTIVE,
                generation: 1,
                service: slot + 1,
            };
            datapath.set_backend(backend, &row)?;
        }
        datapath.set_slots(slot, &ids)?;
        let backends = u16::try_from(ids.len())?;
        let key = FrontendKey {
            addr: IpAddr::V4(service.vip).into(),
            port: PORT.to_be(),
            proto: TCP,
            scope: scope::INTERNAL,
        };
        let row = Frontend {
            service: slot + 1,
            slot_base: slot,
            backends,
            kind: kind::BALANCE,
            ..Frontend::default()
        };
        datapath.set_frontend(&key, &row)?;
        slot += u32::from(backends);
        vips.push(service.vip);
    }
    Ok(vips)
}

/// A xorshift generator (Marsaglia 2003), the same numbers in every run.
#[derive(Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) const fn new() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }

    /// A number below `limit`.
    pub(super) fn below(&mut self, limit: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        u32::try_from(((self.0 >> 32) * u64::from(limit)) >> 32).unwrap_or(0)
    }
}
