//! What the CNI server needs of the kernel, the datapath and the source of state, in one trait.
//!
//! The agent implements it over `net`, `datapath`, `directory` and `store`. Every method may be called
//! again for what it has done already: recovery repeats steps of which nobody knows whether they happened.

use crate::cni::types::Attachment;
use crate::ipam::ledger::Entry;
use crate::model::{ObjectName, Pod};
use netd_bpf::Addr;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

type Source = Box<dyn std::error::Error + Send + Sync>;

/// Why a step failed. Display is empty of its own words: it is the step's error.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The container's network namespace cannot be opened.
    #[error(transparent)]
    NoNetns(Source),
    /// The container has an interface of that name.
    #[error(transparent)]
    NameTaken(Source),
    /// What CHECK looked at is not as ADD made it.
    #[error(transparent)]
    Differs(Source),
    /// It is too early, or something is out of order that may be well soon: worth to try again.
    #[error(transparent)]
    NotYet(Source),
    /// Anything else.
    #[error(transparent)]
    Failed(Source),
}

/// What is known of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// The source of state is not synced, and was not within the time.
    Unsynced,
    /// The source is synced and knows no such pod.
    Unknown,
    /// The pod.
    Known(Arc<Pod>),
}

/// A pod's link, as it is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// The container's network namespace.
    pub netns: PathBuf,
    /// Name inside the container.
    pub pod_name: String,
    /// Name of the host's end.
    pub host_name: String,
    /// At most one of each family.
    pub addresses: Vec<IpAddr>,
    /// Alias of the host's end, from which a lost ledger is rebuilt.
    pub alias: String,
}

impl Interface {
    /// Of a row; none if the row was rebuilt from the kernel and does not know its namespace.
    #[must_use]
    pub fn of(entry: &Entry) -> Option<Self> {
        Some(Self {
            netns: entry.netns.clone()?,
            pod_name: entry.attachment.ifname.clone(),
            host_name: entry.host_name.clone(),
            addresses: entry.addresses.clone(),
            alias: alias(&entry.attachment, entry.pod.as_ref()),
        })
    }
}

/// A pod's link, as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Index of the host's end.
    pub host_ifindex: u32,
    /// Hardware address of the host's end.
    pub host_mac: [u8; 6],
    /// Hardware address of the container's end.
    pub pod_mac: [u8; 6],
    /// MTU of both.
    pub mtu: u32,
}

/// The host's end of a link of netd's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostEnd {
    /// Its index.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// `netd:…`; empty if it was never finished.
    pub alias: String,
    /// The link, as far as it can be told from this side; none where the inner end must be asked.
    pub link: Option<Link>,
    /// From the host's routes to it.
    pub addresses: Vec<IpAddr>,
}

/// The host's end of a link that may not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host<'a> {
    /// By name.
    Name(&'a str),
    /// By index.
    Index(u32),
}

/// A row of the pod table, as recovery compares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Index of the host's end.
    pub ifindex: u32,
    /// Endpoint number.
    pub endpoint: u32,
    /// The addresses under which the row is found.
    pub addresses: Vec<IpAddr>,
}

impl From<&netd_bpf::pod::Pod> for Row {
    fn from(pod: &netd_bpf::pod::Pod) -> Self {
        let addresses = [pod.v4, pod.v6].into_iter().filter(|addr| *addr != Addr::UNSPECIFIED);
        Self {
            ifindex: pod.ifindex,
            endpoint: pod.endpoint,
            addresses: addresses.map(IpAddr::from).collect(),
        }
    }
}

/// Whose addresses were told to the other nodes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Status {
    /// The pod.
    pub pod: ObjectName,
    /// Its sandbox.
    pub container_id: String,
}

impl Status {
    /// Of a row; none where there is no pod.
    #[must_use]
    pub fn of(entry: &Entry) -> Option<Self> {
        Some(Self { pod: entry.pod.clone()?, container_id: entry.attachment.container_id.clone() })
    }
}

/// The kernel, the datapath and the source of state. Boundaries between methods are boundaries between
/// steps: each of them either happens or does not.
pub trait Plumbing: Send + Sync + 'static {
    /// A pod of the model, waiting up to `wait` for the source to be synced (and, where the source is known
    /// to lag behind the runtime, for the pod to appear).
    fn lookup(&self, pod: &ObjectName, wait: Duration) -> impl Future<Output = Lookup> + Send;
    /// What keeps ADD from being served, if anything does.
    fn unready(&self) -> Option<String>;
    /// How many attachments the tables take.
    fn capacity(&self) -> usize;
    /// Name of the host's end of an attachment's link: a pure function of its argument.
    fn host_name(&self, attachment: &Attachment) -> String;

    /// Has the policies of a pod in force before there is a link by which it could send: waits up to `wait` for the
    /// source to be synced, and until all is written. What cannot be said of the pod in time is a fault; it is never
    /// let in without. Asked again it makes sure.
    fn prepare(&self, entry: &Entry, wait: Duration) -> impl Future<Output = Result<(), Fault>> + Send;

    /// Makes a link with the pod's addresses, routes and neighbours, by which no packet passes yet; all or nothing.
    fn create(&self, interface: &Interface) -> impl Future<Output = Result<Link, Fault>> + Send;
    /// Removes a link by its host's end. False: there was none.
    fn delete(&self, host_name: &str) -> impl Future<Output = Result<bool, Fault>> + Send;
    /// Compares a link with what it is to be.
    fn check(&self, interface: &Interface) -> impl Future<Output = Result<Link, Fault>> + Send;
    /// All links of netd's in this network namespace, finished or not.
    fn links(&self) -> impl Future<Output = Result<Vec<HostEnd>, Fault>> + Send;

    /// Attaches the programs to the host's end; replaces those that are there.
    fn attach(&self, entry: &Entry, link: &Link) -> impl Future<Output = Result<(), Fault>> + Send;
    /// Writes the pod's rows, with the policies that were prepared; those of a pod of which nothing was said allow
    /// nothing.
    fn admit(&self, entry: &Entry, link: &Link) -> impl Future<Output = Result<(), Fault>> + Send;
    /// Brings the link up, with the node's routes to the pod: from here on packets pass.
    fn start(&self, interface: &Interface) -> impl Future<Output = Result<(), Fault>> + Send;
    /// Removes all rows under any of these addresses, and that of the interface, if there is one of that
    /// name. Success if there are none.
    fn expel(&self, host: Host<'_>, addresses: &[IpAddr]) -> impl Future<Output = Result<(), Fault>> + Send;
    /// All rows of this agent.
    fn rows(&self) -> impl Future<Output = Result<Vec<Row>, Fault>> + Send;

    /// Tells the other nodes the pod's addresses.
    fn write_status(&self, entry: &Entry) -> impl Future<Output = Result<(), Fault>> + Send;
    /// Takes that back, if it is about this container. Success if there is none, or it is another's.
    fn remove_status(&self, status: &Status) -> impl Future<Output = Result<(), Fault>> + Send;
    /// What this node has told; never what another did.
    fn statuses(&self) -> impl Future<Output = Result<Vec<Status>, Fault>> + Send;
}

/// `netd:<container id>:<interface>:<namespace>/<name>`, without the pod where it is unknown or where it
/// does not fit `IFALIASZ` (256 with the final zero).
#[must_use]
pub fn alias(attachment: &Attachment, pod: Option<&ObjectName>) -> String {
    let bare = format!("netd:{}:{}:", attachment.container_id, attachment.ifname);
    match pod.map(|pod| format!("{bare}{pod}")) {
        Some(full) if full.len() < 256 => full,
        _ => bare,
    }
}

/// Reads [`alias`] back; none if it is not one.
#[must_use]
pub fn parse_alias(text: &str) -> Option<(Attachment, Option<ObjectName>)> {
    let mut parts = text.strip_prefix("netd:")?.splitn(3, ':');
    let (container_id, ifname, pod) = (parts.next()?, parts.next()?, parts.next()?);
    if container_id.is_empty() || ifname.is_empty() {
        return None;
    }
    let pod = match pod.split_once('/') {
        Some((namespace, name)) => Some(ObjectName::new(namespace, name)),
        None if pod.is_empty() => None,
        None => return None,
    };
    Some((Attachment { container_id: container_id.to_owned(), ifname: ifname.to_owned() }, pod))
}
