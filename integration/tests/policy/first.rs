//! A pod's first packets: those that it sends from the instant in which it has an interface, and those that waited for
//! it.

use super::scene::{DENY_ALL, Scene, reaches};
use anyhow::{Context as _, Result, ensure};
use netd_integration::lab::Lab;
use netd_integration::node::{Node, Pod};
use netd_integration::state::{Workload, policy};
use netd_integration::traffic::{self, Counter, Frames, Trickle};
use std::net::{IpAddr, SocketAddr};

/// How often the pod starts.
const STARTS: u32 = 200;
/// Datagrams of each kind and way within one life of the pod.
const DATAGRAMS: u64 = 40;
/// Where others count what the pod sends by sockets, and by frames.
const BY_SOCKET: u16 = 5_000;
const BY_FRAME: u16 = 5_001;
/// Where the pod counts what others send.
const INBOUND: u16 = 5_002;

/// The pod that starts, and those that it must not meet.
struct Meeting<'n> {
    node: &'n Node<'n>,
    addresses: [IpAddr; 2],
    near: Pod,
    far: Pod,
    /// What near and far counted.
    counters: [[Counter; 2]; 2],
    /// What near and far send, all the time.
    floods: [Trickle; 2],
}

/// What passed in one life of the pod.
#[derive(Debug, PartialEq, Eq)]
struct Passed {
    by_socket: u64,
    by_frame: u64,
    inbound: u64,
}

impl Meeting<'_> {
    fn counted(&self, kind: usize) -> u64 {
        self.counters.iter().filter_map(|counters| counters.get(kind)).map(Counter::received).sum()
    }

    /// ADD, a while of talk, DEL.
    fn life(&self) -> Result<Passed> {
        let before = (self.counted(0), self.counted(1));
        let (netns, attachment) = self.node.sandbox_in("quiet", "new")?;
        // On its loopback, which is all that it has: it hears every interface that comes.
        let mut frames = Frames::open(&netns, "lo")?;
        let counter = Counter::start(&netns, INBOUND)?;
        let targets = |port: u16| -> Vec<SocketAddr> {
            let others = self.near.addresses.iter().chain(&self.far.addresses);
            others.map(|ip| SocketAddr::new(*ip, port)).collect()
        };
        let by_socket = Trickle::start(&netns, 6_000, &targets(BY_SOCKET))?;
        let by_frame = Trickle::frames(&netns, 6_001, &self.addresses, &targets(BY_FRAME))?;
        self.node.runtime().add(&attachment)?;
        by_socket.more(DATAGRAMS)?;
        by_frame.more(DATAGRAMS)?;
        self.floods.iter().try_for_each(|flood| flood.more(DATAGRAMS))?;
        by_socket.stop()?;
        by_frame.stop()?;
        self.node.runtime().del(&attachment)?;
        // Its last packets count, too.
        let others: Vec<IpAddr> = self.near.addresses.iter().chain(&self.far.addresses).copied().collect();
        let inbound = frames.count_from(&others)? + counter.received();
        drop((frames, counter));
        netns.delete()?;
        let (by_socket, by_frame) = (self.counted(0) - before.0, self.counted(1) - before.1);
        Ok(Passed { by_socket, by_frame, inbound })
    }
}

#[test]
fn of_200_starts_of_a_denied_pod_not_one_packet_passes() -> Result<()> {
    Lab::run(|lab| {
        let scene = Scene::not_started(lab)?;
        let text = ["10.244.1.77", "fd00:244:1::77"];
        let mut new = Workload::new("quiet", "new", "a", &[]);
        new.annotations.insert("netd.io/addresses".into(), text.join(", "));
        scene.site.state.workload(&new)?;
        scene.node("a")?.configure(|config| config.cool_down = "0s".into());
        scene.site.start_all()?;
        let marker = scene.server("a", "quiet", "marker")?;
        let (near, far) = (scene.pod("a", "open", "near")?, scene.pod("b", "open", "far")?);
        let [v4, v6] = text;
        let addresses: [IpAddr; 2] = [v4.parse()?, v6.parse()?];
        let at = addresses.map(|ip| SocketAddr::new(ip, INBOUND));
        let count = |pod: &Pod| -> Result<[Counter; 2]> {
            Ok([Counter::start(&pod.netns, BY_SOCKET)?, Counter::start(&pod.netns, BY_FRAME)?])
        };
        let meeting = Meeting {
            node: scene.node("a")?,
            addresses,
            counters: [count(&near)?, count(&far)?],
            floods: [Trickle::start(&near.netns, 7_000, &at)?, Trickle::start(&far.netns, 7_000, &at)?],
            near,
            far,
        };

        // While nothing forbids it, all of it passes; and each way has its flow now.
        let open = meeting.life().context("while nothing forbids it")?;
        ensure!(open.by_socket > 0 && open.by_frame > 0 && open.inbound > 0, "{open:?}");

        // The policy comes while the pod is away.
        let deny = policy("quiet", "deny-all", DENY_ALL);
        let from = &meeting.near.netns;
        scene.change(&["a"], &reaches(from, &[&marker], false)?, || scene.site.state.policy(&deny))?;
        for start in 1..=STARTS {
            let passed = meeting.life().with_context(|| format!("start {start}"))?;
            let nothing = Passed { by_socket: 0, by_frame: 0, inbound: 0 };
            ensure!(passed == nothing, "start {start} of {STARTS}: {passed:?}");
        }

        scene.site.state.remove_policy(&deny)?;
        traffic::expect(&reaches(from, &[&marker], true)?)?;
        let open = meeting.life().context("after the policy")?;
        ensure!(open.by_socket > 0 && open.by_frame > 0 && open.inbound > 0, "{open:?}");
        Ok(())
    })
}
