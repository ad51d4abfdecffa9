//! What is tested on each kernel, where its files lie in a guest, and what a run of it says.
//!
//! The guest and the host are the same program, so this is their whole agreement: the guest runs [`SUITES`]
//! in order, each with the arguments that the host wrote for it, and writes the tests' own output and lines that
//! begin with [`MARK`] to its second serial port.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::test::tally::Tally;

/// Folder of our own files in a guest.
pub(super) const FOLDER: &str = "/netd";

/// Begins each line that the guest itself says.
const MARK: &str = "@netd-vm ";

/// How the status of a suite that went well is written.
const PASSED: &str = "exit status: 0";

/// What the tests call a line about how this kernel is used.
const FACT: &str = "kernel: ";

/// A test program with the part of it that a kernel can change.
#[derive(Clone, Copy, Debug)]
pub(super) struct Suite {
    /// Its name, for people.
    pub(super) name: &'static str,
    /// By which cargo tells the program: package, kind of target, target.
    pub(super) target: [&'static str; 3],
    /// Its file name in the guest.
    pub(super) file: &'static str,
    /// The harness's arguments: which tests.
    pub(super) tests: &'static [&'static str],
    /// Those among them that take minutes under emulation, for what the others meet as well: by their numbers of
    /// packets or steps, not by what they ask of a kernel.
    pub(super) long: &'static [&'static str],
    /// Those that each kernel runs also where kernels share the tests: what they ask of a kernel differs by version.
    pub(super) everywhere: &'static [&'static str],
}

/// All suites.
pub(super) const SUITES: [Suite; 2] = [
    // The programs on single packets; namespaces, links, routes. Not what is pure,
    // nor what is much work.
    Suite {
        name: "datapath",
        target: ["netd", "lib", "netd"],
        file: "tests-netd",
        tests: &[
            "datapath::",
            "agent::seams::",
            "net::",
            "--skip",
            "net::plan::",
            "--skip",
            "hundred_pods_at_once",
        ],
        long: &[
            "a_client_without_a_free_port_is_refused_by_name",
            "a_growth_cut_off_after_any_step",
            "a_move_may_be_cut_off_after_any_step",
            "a_move_that_fails_leaves_all_as_it_was",
            "a_pass_in_slices_meets_every_row_once",
            "no_fragment_is_lost_or_doubled_when_two_cpus_race",
            "random_packets_through_random_clusters_meet_what_the_api_says",
            "pods_that_come_and_go_with_open_connections",
            "are_establishing",
            "is_being_established",
            "ports_of_flows_that_are_over_are_free",
        ],
        // Loading, attaching and pinning; links, addresses and routes.
        everywhere: &["verifier::", "pins::", "net::"],
    },
    // The binary: every program loaded, attached, passed by packets, and taken over by the next agent.
    Suite {
        name: "agent",
        target: ["netd-integration", "test", "kernel"],
        file: "tests-kernel",
        tests: &[],
        long: &[],
        everywhere: &[""],
    },
];

/// The kernel's modules that the suites need, each for what.
pub(super) const MODULES: [&str; 5] = [
    // A pod's or node's cable.
    "veth",
    // A layer-2 segment of the lab.
    "bridge",
    // The qdisc clsact.
    "sch_ingress",
    // A program as its filter.
    "cls_bpf",
    // An uplink without Ethernet.
    "tun",
];

/// The programs that the suites execute.
///
/// | program | for what |
/// |---|---|
/// | `ip` | links, addresses and routes, as a person makes and sees them |
/// | `tc` | filters, as a person sees them |
/// | `bpftool` | maps and programs, as the kernel tells them |
/// | `sysctl` | the settings of a namespace |
/// | `ping` | an echo from a pod |
/// | `sh` and the rest | several of these in one line of text, and what they say cut short |
pub(super) const TOOLS: [&str; 11] =
    ["ip", "tc", "bpftool", "sysctl", "ping", "sh", "cat", "cut", "awk", "wc", "seq"];

impl Suite {
    /// Where its program lies in a guest.
    pub(super) fn program(&self) -> PathBuf {
        Path::new(FOLDER).join(self.file)
    }

    /// What is left of these tests for the `nth` of some kernels that share them. The first is the oldest, whose verifier
    /// takes the longest with each program: it runs every fourth.
    pub(super) fn share<'t>(&self, tests: &[&'t str], nth: usize, kernels: usize) -> Vec<&'t str> {
        let everywhere = |test: &str| self.everywhere.iter().any(|part| test.contains(part));
        let others = kernels.saturating_sub(1);
        let own = |at: usize| match (at % 4, others) {
            (_, 0) => true,
            (0, _) => nth == 0,
            _ => nth == 1 + at % others,
        };
        let all = tests.iter().enumerate();
        all.filter(|(at, test)| own(*at) || everywhere(test)).map(|(_, test)| *test).collect()
    }

    /// Where a guest finds the harness's arguments for it, one to a line.
    pub(super) fn arguments(&self) -> PathBuf {
        Path::new(FOLDER).join(format!("{}.arguments", self.file))
    }
}

/// The command of a suite with these arguments of the harness's.
pub(super) fn command<S: AsRef<OsStr>>(program: &Path, netd: &Path, arguments: &[S]) -> Command {
    let mut command = Command::new(program);
    command.current_dir("/").arg("--show-output").args(arguments);
    command.env("NETD_BIN", netd).env("RUST_BACKTRACE", "0");
    command
}

/// A line of the guest's own.
pub(super) fn said(words: &str) -> String {
    format!("{MARK}{words}")
}

/// A suite that ended.
#[derive(Debug, PartialEq, Eq)]
struct Ended {
    name: String,
    status: String,
    /// How many tests had run by then, on all suites.
    run: u64,
}

/// What a run said so far.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    /// The kernel's release.
    pub(super) release: String,
    pub(super) tally: Tally,
    /// How the kernel is used: attach modes and the like, in the tests' own words.
    pub(super) facts: Vec<String>,
    ended: Vec<Ended>,
    /// What kept the guest from its work.
    fault: Option<String>,
}

impl Outcome {
    /// Takes one line of output.
    pub(super) fn line(&mut self, line: &str) {
        let line = line.trim_end();
        if let Some(words) = line.strip_prefix(MARK) {
            match words.split_once(' ') {
                Some(("kernel", release)) => release.clone_into(&mut self.release),
                Some(("ended", rest)) => {
                    let (name, status) = rest.split_once(' ').unwrap_or((rest, ""));
                    let run = self.tally.passed + self.tally.failed + self.tally.ignored;
                    self.ended.push(Ended { name: name.to_owned(), status: status.to_owned(), run });
                }
                Some(("fault", text)) => self.fault = Some(text.to_owned()),
                _ => {}
            }
        } else if let Some(fact) = line.strip_prefix(FACT) {
            if !self.facts.iter().any(|have| have == fact) {
                self.facts.push(fact.to_owned());
            }
        } else {
            self.tally.line(line);
        }
    }

    /// What is wrong, if anything is; `chosen`: which tests run was somebody's choice, a suite may have none.
    pub(super) fn failure(&self, chosen: bool) -> Option<String> {
        if let Some(fault) = &self.fault {
            return Some(fault.clone());
        }
        let mut before = 0;
        for suite in SUITES {
            let name = suite.name;
            let Some(Ended { status, run, .. }) = self.ended.iter().find(|ended| ended.name == name) else {
                return Some(format!("the suite `{name}` did not end"));
            };
            if status != PASSED {
                return Some(format!("the suite `{name}` failed ({status})"));
            }
            if *run == before && !chosen {
                return Some(format!("the suite `{name}` has no such test"));
            }
            before = *run;
        }
        (before == 0).then(|| "no suite has such a test".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::{Outcome, said};

    #[test]
    fn an_outcome_needs_every_suite_and_a_test() {
        let mut outcome = Outcome::default();
        for line in [
            &said("kernel 6.1.0-50-amd64"),
            "kernel: uplinks by clsact",
            "test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 9 filtered out; finished in 1.00s",
            &said("ended datapath exit status: 0"),
        ] {
            outcome.line(line);
        }
        assert_eq!(outcome.release, "6.1.0-50-amd64");
        assert_eq!(outcome.facts, ["uplinks by clsact"]);
        assert_eq!(outcome.failure(false).as_deref(), Some("the suite `agent` did not end"));
        outcome.line("test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
        outcome.line(&said("ended agent exit status: 0\r"));
        assert_eq!((outcome.failure(false), outcome.tally.passed), (None, 6));
        outcome.line(&said("fault cannot mount /proc"));
        assert_eq!(outcome.failure(false).as_deref(), Some("cannot mount /proc"));
        let mut empty = Outcome::default();
        for suite in super::SUITES {
            empty.line(&said(&format!("ended {} exit status: 0", suite.name)));
        }
        assert_eq!(empty.failure(false).as_deref(), Some("the suite `datapath` has no such test"));
        assert_eq!(empty.failure(true).as_deref(), Some("no suite has such a test"));
    }
}
