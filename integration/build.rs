//! Tells the tests whether `netd` is built without its BPF programs (`NETD_BPF=stub`): then there is no agent
//! to test, and the files that need one are left out.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(netd_bpf_stub)");
    println!("cargo::rerun-if-env-changed=NETD_BPF");
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("NETD_BPF").is_some_and(|value| value == "stub") {
        println!("cargo::rustc-cfg=netd_bpf_stub");
    }
}
