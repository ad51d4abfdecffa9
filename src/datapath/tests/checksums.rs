//! Packets whose whole was summed by the receiving device (`CHECKSUM_COMPLETE`): the sum follows what the
//! programs change, or the stack would take the packet for damaged.

use super::frames::{Segment, TCP, UDP, ip, read, tcp, udp};
use super::rig::{IFINDEX, Rig, isolated, uplink};
use crate::datapath::test_run::Stage;
use aya::programs::SchedClassifier;
use nix::errno::Errno;
use std::os::fd::{AsFd as _, AsRawFd as _};

/// `BPF_F_TEST_SKB_CHECKSUM_COMPLETE` of `bpf(2)`: the packet comes with the sum of all its bytes, and the run
/// fails with `EBADMSG` if that is not their sum afterwards.
const CHECKSUM_COMPLETE: u32 = 1 << 2;

/// `BPF_PROG_TEST_RUN` of `bpf(2)`, whose flags aya does not give away.
const TEST_RUN: libc::c_long = 10;

/// That command's part of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct Attr {
    program: u32,
    verdict: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    pad: u32,
}

/// A run on a packet that was summed; the packet, or the kernel's error.
#[expect(unsafe_code, reason = "bpf(2) has no wrapper for this command with flags")]
fn summed(rig: &Rig, stage: Stage, frame: &[u8], ifindex: u32) -> Result<Vec<u8>, Errno> {
    // `struct __sk_buff`.
    let mut context = [0_u8; 192];
    context[40..44].copy_from_slice(&ifindex.to_ne_bytes());
    let mut packet = vec![0_u8; 4096];
    let programs = rig.datapath.programs.read().unwrap();
    let program: &SchedClassifier = match stage {
        Stage::PodEgress => &programs.pod_egress,
        Stage::PodIngress => &programs.pod_ingress,
        Stage::UplinkIn => &programs.uplink_in,
    };
    let mut attr = Attr {
        program: program.fd().unwrap().as_fd().as_raw_fd().cast_unsigned(),
        data_size_in: u32::try_from(frame.len()).unwrap(),
        data_size_out: 4096,
        data_in: frame.as_ptr() as u64,
        data_out: packet.as_mut_ptr() as u64,
        repeat: 1,
        ctx_size_in: 192,
        ctx_in: context.as_ptr() as u64,
        flags: CHECKSUM_COMPLETE,
        ..Attr::default()
    };
    // SAFETY: `attr` has the size it is said to have, and all it points to outlives the call and is as long as it
    // says.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, TEST_RUN, std::ptr::from_mut(&mut attr), size_of::<Attr>()) };
    Errno::result(result)?;
    packet.truncate(attr.data_size_out as usize);
    Ok(packet)
}

/// The ends of a frame.
fn ends(frame: &[u8]) -> (String, String) {
    let seen = read(frame);
    (seen.source.to_string(), seen.destination.to_string())
}

/// Packets of a protocol through a Service and beside it, as `make` makes them; those whose sum did not follow.
fn astray(uplink: u32, proto: u8, make: &dyn Fn(&str, &str, Segment) -> Vec<u8>) -> Vec<String> {
    let mut wrong = Vec::new();
    for (client, vip, near, other, far) in [
        ("10.0.0.1:1000", "10.96.0.1:80", "10.0.0.2:8080", "10.0.0.2:9090", "10.1.0.1:8080"),
        ("[fd00::1]:1000", "[fd96::1]:80", "[fd00::2]:8080", "[fd00::2]:9090", "[fd01::1]:8080"),
    ] {
        // The client itself: it appears as its gateway.
        let itself = client.replace(":1000", ":8080");
        for backend in [near, far, &itself] {
            let rig = Rig::new();
            rig.service(ip(vip), 80, proto, &[(ip(backend), 8080)]);
            let mut run = |what, stage, frame: &[u8], ifindex| match summed(&rig, stage, frame, ifindex) {
                Ok(packet) => Some(ends(&packet)),
                Err(error) => {
                    wrong.push(format!("{what}, protocol {proto}, {client} {vip} {backend}: {error}"));
                    None
                }
            };
            let pair = |from: &str, to: &str| (from.to_owned(), to.to_owned());
            let sent = run("forth", Stage::PodEgress, &make(client, vip, Segment::Syn), IFINDEX);
            if backend == itself {
                assert!(sent.is_none_or(|(_, to)| to == itself));
                continue;
            }
            assert!(sent.is_none_or(|ends| ends == pair(client, backend)));
            let mut back = make(backend, client, Segment::SynAck);
            let came = run("back", Stage::PodIngress, &back, IFINDEX);
            assert!(came.is_none_or(|ends| ends == pair(vip, client)));
            if backend == far {
                back[..6].copy_from_slice(&[2, 0, 0, 0, 0, 0x99]);
                let came = run("from outside", Stage::UplinkIn, &back, uplink);
                assert!(came.is_none_or(|ends| ends == pair(vip, client)));
            }
            let direct = run("direct", Stage::PodEgress, &make(client, other, Segment::Syn), IFINDEX);
            assert!(direct.is_none_or(|ends| ends == pair(client, other)));
        }
    }
    wrong
}

/// An uplink, on a kernel that knows such runs.
fn prepared() -> Option<u32> {
    let uplink = uplink();
    let plain = udp("10.0.0.1:1000", "10.9.0.1:53");
    let known = summed(&Rig::new(), Stage::PodEgress, &plain, IFINDEX) != Err(Errno::EINVAL);
    if !known {
        println!("skipped: this kernel's test runs know no packets that were summed as a whole");
    }
    known.then_some(uplink)
}

#[test]
fn checksums_of_whole_packets_follow() {
    isolated(|| {
        let Some(uplink) = prepared() else { return };
        let mut wrong = astray(uplink, TCP, &tcp);
        wrong.extend(astray(uplink, UDP, &|from, to, _| udp(from, to)));
        assert!(wrong.is_empty(), "{wrong:#?}");
    });
}

#[test]
fn the_sum_of_a_datagram_without_checksum_follows_too() {
    isolated(|| {
        let Some(uplink) = prepared() else { return };
        let wrong = astray(uplink, UDP, &|from, to, _| {
            let mut frame = udp(from, to);
            let at = if from.starts_with('[') { 60 } else { 40 };
            frame[at..at + 2].copy_from_slice(&[0, 0]);
            frame
        });
        assert!(wrong.is_empty(), "{wrong:#?}");
    });
}
