//! netd: a node with its agent, and pods that its plugin attached.

use super::Subject;
use crate::load::{Cpus, Server};
use crate::services::Services;
use anyhow::{Context as _, Result, bail};
use netd_integration::lab::Lab;
use netd_integration::node::{Node, Tables};
use netd_integration::state::State;
use netd_integration::wait;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

/// How long an agent may take to take over all Services.
const SYNC: Duration = Duration::from_secs(300);

/// Table sizes for a number of Services: the defaults, or what an administrator would set.
pub(crate) const fn tables_for(services: u32) -> Tables {
    match services {
        0..=10_000 => Tables::DEFAULT,
        _ => Tables { backends: 262_144, slots: 524_288, ..Tables::DEFAULT },
    }
}

/// A node called `name`, alone on its segment, with a folder of state of its own; its agent is not started.
///
/// # Errors
/// The kernel or the filesystem refuses.
pub(crate) fn lone_node<'lab>(lab: &'lab Lab, name: &str, tables: Tables) -> Result<(Node<'lab>, State)> {
    let namespace = lab.namespace(name)?;
    lab.segment(&format!("{name}-wire"))?.plug(&namespace, "eth0", &["10.1.0.11/24"])?;
    namespace.ip("route add default via 10.1.0.1")?;
    let state = State::create(lab.folder_in_memory(&format!("state-{name}"))?)?;
    let address: Ipv4Addr = [10, 1, 0, 11].into();
    state.node(name, &[address.into()], &["10.244.1.0/24".into()])?;
    let node = Node::new(lab, name, namespace, &state)?;
    node.configure(|config| {
        config.tables = tables;
        config.cool_down = "0s".into();
        config.log = "info".into();
    });
    Ok((node, state))
}

/// Waits until the agent is ready and has this number of Services in the kernel.
///
/// # Errors
/// It ends, or has not by the deadline.
pub(crate) fn synced(node: &Node<'_>, count: u32) -> Result<()> {
    node.ready_within(SYNC)?;
    wait::within(SYNC, &format!("{count} Services on {}", node.name()), || {
        let there = node.metric("netd_service_services", &[])?;
        Ok((there >= f64::from(count)).then_some(()))
    })
}

/// A node with netd and a number of Services, the last one served by a pod.
///
/// # Errors
/// The kernel refuses, or the agent does not get ready.
pub(crate) fn with_netd(lab: &Lab, count: u32, cpus: Cpus) -> Result<Subject<'_>> {
    let (node, state) = lone_node(lab, &format!("netd-{count}"), tables_for(count))?;
    // Nobody knows the server's address yet, and only the used Service has it.
    Services::new(count, Ipv4Addr::UNSPECIFIED).write_unused(&state)?;
    node.launch()?;
    synced(&node, count.saturating_sub(1))?;
    let client = node.add_pod("client")?;
    let server = node.add_pod("server")?;
    let IpAddr::V4(ip) = server.address(false)? else { bail!("{} has no IPv4 address", server.name) };
    let services = Services::new(count, ip);
    services.used().write(&state)?;
    synced(&node, count)?;
    Ok(Subject {
        name: format!("netd, {count}"),
        note: None,
        client: client.netns,
        targets: vec![services.target()],
        server: Server::start(&server.netns, cpus)?,
        _node: Some(node),
    })
}

/// A memory figure of the agent, as `/proc/PID/status` calls it, in MiB.
///
/// # Errors
/// It does not run.
pub(crate) fn memory_of(node: &Node<'_>, key: &str) -> Result<f64> {
    let path = format!("/proc/{}/status", node.agent_id()?);
    let text = fs::read_to_string(Path::new(&path))?;
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let kib: f64 =
        line.with_context(|| format!("no {key} in {path}"))?.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}
