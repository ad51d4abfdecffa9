//! Running the loaded programs on made packets (`BPF_PROG_TEST_RUN`,
//! <https://docs.kernel.org/bpf/bpf_prog_run.html>).
//!
//! An explain run carries the agent's secret: it decides on the live maps and tells, and changes nothing.

use super::object::Programs;
use super::{Datapath, Error};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions};
use netd_bpf::event::{EXPLAIN_WORDS, Explained};
use std::sync::PoisonError;

/// Size of `struct __sk_buff`.
const SK_BUFF: usize = 192;
/// Offset of `ifindex` in it.
const IFINDEX: usize = 40;
/// Offset of `cb` in it.
const CB: usize = 48;
/// Room for the packet that comes out: a test run takes about 3.6 kB at most.
const PACKET: usize = 4096;

/// Which program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// What a pod sends.
    PodEgress,
    /// What the node's stack sends to a pod.
    PodIngress,
    /// What comes in at an uplink.
    UplinkIn,
}

/// What a run did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// tc verdict (`TC_ACT_*`).
    pub verdict: i32,
    /// The packet as it came out.
    pub packet: Vec<u8>,
    /// The answer, of an explain run.
    pub explained: Option<Explained>,
    /// Mean time of one run.
    pub duration: std::time::Duration,
}

impl Datapath {
    /// Runs a program on an Ethernet frame as if it had come by the interface, `repeat` times.
    ///
    /// # Errors
    /// The frame is shorter than an Ethernet header or longer than a test run takes, or the interface does
    /// not exist in this thread's network namespace.
    pub fn test_run(
        &self,
        stage: Stage,
        frame: &[u8],
        ifindex: u32,
        explain: bool,
        repeat: u32,
    ) -> Result<Ran, Error> {
        // Runs do not wait for each other, only for an attachment.
        let programs = self.programs.read().unwrap_or_else(PoisonError::into_inner);
        programs.test_run(stage, frame, ifindex, explain.then_some(&self.secret), repeat)
    }
}

impl Programs {
    /// As [`Datapath::test_run`]; with the agent's secret it is an explain run.
    pub(super) fn test_run(
        &self,
        stage: Stage,
        frame: &[u8],
        ifindex: u32,
        secret: Option<&[u32; EXPLAIN_WORDS]>,
        repeat: u32,
    ) -> Result<Ran, Error> {
        let mut ctx_in = vec![0; SK_BUFF];
        put(&mut ctx_in, IFINDEX, ifindex);
        if let Some(secret) = secret {
            for (word, offset) in secret.iter().zip((CB..).step_by(4)) {
                put(&mut ctx_in, offset, *word);
            }
        }
        let mut packet = vec![0; PACKET];
        let mut ctx_out = vec![0; SK_BUFF];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut packet),
            ctx_in: Some(&ctx_in),
            ctx_out: Some(&mut ctx_out),
            repeat,
            ..TestRunOptions::default()
        };
        let (name, program): (_, &SchedClassifier) = match stage {
            Stage::PodEgress => ("pod_egress", &self.pod_egress),
            Stage::PodIngress => ("pod_ingress", &self.pod_ingress),
            Stage::UplinkIn => ("uplink_in", &self.uplink_in),
        };
        let result = program.test_run(options).map_err(Error::program("run", name))?;
        packet.truncate(result.data_size_out as usize);
        let word = |index: usize| get(&ctx_out, CB + index * 4);
        let explained = secret.map(|_| Explained {
            outcome: word(0),
            service: word(1),
            backend: word(2),
            rule: word(3),
            ifindex: word(4),
        });
        Ok(Ran { verdict: result.return_value.cast_signed(), packet, explained, duration: result.duration })
    }
}

fn put(bytes: &mut [u8], offset: usize, word: u32) {
    if let Some(place) = bytes.get_mut(offset..offset + 4) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
}

fn get(bytes: &[u8], offset: usize) -> u32 {
    bytes.get(offset..offset + 4).and_then(|word| word.try_into().ok()).map_or(0, u32::from_ne_bytes)
}
