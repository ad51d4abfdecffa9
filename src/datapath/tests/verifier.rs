//! Programs that the verifier refuses, what the error then tells, and how much room the verifier leaves ours.

use super::rig::{Rig, isolated};
use crate::datapath::Error;
use crate::telemetry::chain;
use aya::EbpfLoader;
use aya::programs::SchedClassifier;

/// How the verifier writes the instruction; what it says against it differs with what r2 holds there.
pub(crate) const REFUSED: &str = "r0 = *(u64 *)(r2 +0)";

/// An object with `r0 = *(u64 *)(r2 + 0)` as the first instruction of all its code: a program gets nothing in
/// r2.
pub(crate) fn spoilt(mut bytes: Vec<u8>) -> Vec<u8> {
    const BAD: [u8; 8] = [0x79, 0x20, 0, 0, 0, 0, 0, 0];
    let number = |at: usize, length: usize| {
        bytes[at..at + length].iter().rev().fold(0, |all, byte| all << 8 | usize::from(*byte))
    };
    // System V gABI, chapter 4: the table of sections, and of each its flags, offset and size.
    let (table, each, count) = (number(0x28, 8), number(0x3a, 2), number(0x3c, 2));
    let sections = (0..count).map(|n| table + n * each);
    let code = sections.filter(|at| number(at + 8, 8) & 4 != 0 && number(at + 0x20, 8) >= BAD.len());
    let starts: Vec<usize> = code.map(|at| number(at + 0x18, 8)).collect();
    assert!(!starts.is_empty(), "no code in the object");
    for start in starts {
        bytes[start..start + BAD.len()].copy_from_slice(&BAD);
    }
    bytes
}

#[test]
fn a_refusal_carries_the_verifiers_log() {
    let object = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/pod.o")).to_vec();
    let mut ebpf = EbpfLoader::new().load(&spoilt(object)).unwrap();
    let programs: Vec<String> = ebpf.programs().map(|(name, _)| name.to_owned()).collect();
    let mut refused = 0;
    for name in &programs {
        let program: &mut SchedClassifier = ebpf.program_mut(name).unwrap().try_into().unwrap();
        let Err(error) = program.load().map_err(Error::load(name)) else { continue };
        refused += 1;
        let Error::Refused { program, source } = &error else { panic!("{error:?}") };
        assert_eq!((program, source.answer.raw_os_error()), (name, Some(libc::EACCES)));
        assert!(source.log.contains(REFUSED), "{}", source.log);
        let told = chain(&error);
        assert!(told.starts_with(&format!("the kernel refuses the BPF program {name}: ")), "{told}");
        assert!(told.contains("the verifier's log ends:\n"), "{told}");
        assert!(told.contains(REFUSED), "{told}");
    }
    assert!(refused > 0, "the verifier took a program that reads nothing: {programs:?}");
}

/// A program outgrows the verifier long before it outgrows its own size: each branch is followed both ways.
/// How far differs from kernel to kernel.
#[test]
fn the_verifier_has_room_left() {
    /// `BPF_COMPLEXITY_LIMIT_INSNS` (include/linux/bpf.h).
    const LIMIT: u32 = 1_000_000;
    isolated(|| {
        let rig = Rig::new();
        let programs = rig.datapath.programs.read().unwrap();
        let mut told = Vec::new();
        for (name, program) in [
            ("pod_egress", &programs.pod_egress),
            ("pod_ingress", &programs.pod_ingress),
            ("uplink_in", &programs.uplink_in),
        ] {
            let followed = program.info().unwrap().verified_instruction_count().unwrap();
            assert!(followed < LIMIT / 4 * 3, "{name}: {followed} instructions followed of {LIMIT}");
            told.push(format!("{name} {} k", followed / 1000));
        }
        println!("kernel: verifier {} of {} k", told.join(" + "), LIMIT / 1000);
    });
}
