//! The keys of the file: each with its kind, bounds and default, read into the modules' own types.
//!
//! [`super::keys`] lists the same keys from the other side, for `config show` and for reloads; a test holds
//! the two and the example file together.

use super::Config;
use super::problem::Problem;
use super::read::{Fault, Located, Outcome, Reader, Section, ValueKind};
use super::source::{Sources, Spot};
use super::tree::Node;
use super::values::{
    BOOLEAN, CONFLIST, DURATION, FILTER, FORMAT, INTERFACE, LISTEN, NODE_NAME, NUMBER, NUMBER_OR_AUTO, PATH,
    POD_CIDR, SWITCH, is_node_name, overlap, plain, within,
};
use super::{DEFAULT_STATE, duration};
use crate::{agent, cni, datapath, directory, ipam, net, telemetry};
use ipnet::IpNet;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

/// Bytes of `sockaddr_un.sun_path`, less the final NUL.
const SOCKET_PATH: usize = 107;

/// Reads a whole tree. `host` is the host's name, the default of `node.name`.
pub(super) fn read(sources: &Sources, root: &Node, host: &str) -> (Config, Outcome) {
    let mut reader = Reader::new(sources);
    let config = reader.root(root, |top| {
        let node = top.section("node", |s| node(s, host));
        let (run_dir, state_dir) = top.section("paths", paths);
        let path = top.section("source", |s| value(s, "directory", &PATH, DEFAULT_STATE.into()));
        let cni = top.section("cni", cni);
        let ipam = top.section("ipam", ipam);
        let net = top.section("network", network);
        let datapath = top.section("datapath", datapath);
        let drain = top.section("agent", |s| span(s, "drain", 10, 0..=600));
        let metrics_listen = top.section("metrics", |s| value(s, "listen", &LISTEN, None));
        let telemetry = top.section("log", log);
        Config {
            agent: agent::config::Config { node, run_dir, state_dir, metrics_listen, drain },
            cni,
            ipam,
            net,
            datapath,
            directory: directory::config::Config { path },
            telemetry,
        }
    });
    (config, reader.finish())
}

fn node(s: &mut Section<'_, '_>, host: &str) -> String {
    // As the kubelet does: the host's name in lower case.
    let default = host.trim().to_ascii_lowercase();
    match s.scalar("name", &NODE_NAME) {
        Some(name) => name.value,
        None if is_node_name(&default) => default,
        None => {
            let problem =
                Problem::nowhere(format!("this host's name `{default}` cannot be the name of a Node"));
            s.reader().push_nowhere(problem.help("set `node.name`"));
            default
        }
    }
}

fn paths(s: &mut Section<'_, '_>) -> (PathBuf, PathBuf) {
    let run = s.scalar("run", &PATH);
    if let Some(Located { value, at }) = &run {
        let length = value.join("netd.sock").as_os_str().len();
        if length > SOCKET_PATH {
            let message = "`paths.run` is too long to hold a socket";
            s.reader().problem(
                *at,
                message,
                format!("`netd.sock` in it has {length} bytes of {SOCKET_PATH}"),
            );
        }
    }
    (run.map_or_else(|| "/run/netd".into(), |r| r.value), value(s, "state", &PATH, "/var/lib/netd".into()))
}

fn cni(s: &mut Section<'_, '_>) -> cni::config::Config {
    cni::config::Config {
        install: value(s, "install", &BOOLEAN, true),
        bin_dir: value(s, "bin_dir", &PATH, "/opt/cni/bin".into()),
        conf_dir: value(s, "conf_dir", &PATH, "/etc/cni/net.d".into()),
        conf_name: value(s, "conf_name", &CONFLIST, "10-netd.conflist".into()),
        // The kubelet gives a sandbox two minutes and more.
        sync_wait: span(s, "sync_wait", 10, 0..=120),
    }
}

fn ipam(s: &mut Section<'_, '_>) -> ipam::config::Config {
    let pod_cidrs = s.list("pod_cidrs", &POD_CIDR);
    let draining = s.list("draining", &POD_CIDR);
    let cool_down = span(s, "cool_down", 30, 0..=86_400);
    let lists = [("ipam.pod_cidrs", &pod_cidrs), ("ipam.draining", &draining)];
    let all: Vec<_> = lists.iter().flat_map(|(key, list)| list.iter().map(move |l| (*key, l))).collect();
    for (i, (key, late)) in all.iter().enumerate() {
        // A range in both lists is one that is being drained; it may be in each list once.
        let clash = all.iter().take(i).find(|(other, early)| {
            overlap(&early.value, &late.value) && (key == other || early.value != late.value)
        });
        if let Some((other, early)) = clash {
            overlapping(s.reader(), key, late, other, early);
        }
    }
    let values = |list: Vec<Located<IpNet>>| list.into_iter().map(|l| l.value).collect();
    ipam::config::Config { pod_cidrs: values(pod_cidrs), draining: values(draining), cool_down }
}

fn overlapping(r: &mut Reader<'_>, key: &str, late: &Located<IpNet>, other: &str, early: &Located<IpNet>) {
    let place = if key == other { String::new() } else { format!(" of `{other}`") };
    let message = if late.value == early.value {
        format!("`{key}` has {} twice", late.value)
    } else {
        format!("`{key}` has {}, which overlaps {}{place}", late.value, early.value)
    };
    r.conflict(late.at, message, "", early.at, "the other is here");
}

fn network(s: &mut Section<'_, '_>) -> net::config::Config {
    let uplinks = s.list("uplinks", &INTERFACE);
    for (i, late) in uplinks.iter().enumerate() {
        if let Some(early) = uplinks.iter().take(i).find(|e| e.value == late.value) {
            let message = format!("`network.uplinks` has {} twice", late.value);
            s.reader().conflict(late.at, message, "", early.at, "the other is here");
        }
    }
    let mtu = s.scalar("mtu", &NUMBER_OR_AUTO).and_then(|mtu| {
        let number = mtu.value?;
        // 1280: RFC 8200 §5.
        check(s, "mtu", mtu.at, within(number, &(1280..=65_535), plain));
        Some(number)
    });
    net::config::Config {
        uplinks: uplinks.into_iter().map(|l| l.value).collect(),
        mtu,
        node_routes: value(s, "node_routes", &BOOLEAN, true),
    }
}

fn datapath(s: &mut Section<'_, '_>) -> datapath::config::Config {
    let bpffs = value(s, "bpffs", &PATH, "/sys/fs/bpf/netd".into());
    let (flows, flows_per_pod) = flows(s);
    datapath::config::Config {
        bpffs,
        flows,
        flows_per_pod,
        nursery: size(s, "nursery", 131_072, 1_024..=16_777_216),
        affinity: size(s, "affinity", 65_536, 64..=16_777_216),
        frontends: size(s, "frontends", 65_536, 64..=4_194_304),
        backends: size(s, "backends", 65_536, 64..=4_194_304),
        slots: size(s, "slots", 262_144, 128..=16_777_216),
        pods: size(s, "pods", 1_024, 1..=65_536),
        policy_rows: size(s, "policy_rows", 65_536, 1_024..=4_194_304),
        policy_ranges: size(s, "policy_ranges", 65_536, 4_096..=4_194_304),
        identities: size(s, "identities", 131_072, 1_024..=4_194_304),
        blocks: size(s, "blocks", 16_384, 64..=1_048_576),
        timeouts: s.section("timeouts", timeouts),
        audit: s.section("audit", audit),
    }
}

/// The table of established flows, and a pod's share of it.
fn flows(s: &mut Section<'_, '_>) -> (u32, u32) {
    let range = 1_024..=16_777_216;
    let table = s.scalar("flows", &NUMBER);
    if let Some(Located { value, at }) = table {
        check(s, "flows", at, within(value, &range, plain));
    }
    let flows = table.as_ref().map_or(262_144, |table| table.value);
    let Some(Located { value: share, at }) = s.scalar("flows_per_pod", &NUMBER) else {
        return (flows, (flows / 4).max(2));
    };
    check(s, "flows_per_pod", at, within(share, &(2..=*range.end()), plain));
    if range.contains(&flows) && range.contains(&share) && share > flows {
        let message = format!("`{}` is more than the whole table", s.full("flows_per_pod"));
        let label = format!("must be at most {flows}");
        match table {
            Some(table) => s.reader().conflict(at, message, &label, table.at, "the table"),
            None => s.reader().problem(at, message, format!("{label}, the default of `datapath.flows`")),
        }
    }
    (flows, share)
}

/// A row's age is counted in seconds, in 31 bits.
fn timeouts(s: &mut Section<'_, '_>) -> datapath::config::Timeouts {
    let default = datapath::config::Timeouts::default();
    let mut time = |key: &'static str, default: Duration| span(s, key, default.as_secs(), 1..=30 * 86_400);
    datapath::config::Timeouts {
        tcp_established: time("tcp_established", default.tcp_established),
        tcp_opening: time("tcp_opening", default.tcp_opening),
        tcp_half_closed: time("tcp_half_closed", default.tcp_half_closed),
        tcp_closed: time("tcp_closed", default.tcp_closed),
        one_way: time("one_way", default.one_way),
        two_way: time("two_way", default.two_way),
    }
}

fn audit(s: &mut Section<'_, '_>) -> datapath::config::Audit {
    datapath::config::Audit {
        flows: value(s, "flows", &SWITCH, false),
        rate: size(s, "rate", datapath::config::Audit::RATE, 1..=5_000),
    }
}

fn log(s: &mut Section<'_, '_>) -> telemetry::config::Config {
    telemetry::config::Config {
        filter: value(s, "filter", &FILTER, "info".into()),
        format: value(s, "format", &FORMAT, telemetry::config::Format::Text),
    }
}

fn value<T>(s: &mut Section<'_, '_>, key: &'static str, kind: &ValueKind<T>, default: T) -> T {
    s.scalar(key, kind).map_or(default, |l| l.value)
}

/// A duration; default and bounds in seconds.
fn span(s: &mut Section<'_, '_>, key: &'static str, default: u64, seconds: RangeInclusive<u64>) -> Duration {
    let range = Duration::from_secs(*seconds.start())..=Duration::from_secs(*seconds.end());
    bounded(s, key, &DURATION, Duration::from_secs(default), &range, duration::format)
}

/// The size of a map.
fn size(s: &mut Section<'_, '_>, key: &'static str, default: u32, range: RangeInclusive<u32>) -> u32 {
    bounded(s, key, &NUMBER, default, &range, plain)
}

fn bounded<T: PartialOrd + Copy>(
    s: &mut Section<'_, '_>,
    key: &'static str,
    kind: &ValueKind<T>,
    default: T,
    range: &RangeInclusive<T>,
    show: impl Fn(T) -> String,
) -> T {
    let Some(Located { value, at }) = s.scalar(key, kind) else { return default };
    check(s, key, at, within(value, range, show));
    value
}

fn check(s: &mut Section<'_, '_>, key: &'static str, at: Spot, outcome: Result<(), Fault>) {
    if let Err(fault) = outcome {
        let message = format!("`{}` {}", s.full(key), fault.message);
        s.reader().problem(at, message, fault.label);
    }
}
