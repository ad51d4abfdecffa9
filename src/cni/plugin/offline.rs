//! DEL, CHECK and GC without an agent.
//!
//! Under the lock of the ledger: undo the attachment in the kernel, then release its row. What this leaves
//! out, or dies in the middle of, the next agent finds from the same ledger when it starts.

use crate::cni::types::Attachment;
use crate::cni::types::{Check, Code, Del, Error, Gc, Settings, Verb};
use crate::ipam::ledger::{self, Entry, Found, Ledger, Store};
use crate::model::ObjectName;
use crate::telemetry::chain;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

/// What went wrong in the kernel.
pub type Problem = Box<dyn std::error::Error + Send + Sync>;

/// What the plugin does in the kernel by itself. The binary implements it over `net`, `datapath` and
/// `directory`, with a runtime of its own where one is needed.
pub trait Kernel {
    /// Name of the host's end of an attachment's link.
    fn host_name(&self, attachment: &Attachment) -> String;
    /// Removes a link by its host's end. False: there was none.
    fn delete(&self, host_name: &str) -> Result<bool, Problem>;
    /// Removes the pod's rows from the pinned maps: those of the link, while it exists, and those under the
    /// addresses. Success if there are none, or no maps.
    fn expel(&self, bpffs: &Path, host_name: &str, addresses: &[IpAddr]) -> Result<(), Problem>;
    /// Compares a link with what it is to be; the error says what differs.
    fn check(&self, entry: &Entry) -> Result<(), Problem>;
    /// Removes a pod's status file, if it is about this container. Success if there is none.
    fn remove_status(&self, dir: &Path, pod: &ObjectName, container_id: &str) -> Result<(), Problem>;
}

/// How often lock and socket are tried again.
const PAUSE: Duration = Duration::from_millis(50);

/// When the plugin may forget that an address rests: the agent's setting is unknown here, and counts from
/// the time of release in the file, so this need only be longer.
const COOL_DOWN: Duration = Duration::from_secs(24 * 3600);

/// Asks an agent that may have come; none if none has.
type Agent<'a> = &'a mut dyn FnMut(Verb) -> Option<Result<String, Error>>;

pub(super) struct Offline<'a, K> {
    pub(super) kernel: &'a K,
    pub(super) settings: &'a Settings,
    pub(super) patience: Duration,
    pub(super) agent: Agent<'a>,
}

/// The ledger as the plugin finds it.
enum Books {
    /// Open, and locked by this process.
    Open(Box<Ledger>),
    /// There is none.
    Absent,
    /// Locked by this process, but damaged: left as it is, the agent will rebuild it from the kernel.
    Damaged(Store, String),
    /// An agent came and has done the work.
    Answered(Result<String, Error>),
}

impl<K: Kernel> Offline<'_, K> {
    pub(super) fn del(&mut self, del: &Del) -> Result<String, Error> {
        match self.open(Verb::Del)? {
            Books::Answered(answer) => answer,
            Books::Open(mut ledger) => {
                self.detach(&mut ledger, &del.attachment)?;
                Ok(String::new())
            }
            Books::Absent => self.unplug_unknown(&del.attachment),
            Books::Damaged(store, reason) => {
                tracing::warn!(reason, "the ledger is damaged, DEL works from the kernel alone");
                let done = self.unplug_unknown(&del.attachment);
                drop(store);
                done
            }
        }
    }

    pub(super) fn gc(&mut self, gc: &Gc) -> Result<String, Error> {
        let mut ledger = match self.open(Verb::Gc)? {
            Books::Answered(answer) => return answer,
            Books::Absent => return Ok(String::new()),
            Books::Damaged(_, reason) => return Err(damaged(reason)),
            Books::Open(ledger) => ledger,
        };
        let stale: Vec<Attachment> = ledger
            .state()
            .entries()
            .filter(|entry| entry.network == gc.network && !gc.valid.contains(&entry.attachment))
            .map(|entry| entry.attachment.clone())
            .collect();
        let failed: Vec<String> = stale
            .iter()
            .filter_map(|attachment| {
                let error = self.detach(&mut ledger, attachment).err()?;
                Some(format!("{attachment}: {error}"))
            })
            .collect();
        if failed.is_empty() {
            return Ok(String::new());
        }
        Err(Error::because(Code::KERNEL, "some attachments were not removed", failed.join("; ")))
    }

    pub(super) fn check(&mut self, check: &Check) -> Result<String, Error> {
        let unknown =
            || Error::new(Code::UNKNOWN_CONTAINER, format!("{} is unknown to netd", check.attachment));
        let ledger = match self.open(Verb::Check)? {
            Books::Answered(answer) => return answer,
            Books::Absent => return Err(unknown()),
            Books::Damaged(_, reason) => return Err(damaged(reason)),
            Books::Open(ledger) => ledger,
        };
        let entry = ledger.state().get(&check.attachment).ok_or_else(unknown)?;
        let msg = || format!("{} is not as it was added", check.attachment);
        if let Some(address) = entry
            .addresses
            .iter()
            .find(|address| check.previous.ips.iter().all(|ip| ip.address.addr() != **address))
        {
            let details = format!("prevResult lacks its address {address}");
            return Err(Error::because(Code::DIFFERS, msg(), details));
        }
        let entry = Entry { netns: Some(check.netns.clone()), ..Entry::clone(entry) };
        self.kernel
            .check(&entry)
            .map_err(|problem| Error::because(Code::DIFFERS, msg(), chain(&*problem)))?;
        Ok(String::new())
    }

    /// Takes the lock; meanwhile asks the socket, because who holds it may be an agent that is starting.
    fn open(&mut self, verb: Verb) -> Result<Books, Error> {
        let path = self.settings.ledger();
        let deadline = Instant::now() + self.patience;
        // No folder: nothing was ever allocated, and making one is not the plugin's business.
        if !self.settings.state_dir.exists() {
            return Ok(Books::Absent);
        }
        loop {
            let locked = match Store::lock(&path) {
                Ok(store) => return Self::read(store),
                Err(error @ ledger::Error::Locked { .. }) => error,
                Err(error) => return Err(unreadable(&error)),
            };
            if let Some(answer) = (self.agent)(verb) {
                return Ok(Books::Answered(answer));
            }
            if Instant::now() >= deadline {
                let details = format!("{locked}, and nobody answers at {}", self.settings.socket.display());
                return Err(Error::because(Code::TRY_LATER, "the address ledger is busy", details));
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn read(store: Store) -> Result<Books, Error> {
        match store.read().map_err(|error| unreadable(&error))? {
            Found::Nothing => Ok(Books::Absent),
            Found::Damaged(reason) => Ok(Books::Damaged(store, reason)),
            Found::Rows(rows) => Ok(match Ledger::from_rows(store, *rows, COOL_DOWN) {
                Ok(ledger) => Books::Open(Box::new(ledger)),
                Err(damaged) => Books::Damaged(damaged.0, damaged.1),
            }),
        }
    }

    /// Everything in reverse order of ADD; the row goes last, and only if the link is surely gone.
    fn detach(&self, ledger: &mut Ledger, attachment: &Attachment) -> Result<(), Error> {
        let state = std::sync::Arc::clone(ledger.state());
        let Some(entry) = state.get(attachment) else {
            return self.unplug(&self.kernel.host_name(attachment), &[]);
        };
        let id = &attachment.container_id;
        let another = state
            .entries()
            .any(|other| other.attachment.container_id == *id && other.attachment != *attachment);
        if let (Some(dir), Some(pod), false) = (state.status_dir(), &entry.pod, another)
            && let Err(problem) = self.kernel.remove_status(dir, pod, id)
        {
            tracing::warn!(%pod, error = chain(&*problem), "cannot remove the pod's status");
        }
        self.unplug(&entry.host_name, &entry.addresses)?;
        ledger
            .commit(|state, clock| drop(state.release(attachment, clock)))
            .map_err(|error| Error::because(Code::IO, "the address ledger was not written", chain(&error)))
    }

    fn unplug_unknown(&self, attachment: &Attachment) -> Result<String, Error> {
        self.unplug(&self.kernel.host_name(attachment), &[])?;
        Ok(String::new())
    }

    fn unplug(&self, host_name: &str, addresses: &[IpAddr]) -> Result<(), Error> {
        let refused = |what: &str, problem: &Problem| {
            Error::because(Code::KERNEL, format!("cannot remove {what} {host_name}"), chain(&**problem))
        };
        self.kernel
            .expel(&self.settings.bpffs, host_name, addresses)
            .map_err(|problem| refused("the map rows of", &problem))?;
        self.kernel.delete(host_name).map_err(|problem| refused("link", &problem))?;
        Ok(())
    }
}

fn damaged(reason: String) -> Error {
    Error::because(Code::TRY_LATER, "the address ledger is damaged, the agent will rebuild it", reason)
}

fn unreadable(error: &ledger::Error) -> Error {
    Error::because(Code::IO, "the address ledger cannot be used", chain(error))
}
