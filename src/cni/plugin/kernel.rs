//! The plugin's [`Kernel`] without an agent: netlink, the pinned maps, the state folder.

use super::{Kernel, Problem};
use crate::cni::server::Interface;
use crate::cni::types::Attachment;
use crate::datapath;
use crate::directory::status;
use crate::ipam::ledger::Entry;
use crate::model::ObjectName;
use crate::net::netlink::Netlink;
use crate::net::pod::{self, PodInterface};
use std::future::Future;
use std::net::IpAddr;
use std::path::Path;

/// The kernel that this process runs on; the plugin is started in the node's network namespace.
#[derive(Clone, Copy, Debug, Default)]
pub struct Local;

impl Local {
    /// Runs one future on a runtime of its own.
    fn wait<T, F>(work: impl FnOnce(Netlink) -> F) -> Result<T, Problem>
    where
        F: Future<Output = Result<T, Problem>>,
    {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let netlink = Netlink::open()?;
        runtime.block_on(work(netlink))
    }
}

impl Kernel for Local {
    fn host_name(&self, attachment: &Attachment) -> String {
        pod::host_name(&attachment.container_id, &attachment.ifname)
    }

    fn delete(&self, host_name: &str) -> Result<bool, Problem> {
        Self::wait(async |netlink| Ok(pod::delete(&netlink, host_name).await?))
    }

    fn expel(&self, bpffs: &Path, host_name: &str, addresses: &[IpAddr]) -> Result<(), Problem> {
        let link = Self::wait(async |netlink| Ok(netlink.link_by_name(host_name).await?))?;
        datapath::remove_pod_offline(bpffs, link.map(|link| link.index), addresses)?;
        Ok(())
    }

    fn check(&self, entry: &Entry) -> Result<(), Problem> {
        let Some(interface) = Interface::of(entry) else {
            return Err("the ledger does not know its network namespace".into());
        };
        Self::wait(async |netlink| {
            let ends = pod::list(&netlink).await?;
            let Some(end) = ends.iter().find(|end| end.name == interface.host_name) else {
                return Err(pod::Error::Missing { host_name: interface.host_name }.into());
            };
            // The MTU was the agent's choice: what the host's end has is what the pod must have.
            let wanted = PodInterface {
                netns: interface.netns,
                pod_name: interface.pod_name,
                host_name: interface.host_name,
                addresses: interface.addresses,
                mtu: end.mtu,
                alias: interface.alias,
            };
            pod::check(&netlink, &wanted).await?;
            Ok(())
        })
    }

    fn remove_status(&self, dir: &Path, pod: &ObjectName, container_id: &str) -> Result<(), Problem> {
        status::remove(dir, pod, container_id)?;
        Ok(())
    }
}
