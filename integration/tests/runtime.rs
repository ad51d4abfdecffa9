//! The lab's container runtime, held against the reference plugins of the CNI project.

use anyhow::{Result, ensure};
use netd_integration::cni::{self, Attachment, Runtime, refused};
use netd_integration::lab::Lab;
use netd_integration::traffic;
use serde_json::json;
use std::fs;

/// Where Debian's `containernetworking-plugins` puts them.
const REFERENCE: &str = "/usr/lib/cni";

fn runtime(lab: &Lab) -> Result<Runtime> {
    let host = lab.namespace("host")?;
    let runtime = Runtime {
        host,
        conf_dir: lab.dir().join("net.d"),
        path: vec![lab.dir().join("bin"), REFERENCE.into()],
        cache: lab.dir().join("results"),
        version: "1.1.0".into(),
    };
    fs::create_dir(&runtime.conf_dir)?;
    let ranges = json!([[{"subnet": "10.9.0.0/29"}], [{"subnet": "fd09::/64"}]]);
    let ipam = json!({"type": "host-local", "dataDir": lab.dir().join("ipam"), "ranges": ranges,
                      "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]});
    let list = json!({"name": "reference", "cniVersion": "1.0.0", "plugins": [
        {"type": "ptp", "ipam": ipam, "mtu": 1400},
        {"type": "tuning", "mtu": 1300},
    ]});
    fs::write(runtime.conf_dir.join("10-reference.conflist"), list.to_string())?;
    fs::write(runtime.conf_dir.join("20-other.conflist"), "not even JSON")?;
    Ok(runtime)
}

#[test]
fn the_reference_plugins_make_and_unmake_a_pod() -> Result<()> {
    Lab::run(|lab| {
        let runtime = runtime(lab)?;
        let pod = lab.namespace("pod")?;
        let attachment = Attachment::of_pod("c1", pod.path().into(), "default", "web");
        ensure!(runtime.check(&attachment).is_err(), "CHECK before ADD");

        let result = runtime.add(&attachment)?;
        let addresses = cni::addresses(&result)?;
        ensure!(addresses.len() == 2, "{result}");
        for address in addresses {
            // tuning's MTU: the chain went on, with the first plugin's result.
            ensure!(pod.ip("link show eth0")?.contains("mtu 1300"));
            netd_integration::wait::until("duplicate address detection", || {
                Ok(traffic::ping(&runtime.host, address).ok())
            })?;
        }
        runtime.check(&attachment)?;
        pod.ip("link set eth0 down")?;
        pod.ip("address flush dev eth0")?;
        refused(runtime.check(&attachment))?;

        runtime.del(&attachment)?;
        runtime.del(&attachment)?;
        ensure!(pod.ip("link show")?.lines().count() == 2, "{}", pod.ip("link show")?);
        Ok(())
    })
}

#[test]
fn a_refusal_is_the_plugins_error_object() -> Result<()> {
    Lab::run(|lab| {
        let runtime = runtime(lab)?;
        let mut attachments = Vec::new();
        // A /29 has room for five beside its gateway.
        for n in 0..5 {
            let pod = lab.namespace(&format!("pod{n}"))?;
            let attachment = Attachment::of_pod(&format!("c{n}"), pod.path().into(), "default", "web");
            runtime.add(&attachment)?;
            attachments.push(attachment);
        }
        let pod = lab.namespace("last")?;
        let last = Attachment::of_pod("last", pod.path().into(), "default", "web");
        let refusal = refused(runtime.add(&last))?;
        ensure!(refusal.message.contains("no IP addresses available"), "{refusal}");

        // GC of the runtime itself: what the cache knows and nobody needs is deleted.
        runtime.gc(&attachments[1..])?;
        runtime.add(&last)?;
        let versions = runtime.versions()?;
        ensure!(versions.iter().all(|v| v["supportedVersions"].is_array()), "{versions:?}");
        let refusal = refused(runtime.raw("ADD", "ptp", "{", Some(&last)))?;
        ensure!(refusal.code == 6, "{refusal}");
        Ok(())
    })
}
