//! Service changes while packets flow, on all CPUs: no packet goes to a backend that is neither of the old nor
//! of the new list, and none is lost while both lists have one.
//!
//! The whole history is drawn beforehand. One thread plans and writes it; each other one sends the first
//! packets of flows, and notes before and after each which states were in force meanwhile. What the planner
//! left is given out again as soon as every program that ran then has ended: the tightest quarantine there is.

use super::{Maps, QUARANTINE, Writer, kernel, refused};
use crate::datapath::tests::frames::{Segment, TCP, UDP, addr, read, tcp, udp};
use crate::datapath::tests::rig::{Rig, isolated};
use crate::model::{ObjectName, Protocol};
use crate::service::plan::{Desired, DesiredBackend, DesiredFrontend, DesiredService};
use crate::service::tables::Op;
use netd_bpf::event::reason;
use netd_bpf::service::{FrontendKey, backend_state};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

const SERVICES: usize = 12;
/// Endpoints that a Service may have, by bit.
const ENDPOINTS: u32 = 8;
const STATES: usize = 1000;

/// Of each Service the set of its endpoints; none: it does not exist.
type State = [Option<u8>; SERVICES];

/// xorshift64* (Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled").
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % sides
    }
}

/// Changes as clusters have them, and harder ones. Service 0 never changes.
fn history(dice: &mut Dice) -> Vec<State> {
    let mut state: State = [Some(0b0111); SERVICES];
    let mut states = vec![state];
    while states.len() < STATES {
        for _ in 0..=dice.roll(3) {
            let service = &mut state[1 + dice.roll(SERVICES - 1)];
            let one = 1 << dice.roll(ENDPOINTS as usize);
            *service = match (*service, dice.roll(12)) {
                (None, _) => Some(one),
                (Some(_), 0) => None,
                (Some(_), 1) => Some(0),
                (Some(set), 2..=4) => Some(!set),
                (Some(set), 5..=7) => Some(set | one),
                (Some(set), 8..=9) => Some(set & !one),
                (Some(_), _) => Some(one),
            };
        }
        states.push(state);
    }
    states
}

fn vip(service: usize, v6: bool) -> IpAddr {
    let text = if v6 { format!("fd96::{service:x}") } else { format!("10.96.0.{service}") };
    text.parse().unwrap()
}

/// Services of odd numbers have their endpoints in common, the others have ports of their own.
fn endpoint(service: usize, bit: u32, v6: bool) -> SocketAddr {
    let text = if v6 { format!("fd01::{:x}", bit + 1) } else { format!("10.1.0.{}", bit + 1) };
    let port = if service % 2 == 1 { 9000 } else { 8000 + u16::try_from(service).unwrap() };
    SocketAddr::new(text.parse().unwrap(), port)
}

fn endpoints(service: usize, set: u8, v6: bool) -> impl Iterator<Item = SocketAddr> {
    (0..ENDPOINTS).filter(move |bit| set & 1 << bit != 0).map(move |bit| endpoint(service, bit, v6))
}

fn desired(state: &State) -> Desired {
    let frontend = |service: usize, set: u8, proto: u8, v6: bool| DesiredFrontend {
        key: FrontendKey { addr: vip(service, v6).into(), port: 80_u16.to_be(), proto, scope: 0 },
        port: 80,
        protocol: if proto == TCP { Protocol::Tcp } else { Protocol::Udp },
        // A backend remembered must be as right as one drawn.
        affinity_seconds: service.is_multiple_of(3).then_some(10_800),
        backends: endpoints(service, set, v6)
            .map(|at| DesiredBackend {
                addr: addr(&at.ip().to_string()),
                port: at.port().to_be(),
                local: false,
                pod: None,
            })
            .collect(),
    };
    let services = state.iter().enumerate().filter_map(|(service, set)| {
        let set = (*set)?;
        let frontends = [(TCP, false), (TCP, true), (UDP, false), (UDP, true)];
        Some(DesiredService {
            name: ObjectName::new("shop", &format!("s{service:02}")),
            frontends: frontends.map(|(proto, v6)| frontend(service, set, proto, v6)).to_vec(),
        })
    });
    Desired { services: services.collect(), ..Desired::default() }
}

fn frees(op: &Op) -> bool {
    matches!(op, Op::SetBackend { row, .. } if row.state == backend_state::FREE)
}

/// What the threads know of each other.
#[derive(Default)]
struct Progress {
    /// The newest state whose writes have begun.
    begun: AtomicUsize,
    /// The newest state whose writes are done.
    done: AtomicUsize,
    over: AtomicBool,
    /// Packets of each sender.
    sent: Vec<AtomicU64>,
}

impl Progress {
    /// Waits until every program that runs now has ended.
    fn grace(&self) {
        let before: Vec<u64> = self.sent.iter().map(|sent| sent.load(Ordering::SeqCst)).collect();
        for (sent, before) in self.sent.iter().zip(before) {
            // A sender that failed ends the wait, and its panic the test.
            while sent.load(Ordering::SeqCst) == before && !self.over.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
        }
    }
}

/// Ends the others' waits also when its thread panics.
struct Over<'a>(&'a Progress);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::SeqCst);
    }
}

/// Sends first packets of flows until all is over. Gives how many were served, dropped, passed by.
fn sender(rig: &Rig, states: &[State], progress: &Progress, number: usize) -> [u64; 3] {
    let _over = Over(progress);
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this).unwrap();
    let cpu = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap()).nth(number).unwrap();
    let mut own = CpuSet::new();
    own.set(cpu).unwrap();
    sched_setaffinity(this, &own).unwrap();
    let mut dice = Dice(0x9e37_79b9 + number as u64);
    let mut tally = [0; 3];
    while !progress.over.load(Ordering::SeqCst) {
        let (mut service, v6, proto) = (dice.roll(SERVICES), dice.roll(2) == 1, [TCP, UDP][dice.roll(2)]);
        // Rather those that change just now.
        let now = progress.begun.load(Ordering::SeqCst);
        let changing = (0..SERVICES).find(|n| now > 0 && states[now][*n] != states[now - 1][*n]);
        if let Some(changing) = changing.filter(|_| dice.roll(2) == 0) {
            service = changing;
        }
        let client: IpAddr = if v6 { "fd00::1" } else { "10.0.0.1" }.parse().unwrap();
        let from = SocketAddr::new(client, u16::try_from(1024 + dice.roll(60_000)).unwrap()).to_string();
        let to = SocketAddr::new(vip(service, v6), 80);
        let frame = if proto == TCP {
            tcp(&from, &to.to_string(), Segment::Syn)
        } else {
            udp(&from, &to.to_string())
        };

        let first = progress.done.load(Ordering::SeqCst);
        let ran = rig.pod_sends(&frame);
        let last = progress.begun.load(Ordering::SeqCst);
        progress.sent[number].fetch_add(1, Ordering::SeqCst);

        let sets: BTreeSet<Option<u8>> = states[first..=last].iter().map(|state| state[service]).collect();
        let refused = refused(&ran, &frame);
        let went = if refused { to } else { read(&ran.packet).destination };
        let context =
            || format!("packet to {to} protocol {proto} went to {went} in {first}..={last}: {sets:?}");
        if refused {
            assert!(sets.contains(&Some(0)), "{} and was refused", context());
            tally[1] += 1;
        } else if went == to {
            assert!(sets.contains(&None), "{}", context());
            tally[2] += 1;
        } else {
            let mut allowed = sets.iter().flatten().flat_map(|set| endpoints(service, *set, v6));
            assert!(allowed.any(|endpoint| endpoint == went), "{}", context());
            tally[0] += 1;
        }
    }
    tally
}

#[test]
fn no_packet_sees_anything_but_the_old_or_the_new() {
    isolated(|| {
        let rig = &Rig::with(|config| {
            (config.frontends, config.backends, config.slots) = (128, 512, 2048);
            config.nursery = 32_768;
        });
        let mut dice = Dice(0x5eed);
        let states = history(&mut dice);
        let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
        let cpus = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap()).count();
        let progress =
            Progress { sent: (0..cpus).map(|_| AtomicU64::new(0)).collect(), ..Progress::default() };
        let maps = Maps(Arc::clone(&rig.datapath));
        let mut writer = Writer::new(&maps);
        writer.bring(&desired(&states[0]));

        let (tally, written) = std::thread::scope(|scope| {
            let (states, progress) = (&states, &progress);
            let senders: Vec<_> =
                (0..cpus).map(|number| scope.spawn(move || sender(rig, states, progress, number))).collect();
            let over = Over(progress);
            let (mut written, mut freed) = (0, 0);
            for (n, state) in states.iter().enumerate().skip(1) {
                let desired = desired(state);
                progress.begun.store(n, Ordering::SeqCst);
                loop {
                    let plan = writer.bring(&desired);
                    written += plan.ops.len();
                    freed += plan.ops.iter().filter(|op| frees(op)).count();
                    assert_eq!(plan.refused, []);
                    if plan.waiting.is_empty() {
                        break;
                    }
                    progress.grace();
                    writer.now += QUARANTINE;
                }
                progress.done.store(n, Ordering::SeqCst);
                // What was left is either free at the next change, or still there to come back to.
                if dice.roll(2) == 0 {
                    progress.grace();
                    writer.now += QUARANTINE;
                }
                if progress.over.load(Ordering::SeqCst) {
                    break;
                }
            }
            progress.grace();
            drop(over);
            let mut tally = [0; 3];
            for sender in senders {
                let its = sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                tally.iter_mut().zip(its).for_each(|(sum, n)| *sum += n);
            }
            assert_eq!(writer.tables.drift(&kernel(&maps)), []);
            assert!(freed > 1000, "few ids were used again: {freed}");
            (tally, written)
        });
        let [served, dropped, passed] = tally;
        println!("{written} writes; {served} packets served, {dropped} refused, {passed} not for a Service");
        assert!(written > 10_000);
        assert!(served > 1000 && dropped > 0 && passed > 0, "{tally:?}");
        assert_eq!(rig.drops(reason::TORN_SERVICE), 0);
        assert_eq!(rig.drops(reason::NO_BACKEND), dropped);
    });
}
