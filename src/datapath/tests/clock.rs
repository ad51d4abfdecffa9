//! The wall clock is set: by hand, by NTP, or because a machine slept. Flows go by the time since boot.

use super::frames::{Segment, TCP, UDP, ip, read, tcp, udp};
use super::moves::FAMILIES;
use super::rig::{Rig, SERVICE, frontend_key, isolated};
use crate::datapath::FlowRow;
use crate::datapath::conversation::now;
use netd_bpf::service::{Frontend, backend_state, frontend_flag};
use nix::sys::time::TimeValLike as _;
use nix::time::{ClockId, clock_gettime, clock_settime};
use std::sync::Arc;
use std::time::Instant;

/// Says that the machine is for tests alone, as those of `cargo xtask vm` are.
const OWN_CLOCK: &str = "NETD_OWN_CLOCK";
const DAY: i64 = 24 * 3600;

/// Sets the wall clock, and back however the test ends.
struct Stepped {
    by: i64,
    since: Instant,
}

impl Stepped {
    fn by(seconds: i64) -> Self {
        let before = clock_gettime(ClockId::CLOCK_REALTIME).unwrap();
        set(seconds);
        let after = clock_gettime(ClockId::CLOCK_REALTIME).unwrap();
        assert!((after - before - nix::sys::time::TimeSpec::seconds(seconds)).num_seconds().abs() < 60);
        Self { by: seconds, since: Instant::now() }
    }
}

impl Drop for Stepped {
    fn drop(&mut self) {
        assert!(self.since.elapsed().as_secs() < 600, "the clock that is meant here steps by itself");
        set(-self.by);
    }
}

fn set(seconds: i64) {
    let now = clock_gettime(ClockId::CLOCK_REALTIME).unwrap();
    clock_settime(ClockId::CLOCK_REALTIME, now + nix::sys::time::TimeSpec::seconds(seconds)).unwrap();
}

/// A Service of two backends with session affinity, in each family.
fn services(rig: &Rig, proto: u8) {
    for ([_, vip, backend], first) in FAMILIES.into_iter().zip([1, 3]) {
        rig.backend(first, ip(backend), 8080, proto, backend_state::ACTIVE, 1);
        rig.backend(first + 1, ip(backend), 8081, proto, backend_state::ACTIVE, 1);
        rig.datapath.set_slots(first, &[first, first + 1]).unwrap();
        let row = Frontend {
            service: SERVICE,
            slot_base: first,
            backends: 2,
            flags: frontend_flag::AFFINITY,
            affinity_seconds: 600,
            ..Frontend::default()
        };
        rig.datapath.set_frontend(&frontend_key(ip(vip), 80, proto), &row).unwrap();
    }
}

fn destination(rig: &Rig, frame: &[u8]) -> String {
    read(&rig.pod_sends(frame).packet).destination.to_string()
}

#[test]
fn a_step_of_the_wall_clock_changes_no_flow() {
    if std::env::var_os(OWN_CLOCK).is_none() {
        println!("skipped: this machine's clock is not a test's to set; `cargo xtask vm` has one of its own");
        return;
    }
    isolated(|| {
        for with_iterator in [true, false] {
            let mut rig = Rig::fresh();
            if !with_iterator {
                Arc::get_mut(&mut rig.datapath).unwrap().forgo_iterator();
            }
            services(&rig, TCP);
            services(&rig, UDP);
            // One that is established, one that is new, and one that nobody answered.
            let mut open = Vec::new();
            for [client, vip, _] in FAMILIES {
                let first = tcp(client, vip, Segment::Syn);
                let backend = destination(&rig, &first);
                rig.pod_receives(&tcp(&backend, client, Segment::SynAck));
                assert_eq!(destination(&rig, &tcp(client, vip, Segment::Ack)), backend);
                let asked = destination(&rig, &udp(client, vip));
                rig.pod_sends(&udp(client, &backend.replace(":808", ":909")));
                open.push((client, vip, backend, asked));
            }
            let told = |row: &FlowRow| format!("{:?} {}", row.key, row.established);
            let keys = || {
                let mut keys: Vec<_> = rig.datapath.flows().unwrap().iter().map(told).collect();
                keys.sort_unstable();
                keys
            };
            let before = keys();
            assert_eq!(before.len(), 2 * 5);
            for step in [3650 * DAY, -3650 * DAY, 3600, -3600] {
                let _stepped = Stepped::by(step);
                let pass = rig.datapath.reclaim(&|| false).unwrap().unwrap();
                assert_eq!((pass.established.expired, pass.nursery.expired), (0, 0), "{step}");
                assert_eq!(keys(), before, "{step}");
                for (client, vip, backend, asked) in &open {
                    assert_eq!(destination(&rig, &tcp(client, vip, Segment::Ack)), *backend, "{step}");
                    assert_eq!(destination(&rig, &udp(client, vip)), *asked, "{step}");
                    let back = read(&rig.pod_receives(&tcp(backend, client, Segment::Ack)).packet);
                    assert_eq!(back.source.to_string(), *vip, "{step}");
                }
                assert_eq!(keys(), before, "{step}: no flow began anew");
                let idle = |row: &FlowRow| now().wrapping_sub(row.flow.last_seen);
                assert!(rig.datapath.flows().unwrap().iter().all(|row| idle(row) < 600), "{step}");
            }
            // A client's new flows go where the last went, however the clock was set.
            for [client, vip, _] in FAMILIES {
                let (pod, _) = client.rsplit_once(':').unwrap();
                let new = |port: u16| destination(&rig, &tcp(&format!("{pod}:{port}"), vip, Segment::Syn));
                for step in [3650 * DAY, -3650 * DAY].repeat(10) {
                    rig.forget();
                    let first = new(2000);
                    let stepped = Stepped::by(step);
                    assert_eq!(new(2001), first, "{step}");
                    drop(stepped);
                    assert_eq!(new(2002), first, "back from {step}");
                }
            }
        }
    });
}
