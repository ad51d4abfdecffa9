//! What the lab needs of the kernel: tried, never guessed from its version.

use anyhow::{Result, bail};
use std::fs;
use std::path::Path;

use super::{is_root, ok, say};
use crate::cargo;

/// One line per ability; fails if one is missing.
pub(super) fn check() -> Result<()> {
    let mut missing = 0_u32;
    let mut judge = |name: &str, result: Result<String, String>| match result {
        Ok(text) => ok(name, &text),
        Err(text) => {
            missing += 1;
            say("FAIL", name, &text);
        }
    };
    let root = is_root()?;
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    ok("kernel", release.trim());
    judge(
        "BPF system call",
        exists(
            "/proc/sys/kernel/unprivileged_bpf_disabled",
            "programs can be loaded",
            "this kernel has none (CONFIG_BPF_SYSCALL)",
        ),
    );
    judge("bpffs", file_system("bpf", "pins of programs and maps (CONFIG_BPF_SYSCALL)"));
    judge("cgroup2", file_system("cgroup2", "lets node processes reach Services (CONFIG_CGROUPS)"));
    judge(
        "BTF",
        exists(
            "/sys/kernel/btf/vmlinux",
            "the kernel tells its types",
            "it does not (CONFIG_DEBUG_INFO_BTF)",
        ),
    );
    if root {
        judge("network namespaces", in_namespace("true", "a node or pod each (CONFIG_NET_NS)"));
        judge(
            "veth",
            in_namespace(
                "ip link add name nd0 type veth peer name nd1",
                "a pod's or node's cable (CONFIG_VETH)",
            ),
        );
        judge(
            "bridge",
            in_namespace("ip link add name nd0 type bridge", "a layer-2 segment (CONFIG_BRIDGE)"),
        );
        judge(
            "clsact",
            in_namespace(
                "ip link add name nd0 type veth peer name nd1 && tc qdisc add dev nd0 clsact",
                "where programs see packets (CONFIG_NET_CLS_ACT, CONFIG_NET_SCH_INGRESS)",
            ),
        );
    } else {
        judge("root", Err("network namespaces and BPF need it: run this as root".to_owned()));
    }
    if missing > 0 {
        bail!("this machine cannot run the lab: see the FAIL lines above");
    }
    Ok(())
}

fn exists(path: &str, good: &str, bad: &str) -> Result<String, String> {
    if Path::new(path).exists() { Ok(good.to_owned()) } else { Err(format!("{bad}: no {path}")) }
}

fn file_system(name: &str, why: &str) -> Result<String, String> {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let known = known.lines().any(|line| line.split_whitespace().next_back() == Some(name));
    if known { Ok(why.to_owned()) } else { Err(format!("not in /proc/filesystems: {why}")) }
}

/// Tries a command in a network namespace that goes when the command ends.
fn in_namespace(script: &str, why: &str) -> Result<String, String> {
    match cargo::capture(cargo::program("unshare").args(["--net", "sh", "-c", script])) {
        Ok(_) => Ok(why.to_owned()),
        Err(error) => Err(format!("{why}: {error:#}")),
    }
}
